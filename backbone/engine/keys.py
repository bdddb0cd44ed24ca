"""Two top-level keys of every config here, which no config can do alone.

A config is evaluated before ``--cfg-options`` are merged, so a changed ``data_root`` would reach
none of the paths made from it. The runner applies the keys when it is built, which works alike
under our tools and under mmdet's and mmseg's own (all build what ``runner_type`` names):

- ``data_root=DIR``: in dataloaders and evaluators, every path below the default root moves there;
  a path that somebody has set to something else stays.
- ``pretrained=FILE``: ImageNet weights for the backbone, loaded completely or refused.

A tool that looks at the paths before a runner exists calls :func:`apply_keys` first; twice does no
harm.
"""

from pathlib import PurePosixPath

from mmengine.config import Config, ConfigDict

DEFAULT_ROOTS = ('data/coco', 'data/ade/ADEChallengeData2016')
"""Where the base configs look for the data, relative to the working directory."""

_WITH_PATHS = ('dataloader', 'evaluator')


def apply_keys(cfg: Config) -> Config:
    """Carry ``data_root`` and ``pretrained`` of ``cfg`` to the places they stand for, in place."""
    if cfg.get('data_root'):
        for split in ('train', 'val', 'test'):
            for name in _WITH_PATHS:
                key = f'{split}_{name}'
                if cfg.get(key):
                    cfg[key] = _moved(cfg[key], cfg.data_root)
    if cfg.get('pretrained'):
        cfg.model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=cfg.pretrained)
    return cfg


def _moved(node, root: str):
    """Copy of a config value in which paths at or below a default root lie at or below ``root``."""
    if isinstance(node, dict):
        return ConfigDict({key: _moved(value, root) for key, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)(_moved(value, root) for value in node)
    if isinstance(node, str):
        for default in DEFAULT_ROOTS:
            if node.rstrip('/') == default or node.startswith(default + '/'):
                rest = PurePosixPath(node).relative_to(default)
                return f'{root.rstrip("/") or "/"}/{"" if rest == PurePosixPath() else rest}'
    return node
