"""What every config here has in common, whatever its task."""

# Config files are read before `custom_imports`. (An import statement makes another kind of config.)
try:
    __import__('backbone.rmt')
except ImportError as error:
    raise ImportError(
        f'{error}: another folder is taken for the package `backbone` of RMT-Downstream; put the '
        "project's folder first on PYTHONPATH, or rename the other: "
        f'{list(getattr(__import__("sys").modules.get("backbone"), "__path__", []))}'
    ) from None

# `backbone` registers RMT, `backbone.engine` the runner: it understands the two keys below and
# brings hooks of its own (OWN_HOOKS in backbone/engine/runner.py), whatever `custom_hooks` says.
custom_imports = dict(imports=['backbone', 'backbone.engine'], allow_failed_imports=False)
runner_type = 'RMTRunner'

# ImageNet weights of the backbone: a file, e.g. `--cfg-options pretrained=RMT-S.pth`.
# The other key, `data_root`, stands in the data sets' bases.
pretrained = None
