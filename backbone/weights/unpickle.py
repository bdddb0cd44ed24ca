"""Pickle -> plain data, by a table of our own: what a file asks for beyond it is refused.

A pickle is a program for a small stack machine. This one runs the handful of its instructions
that ``torch.save`` writes; the names a file may use stand in a table that maps each to something
inert. It needs nothing of the process around it: neither Python's unpickler nor torch's, whose
list of safe names is everybody's.
"""

import pickletools
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, BinaryIO


@dataclass(frozen=True, eq=False)
class Name:
    """What a name in a file stands for.

    Attributes:
        path: the name, ``module.name``.
        call: what calling it gives.
        new: what making an empty instance of it gives.
    """

    path: str
    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


class Standin:
    """An instance whose state a file may set; ``value`` is what it stands for in the end."""

    value: Any

    def set_state(self, state: Any) -> None:
        raise UnpicklingError('a state where none belongs')


def unpickle(
    stream: BinaryIO, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Run one pickle from a stream, which is left just behind it.

    Args:
        names: ``module.name`` -> a :class:`Name`, or the value itself.
        persistent: gives what is stored outside the pickle.

    Raises:
        UnpicklingError: it asks for a name that is not in the table ("GLOBAL module.name").
        Exception: whatever a damaged pickle makes the machine stumble over.
    """
    machine = _Machine(names, persistent)
    for instruction, argument, _ in pickletools.genops(stream):
        name = instruction.name
        if name in _ARGUMENT:
            machine.stack.append(argument)
        elif name in _NEW:
            machine.stack.append(_NEW[name]())
        elif name == 'STOP':
            return machine.stack.pop()
        elif name != 'PROTO':
            if name not in _RUN:
                raise UnpicklingError(f'instruction {name}, which torch never writes')
            _RUN[name](machine, argument)
    raise UnpicklingError('no end')


_ARGUMENT = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING'}
_NEW = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
    'EMPTY_SET': set,
}
_PYTHON_2 = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # protocol 2 uses the old names


class _Machine:
    """The instructions that do more than push their argument, by their names."""

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    # names and calls

    def named(self, argument: str) -> None:
        module, name = argument.split(' ', 1)
        path = f'{_PYTHON_2.get(module, module)}.{name}'
        if path not in self.names:
            raise UnpicklingError(f'GLOBAL {path}')
        self.stack.append(self.names[path])

    def call(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or function.call is None:
            raise UnpicklingError(f'GLOBAL {getattr(function, "path", type(function).__name__)}')
        self.stack.append(function.call(*arguments))

    def new(self, _: None) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Name) or kind.new is None or arguments != ():
            raise UnpicklingError(f'GLOBAL {getattr(kind, "path", type(kind).__name__)}')
        self.stack.append(kind.new())

    def set_state(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Standin):
            target.set_state(state)
        elif type(target) is Namespace:
            vars(target).update({str(key): value for key, value in state.items()})
        elif type(target) is OrderedDict:  # a state dict, with the versions of its layers
            if type(state.get('_metadata')) is OrderedDict:
                target._metadata = state['_metadata']
        else:
            raise UnpicklingError(f'a state for {type(target).__name__}')

    def fetch(self, _: None) -> None:
        if self.persistent is None:
            raise UnpicklingError('storage outside a file of tensors')
        self.stack.append(self.persistent(self.stack.pop()))

    # containers

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pack(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def pack_last(self, count: int) -> None:
        if len(self.stack) < count:
            raise UnpicklingError('a tuple of more than there is')
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, _: None) -> None:
        item = self.stack.pop()
        self.target(list).append(item)

    def append_all(self, _: None) -> None:
        items = self.since_mark()
        self.target(list).extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.target(dict, OrderedDict, Counter)[key] = value

    def set_items(self, _: None) -> None:
        items = self.since_mark()
        target = self.target(dict, OrderedDict, Counter)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def target(self, *kinds: type) -> Any:
        if type(self.stack[-1]) not in kinds:
            raise UnpicklingError(f'an item for {type(self.stack[-1]).__name__}')
        return self.stack[-1]

    # what is used again

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])


_RUN: dict[str, Callable[[_Machine, Any], None]] = {
    'GLOBAL': _Machine.named,
    'REDUCE': _Machine.call,
    'NEWOBJ': _Machine.new,
    'BUILD': _Machine.set_state,
    'BINPERSID': _Machine.fetch,
    'MARK': _Machine.mark,
    'TUPLE': _Machine.pack,
    'TUPLE1': lambda machine, _: machine.pack_last(1),
    'TUPLE2': lambda machine, _: machine.pack_last(2),
    'TUPLE3': lambda machine, _: machine.pack_last(3),
    'APPEND': _Machine.append,
    'APPENDS': _Machine.append_all,
    'SETITEM': _Machine.set_item,
    'SETITEMS': _Machine.set_items,
    'BINPUT': _Machine.remember,
    'LONG_BINPUT': _Machine.remember,
    'BINGET': _Machine.recall,
    'LONG_BINGET': _Machine.recall,
}
