"""Look at the data before anything is built: one clear line instead of a traceback an hour later.

mmdet and mmseg take some mistakes without a word: objects in no image, photos that are turned when
they are read, classes in another order than the file's. What the pipeline and the metrics do not
read is not looked at.
"""

import os
import sys
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from backbone.engine import ConfigError
from backbone.weights.match import CheckpointError
from support.checks import listing, samples
from support.checks.classes import check_classes
from support.checks.coco import check_coco
from support.checks.coco_file import CocoFile
from support.checks.dataset import Leaf, is_local, leaves, path_of, reason_of
from support.checks.heads import check_heads
from support.checks.label_maps import naming_label_maps
from support.checks.metrics import Evaluation, check_other_file, evaluations
from support.checks.rows import TOO_NARROW
from support.checks.tally import Tally
from support.cli import UserError

__all__ = ['build_loops', 'check_data', 'naming_label_maps']


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check the datasets of ``cfg``; says in a line each what there is and what is dropped.

    Raises:
        UserError: files are missing or malformed, or the classes fit neither file nor heads, or
            nothing would be trained.
    """
    if os.environ.get('LOCAL_RANK', '0') != '0':
        return  # one process of each machine looks; the others wait for it in the process group
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    trained: list[list[str]] = []
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if isinstance(dataset, dict):
            found = leaves(dataset, f'{split}_dataloader.dataset')
            _check_split(cfg, split, [Leaf(key, dataset) for key, dataset in found], trained)


def build_loops(runner: Runner, splits: Sequence[str]) -> None:
    """Build datasets and loops now, so that what they refuse comes in one line as well."""
    for split in splits:
        if getattr(runner, f'_{split}_loop') is None:
            continue
        try:
            getattr(runner, f'{split}_loop')
        except (UserError, CheckpointError, ConfigError):
            raise
        except Exception as error:
            raise UserError(
                f'{split}_dataloader or {split}_evaluator can not be built: {reason_of(error)} '
                '(RMT_TRACEBACK=1 shows where)'
            ) from error


def _check_split(cfg: Config, split: str, found: list[Leaf], trained: list[list[str]]) -> None:
    """Check the data sets of a split; ``trained`` collects the classes of what is trained on."""
    metrics = evaluations(cfg, split)
    files = [_check_annotations(cfg, leaf, metrics) for leaf in found]
    tallies = [tally for _, tally in files]
    _check_something_trains(found, tallies)
    if len(found) == 1 and files[0][0]:
        for metric in metrics:
            if not metric.reads(found[0].path):
                check_other_file(found[0], metric)
    for i, (leaf, (file, _)) in enumerate(zip(found, files, strict=True)):
        if leaf.kind is None or not is_local(leaf.config) or not leaf.family & listing.FAMILIES:
            continue
        tallies[i] = _check_samples(cfg, leaf, file, tallies[i], trained)
    _check_something_trains(found, tallies)


def _check_annotations(
    cfg: Config, leaf: Leaf, metrics: list[Evaluation]
) -> tuple[CocoFile | None, Tally | None]:
    """Check what the config says of a data set; its annotation file, where it is COCO's."""
    if leaf.kind is None or not is_local(leaf.config):
        return None, None  # an unknown type: the registry says what to do when it is built
    _check_paths(leaf)
    file, tally = None, None
    if leaf.reads_plain_coco and leaf.path:
        kinds = frozenset().union(*(m.kinds for m in metrics if m.reads(leaf.path)))
        file, tally = check_coco(leaf, leaf.path, kinds)
        if file.whole and kinds and not tally.evaluated:
            _warn(f'{leaf.path}: has no object to evaluate: AP will be -1')
    seen = file is not None and (file.whole or not file.annotations)
    return file, tally if seen else None


def _check_samples(
    cfg: Config,
    leaf: Leaf,
    file: CocoFile | None,
    tally: Tally | None,
    trained: list[list[str]],
) -> Tally | None:
    """Check the classes, the images and the label maps of a data set; say what is in it."""
    listable = listing.is_listable(leaf)
    infos = listing.infos(leaf) if listable else []
    if leaf.classifies:
        about = check_classes(cfg, leaf, infos, trained[0] if trained and listable else None)
        if leaf.trains and leaf.listed:
            trained.append(leaf.listed)
    else:
        check_heads(cfg, leaf.key, leaf.head_classes)
    if file and not file.whole:
        samples.check(cfg, leaf, listing.of_rows(leaf, file.images))
        _say(leaf, f'{leaf.path} is large: only its beginning was looked at')
        return None
    if not listable:
        return None
    said = samples.check(cfg, leaf, infos)
    if leaf.classifies:
        _say(leaf, f'{len(infos)} images{about}')
        return None
    tally = tally or listing.tally(infos)
    detects = 'BaseDetDataset' in leaf.family
    _say(leaf, (tally.describe(leaf.trains) if detects else f'{len(infos)} images') + said)
    return tally


def _check_paths(leaf: Leaf) -> None:
    """Files and folders that the config names and something reads."""
    prefixes = leaf.config.get('data_prefix') or {}  # mmpretrain's may be one path
    inside = (
        [f'data_prefix.{n}' for n in prefixes] if isinstance(prefixes, dict) else ['data_prefix']
    )
    places = {name: path_of(leaf.config, name) for name in ('ann_file', *inside)}
    if leaf.is_of_folders:
        places['data_root'] = leaf.config.get('data_root')
    for name, path in places.items():
        if not path or ('.seg' in name and not leaf.loads('seg')):
            continue
        if not os.path.exists(path):
            raise UserError(
                f'{leaf.key}: {path}: no such file or directory (from {os.getcwd()}); give the '
                'place of the data with --cfg-options data_root=DIR'
            )


def _check_something_trains(found: list[Leaf], tallies: list[Tally | None]) -> None:
    """Refuse to train on no object; says nothing where a data set was not seen whole."""
    if None in tallies or any(tally.usable for tally in tallies):
        return
    pairs = zip(found, tallies, strict=True)
    leaf, tally = next(((f, t) for f, t in pairs if f.trains_objects), (None, None))
    if leaf is None:
        return
    if not tally.objects:
        raise UserError(f'{leaf.key}: {leaf.path}: has no annotations to train on')
    hint = ''
    if tally.dropped and tally.dropped.most_common(1)[0][0] == TOO_NARROW:
        hint = '; boxes must be in pixels, not in parts of the image'
    raise UserError(
        f'{leaf.key}: {leaf.path}: no object to train on: of {tally.objects}, '
        f'{tally.reasons() or "none is left"}{hint}'
    )


def _say(leaf: Leaf, text: str) -> None:
    print(f'{leaf.key}: {text}', flush=True)


def _warn(text: str) -> None:
    print(f'warning: {text}', file=sys.stderr, flush=True)
