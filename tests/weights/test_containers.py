"""Storages: parts of one, and what a file may not say of them."""

import pytest
import torch

from backbone.weights.containers import _Storages
from backbone.weights.names import tensor_of

NUMBERS = torch.arange(6.0)


def storages() -> _Storages:
    """Of a file with one storage, the six NUMBERS, under the key '0'."""
    return _Storages(lambda key, size: NUMBERS.view(torch.uint8)[:size].clone())


def test_a_part_of_a_storage_is_read_within_its_bounds():
    """As torch wrote them before 0.4: (name, first number, numbers)."""
    part = storages()(('storage', torch.float32, '0', 'cpu', 6, ('part', 2, 3)))
    assert tensor_of(part, 0, (3,), (1,)).tolist() == [2, 3, 4]
    assert tensor_of(part, 1, (2,), (1,)).tolist() == [3, 4]
    for offset, size in ((0, 4), (1, 3), (3, 1)):
        with pytest.raises(ValueError, match='larger than its storage'):
            tensor_of(part, offset, (size,), (1,))


@pytest.mark.parametrize('view', [('part', -1, 3), ('part', 4, 3), ('part', 0, 7), ('part', 3, -1)])
def test_a_part_beyond_its_storage_is_refused(view):
    with pytest.raises(ValueError, match='a part larger than its storage'):
        storages()(('storage', torch.float32, '0', 'cpu', 6, view))
    whole = ('part', 0, 6)
    assert storages()(('storage', torch.float32, '0', 'cpu', 6, whole)).size == 24


def test_a_storage_is_one_thing():
    of_file = storages()
    first = of_file(('storage', torch.float32, '0', 'cpu', 6, None))
    assert of_file(('storage', torch.float32, '0', 'cpu', 6)) is first
    for dtype, count in ((torch.float32, 5), (torch.int32, 6), (torch.float16, 12)):
        with pytest.raises(ValueError, match='said to be two things'):
            of_file(('storage', dtype, '0', 'cpu', count))


@pytest.mark.parametrize('name', [
    ('module', torch.float32, '0', 'cpu', 6),
    ('storage', 'float32', '0', 'cpu', 6),
    ('storage', torch.float32, '0', 'cpu', 6.0),
    ('storage', torch.float32, '0', 'cpu', True),
    ('storage', torch.float32, '0', 'cpu', -1),
])  # fmt: skip
def test_what_is_no_storage_is_refused(name):
    with pytest.raises(ValueError, match='storage'):
        storages()(name)


def test_a_storage_may_be_empty():
    empty = storages()(('storage', torch.float32, '0', 'cpu', 0))
    assert tensor_of(empty, 0, (0, 3), (3, 1)).shape == (0, 3)


def test_numbers_begin_at_a_whole_number():
    halves = storages()(('storage', torch.float16, '0', 'cpu', 12, ('part', 1, 8)))
    assert tensor_of(halves, 0, (8,), (1,)).shape == (8,)
    with pytest.raises(ValueError, match='between two numbers'):
        tensor_of(type(halves)(halves.raw, torch.float32, halves.start, 16), 0, (4,), (1,))
