"""What every config here has in common, whatever its task."""

# Makes sure that `backbone` is ours, and so registers RMT: before `custom_imports`, which is read
# after the config files. (An import statement makes another kind of config.)
__import__('rmt_downstream')

# `backbone.engine` registers the runner: it understands the two keys below and brings hooks of its
# own (OWN_HOOKS in backbone/engine/runner.py), whatever `custom_hooks` says.
custom_imports = dict(imports=['rmt_downstream', 'backbone.engine'], allow_failed_imports=False)
runner_type = 'RMTRunner'

# ImageNet weights of the backbone: a file, e.g. `--cfg-options pretrained=RMT-S.pth`.
# The other key, `data_root`, stands in the data sets' bases.
pretrained = None
