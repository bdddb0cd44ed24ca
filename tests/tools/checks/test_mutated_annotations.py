"""Annotation files with random faults: refused in one line, or read and evaluated to the end."""

import copy
import json
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from own_data import OwnData
from support import checks

SEEDS = range(300)
IN_SHORT = SEEDS[::15]

VALUES = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e9, -1e9, 1e300, 10**30, float('nan'), float('inf'),
    '', '0', '1', 'x', 'ä', [], {}, [[]], [0], [1, 2], [1, 2, 3, 4], [[1, 2, 3, 4]], [None],
    [1, 2, 3, 4, 5, 6], {'id': 1}, {'counts': 'o', 'size': [96, 128]},
    {'counts': [5], 'size': [96, 128]},
]  # fmt: skip
"""What a value may become."""

PARTS = ['annotations', 'annotations', 'annotations', 'images', 'categories']


def places(node: dict | list) -> Iterator[tuple[dict | list, object]]:
    """Every (container, key) of a JSON."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def place(content: dict, rng: random.Random) -> tuple[dict | list, object]:
    if rng.random() < 0.05:
        return content, rng.choice(list(content))
    return rng.choice(list(places(content[rng.choice(PARTS)])))


def change_value(content: dict, rng: random.Random) -> None:
    node, key = place(content, rng)
    node[key] = copy.deepcopy(rng.choice(VALUES))


def drop(content: dict, rng: random.Random) -> None:
    node, key = place(content, rng)
    del node[key]


def retype(content: dict, rng: random.Random) -> None:
    node, key = place(content, rng)
    node[key] = rng.choice([str, lambda v: [v], lambda v: {'value': v}, lambda v: v * 2])(node[key])


def take_anothers(content: dict, rng: random.Random) -> None:
    """A value of another row: ids that are twice, boxes and masks of other images."""
    rows = content[rng.choice(PARTS)]
    one, other = rng.choice(rows), rng.choice(rows)
    key = rng.choice(list(one))
    one[key] = copy.deepcopy(other[key])


def repeat(content: dict, rng: random.Random) -> None:
    rows = content[rng.choice(PARTS)]
    rows.insert(rng.randrange(len(rows)), copy.deepcopy(rng.choice(rows)))


def scale(content: dict, rng: random.Random) -> None:
    """Every box, or one, by a factor."""
    rows = content['annotations']
    factor = rng.choice([0, 1e-3, -1, 0.01, 1e4, 1e8])
    for row in rng.choice([rows, [rng.choice(rows)]]):
        row['bbox'] = [number * factor for number in row['bbox']]


CHANGES = [change_value, change_value, change_value, drop, retype, take_anothers, repeat, scale]


def mutate_bytes(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        del data[at + 1 :]
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
    else:
        data[at] = rng.choice(b'0123456789.-eE')


def mutated(text: str, seed: int) -> bytes:
    """The text of an annotation file with one to three faults."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        data = bytearray(text.encode())
        for _ in range(rng.randint(1, 3)):
            mutate_bytes(data, rng)
        return bytes(data)
    content = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        try:
            rng.choice(CHANGES)(content, rng)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            break  # the fault before leaves nothing of that kind
    return json.dumps(content).encode()


def read_all(cfg: Config, split: str) -> None:
    """Read every sample of a split through its pipeline; evaluate something on it."""
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    assert samples
    if split == 'train':
        assert sum(len(sample.gt_instances) for sample in samples)
        return
    metric = METRICS.build(cfg[f'{split}_evaluator'])
    metric.dataset_meta = dataset.metainfo
    for sample in samples:
        height, width = sample.ori_shape
        found = dict(
            bboxes=torch.tensor([[0.0, 0.0, width, height]] * 2),
            scores=torch.tensor([0.9, 0.8]),
            labels=torch.tensor([0, 2]),
            masks=torch.ones(2, height, width, dtype=torch.bool),
        )
        metric.process({}, [{**sample.to_dict(), 'pred_instances': found}])
    assert 'coco/segm_mAP' in metric.evaluate(len(samples))


def outcome(data: OwnData, split: str) -> str:
    """``'refused'`` in one line, or ``'read'``; anything else raises."""
    cfg = data.cfg()
    try:
        checks.check_data(cfg, (split,))
    except checks.UserError as error:
        return 'refused' if '\n' not in str(error) else 'refused in several lines'
    read_all(cfg, split)
    return 'read'


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
    'seed', [s if s in IN_SHORT else pytest.param(s, marks=pytest.mark.slow) for s in SEEDS]
)
def test_refused_in_a_line_or_read_to_the_end(
    seed: int, split: str, own_coco: OwnData, record_property: Callable[[str, object], None]
) -> None:
    path = own_coco.annotations('train' if split == 'train' else 'val')
    path.write_bytes(mutated(path.read_text(), seed))
    found = outcome(own_coco, split)
    record_property('outcome', found)
    assert found in ('refused', 'read')


def test_the_unchanged_file_is_read_and_evaluated(own_coco: OwnData) -> None:
    assert [outcome(own_coco, split) for split in ('train', 'test')] == ['read', 'read']


def test_mutations_differ(own_coco: OwnData) -> None:
    text = own_coco.annotations().read_text()
    assert len({mutated(text, seed) for seed in SEEDS}) > 0.9 * len(SEEDS)
