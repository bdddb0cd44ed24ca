"""The projection on top of a classifier's backbone, against its formula."""

import torch
from golden import recipe_input, recipe_state_dict

from backbone import ProjectionNeck


def test_projection_is_linear_norm_silu_and_the_mean_over_the_places():
    neck = ProjectionNeck(6, 10).double()
    weights = {name: tensor.double() for name, tensor in recipe_state_dict(neck).items()}
    neck.load_state_dict(weights, strict=False)
    features = recipe_input((3, 6, 4, 5)).double()
    for live in (True, False):
        x = torch.einsum('bchw,oc->bohw', features, weights['proj.weight'])
        x = x + weights['proj.bias'][:, None, None]
        mean, var = weights['norm.running_mean'], weights['norm.running_var']
        if live:  # the batch's own
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
        x = x * weights['norm.weight'][:, None, None] + weights['norm.bias'][:, None, None]
        expected = (x / (1 + torch.exp(-x))).sum((2, 3)) / (4 * 5)
        neck.load_state_dict(weights)
        (found,) = neck.train(live)((torch.zeros(1), features))  # the last of them counts
        torch.testing.assert_close(found, expected)
