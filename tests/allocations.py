"""Bytes allocated, counted instead of measured."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """The bytes of every new storage that an operator returns."""

    def __init__(self):
        super().__init__()
        self.sizes, self.seen = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen[storage.data_ptr()] = storage  # held: its address is not used again
                    self.sizes.append(storage.nbytes())
        return out
