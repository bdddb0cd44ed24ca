"""RAVLT and MAViT: equal to the released models and the formulas."""

import functools

import golden
import numpy as np
import pytest
import torch

from backbone import RAVLT, MAViT

FAMILIES = {'ravlt': RAVLT, 'mavit': MAViT}


@functools.lru_cache(maxsize=1)  # of networks in a row
def golden_weights(arch: str, faint: bool) -> dict[str, torch.Tensor]:
    with torch.device('meta'):
        model = RAVLT(arch)
    return golden.recipe_state_dict(model, faint)


def golden_model(network: str, attention: str) -> RAVLT:
    family, arch, *faint = network.split('_')
    with torch.device('meta'):
        model = FAMILIES[family](arch, attention=attention)
    model.load_state_dict(golden_weights(arch, bool(faint)), assign=True)
    return model.eval()


@pytest.mark.parametrize('network', golden.RAVLT_NETWORKS)
def test_features_equal_the_released_implementation(network, device):
    with np.load(golden.GOLDEN_RAVLT) as data:
        size = 4 * data[f'{network}|0|shape'][2:]
    for name in ('naive', 'fused'):
        model = golden_model(network, name).to(device)
        with torch.no_grad():
            features = model(golden.recipe_input((1, 3, *size)).to(device))
        assert max(golden.golden_errors(features, network)) < golden.LIMIT
