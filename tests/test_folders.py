"""Images of one's own, a folder a class: what is trained on, and what is set aside."""

from pathlib import Path

import pytest

from backbone.folders import ClassFolders


def make(root: Path, **counts: int) -> Path:
    """Empty files: CLASS=how many."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f'{i:03}.jpg').touch()
    return root


def samples(root: Path, split: str, **options: object) -> list[tuple[str, int]]:
    data = ClassFolders(str(root), split, **options)
    infos = [data.get_data_info(i) for i in range(len(data))]
    return [(str(Path(i['img_path']).relative_to(root)), i['gt_label']) for i in infos]


def test_a_share_of_each_class_is_set_aside(tmp_path):
    root = make(tmp_path, cat=20, dog=10, fox=2, owl=1)
    train, val = samples(root, 'train'), samples(root, 'val')
    assert sorted(train + val) == sorted(
        (f'{name}/{i:03}.jpg', label)
        for label, (name, count) in enumerate([('cat', 20), ('dog', 10), ('fox', 2), ('owl', 1)])
        for i in range(count)
    )
    assert [sum(label == k for _, label in val) for k in range(4)] == [4, 2, 1, 0]
    assert sum(label == 0 for _, label in samples(root, 'val', val_share=0.5)) == 10
    assert ClassFolders(str(root), 'val').metainfo['classes'] == ('cat', 'dog', 'fox', 'owl')


def test_the_share_is_no_beginning_and_stays_when_images_come(tmp_path):
    root = make(tmp_path, cat=40)
    before = {path for path, _ in samples(root, 'val')}
    assert before != {f'cat/{i:03}.jpg' for i in range(8)}
    for i in range(40, 45):
        (root / 'cat' / f'{i:03}.jpg').touch()
    after = {path for path, _ in samples(root, 'val')}
    assert len(before & after) >= 6


def test_a_split_that_is_there_is_used(tmp_path):
    make(tmp_path / 'train', cat=3, dog=2)
    make(tmp_path / 'val', cat=1, dog=1)
    assert len(samples(tmp_path, 'train')) == 5
    assert samples(tmp_path, 'val') == [('val/cat/000.jpg', 0), ('val/dog/000.jpg', 1)]


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(split='test'), "split 'test': choose from train, val"),
        (dict(split='val', val_share=1), 'val_share=1: choose from above 0 to below 1'),
    ],
)
def test_what_cannot_be_is_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        ClassFolders(str(tmp_path), **options)
