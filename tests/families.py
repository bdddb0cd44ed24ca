"""The families of backbones, each with a network small enough that a test takes milliseconds."""

from dataclasses import dataclass

import golden
import pytest
import released_files
import torch
from mmengine.registry import MODELS

from backbone import RAVLT, RMT, MAViT
from backbone.network import Network


@dataclass(frozen=True)
class Family:
    """A family, and its smallest network.

    Attributes:
        mini: an ``arch``, five blocks with a drop path of 0.2.
        tables: the tables of a released file, of a stage.
    """

    type: type[Network]
    mini: dict
    tables: tuple[str, ...]

    def __call__(self, **kwargs: object) -> Network:
        """The small network, as training begins."""
        return self.type(self.mini, **kwargs)

    def build(self, **kwargs: object) -> Network:
        """The same with the golden recipe's weights."""
        model = MODELS.build(dict(type=self.type.__name__, arch=self.mini, **kwargs))
        model.load_state_dict(golden.recipe_state_dict(model))
        return model


_RMT = dict(released_files.MINI, drop_path=0.2, axial=(True, True, False, False))
_RAVLT = dict(released_files.MINI_RAVLT, drop_path=0.2)
FAMILIES = {
    'RMT': Family(RMT, _RMT, ('Relpos.angle', 'Relpos.decay')),
    'RAVLT': Family(RAVLT, _RAVLT, ('RoPE.angle',)),
    'MAViT': Family(MAViT, _RAVLT, ('RoPE.angle',)),
}


def image(height: int = 64, width: int = 96, batch: int = 1) -> torch.Tensor:
    return golden.recipe_input((batch, 3, height, width))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def unless_quick(cases, quick):
    return [case if quick(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases]
