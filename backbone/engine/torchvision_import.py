"""torchvision beside a torch that its compiled operators do not fit, where its import fails.

mmpretrain imports torchvision, for its transforms alone, which are Python. A registry may have it
only as compiled for CUDA: beside a CPU build of torch its library does not load, and its import
ends where it first describes an operator (``operator torchvision::nms does not exist``). Here these
operators are declared, without any code behind them, and the import is done again. Whoever calls
one is told by torch that it has no implementation.

Importing this module imports nothing: it looks at ``import torchvision`` when that comes.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import torch

LINE = (
    'The compiled operators of torchvision do not fit this torch: they are declared without code, '
    'so that it imports. Its transforms work; mmcv has the operators.'
)
"""What a run's log says where it was necessary."""

_OPERATORS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, '
    'SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor',
)

_declared: list[torch.library.Library] = []  # they are gone when the library is


def was_necessary() -> bool:
    """Whether the import of torchvision failed in this process, and was done again."""
    return bool(_declared)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if 'operator torchvision::' not in str(error):
                raise
            _declare()
            for name in [name for name in sys.modules if name.startswith('torchvision.')]:
                del sys.modules[name]
            super().exec_module(module)


def _declare() -> None:
    library = torch.library.Library('torchvision', 'DEF')
    for operator in _OPERATORS:
        library.define(operator)
    _declared.append(library)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == 'torchvision' else None
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())
