"""RMT-Downstream by a name that nobody else's folder has: its configs, and its ``backbone``.

Importing this package imports the ``backbone`` of RMT-Downstream, whatever else on Python's path is
called so: ``import backbone`` is that one from then on. In a config of another project::

    _base_ = __import__('rmt_downstream').config('mask_rcnn_rmt_t_fpn_1x_coco.py')

mmengine's own ``scope::path`` takes a fixed list of OpenMMLab's packages, and an import statement
above ``_base_`` makes another kind of config.
"""

import difflib
import sys
from importlib import import_module
from pathlib import Path

__version__ = '0.1.0'

_HERE = Path(__file__).resolve().parent
_BESIDE = _HERE.parent  # the project; where it is installed, site-packages
_CONFIGS = _HERE if (_HERE / 'det_configs').is_dir() else _BESIDE


def config(name: str) -> str:
    """Where a config lies, for ``_base_``.

    Args:
        name: of its file, with as much of its path as tells it from others: ``'rmt_t.py'``,
            ``'mask_rcnn_rmt_t_fpn_1x_coco.py'``, ``'det_configs/_base_/default_runtime.py'``.

    Returns:
        An absolute path.

    Raises:
        FileNotFoundError: there is none of that name, or several.
    """
    files = {
        file.relative_to(_CONFIGS).as_posix(): file
        for folder in ('cls_configs', 'det_configs', 'seg_configs', 'backbone/_base_')
        for file in sorted((_CONFIGS / folder).rglob('*.py'))
    }
    found = [path for path in files if f'/{path}'.endswith(f'/{name}')]
    if len(found) == 1:
        return str(files[found[0]])
    if found:
        raise FileNotFoundError(f'{name}: several configs are called so: {", ".join(found)}')
    names = [path.rpartition('/')[2] for path in files]
    near = difflib.get_close_matches(name.rpartition('/')[2], names, 1)
    hint = f'did you mean {near[0]}?' if near else f'they are in {_CONFIGS}'
    raise FileNotFoundError(f'{name}: no config of RMT-Downstream; {hint}')


def _import_backbone() -> None:
    """Import the package beside this one.

    Raises:
        ImportError: another of that name was imported before.
    """
    sys.path.insert(0, str(_BESIDE))
    try:
        places = list(import_module('backbone').__path__)
    finally:
        sys.path.remove(str(_BESIDE))  # the first: what else is there shadows nothing
    if [Path(place).resolve() for place in places] != [_BESIDE / 'backbone']:
        raise ImportError(
            f'another folder is taken for the package `backbone` of RMT-Downstream, {places}: '
            'rename it, or import rmt_downstream before it is imported'
        )


_import_backbone()
