"""What every config here has in common, whatever its task."""

# `backbone` registers RMT, `backbone.engine` the runner that understands the two keys below.
custom_imports = dict(imports=['backbone', 'backbone.engine'], allow_failed_imports=False)
runner_type = 'RMTRunner'

# ImageNet weights of the backbone: a file, e.g. `--cfg-options pretrained=RMT-S.pth`.
# The other key, `data_root`, stands in the data sets' bases.
pretrained = None

# Weights load completely or are refused; a resumed run goes on as if it had not stopped; a run that
# is too short to learn warns, one that computes NaN ends.
custom_hooks = [
    dict(type='StrictLoadHook'),
    dict(type='SeedByIterationHook'),
    dict(type='ShortRunHook'),
    dict(type='StopAtInvalidLossHook', patience=10),
]
