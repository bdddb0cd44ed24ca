"""A data set of mmpretrain for images of one's own, a folder a class. Configs import it by name."""

import os
import zlib
from itertools import groupby
from typing import Any

from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class ClassFolders(CustomDataset):
    """Images of one's own, a folder a class, with or without a split.

    Where ``data_root`` holds the folders ``train`` and ``val``, these hold the classes. Else
    ``data_root`` itself does, and of each class a share is set aside for ``val``: always the same
    images, whatever the order in which the files are listed. The names of the folders, sorted, are
    the classes.

    Args:
        split: 'train' or 'val'.
        val_share: how much of each class is set aside, at least one image of two.
    """

    SPLITS = ('train', 'val')
    EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')

    def __init__(self, data_root: str, split: str, val_share: float = 0.2, **kwargs: Any) -> None:
        if split not in self.SPLITS:
            raise ValueError(f'split {split!r}: choose from {", ".join(self.SPLITS)}')
        if not 0 < val_share < 1:
            raise ValueError(f'val_share={val_share}: choose from above 0 to below 1')
        self.split, self.val_share = split, val_share
        self.is_split = all(os.path.isdir(os.path.join(data_root, name)) for name in self.SPLITS)
        prefix = split if self.is_split else ''
        kwargs = {'data_prefix': prefix, 'extensions': self.EXTENSIONS, **kwargs}
        super().__init__(data_root=data_root, **kwargs)

    def _find_samples(self) -> list[tuple[str, int]]:
        """(path below the folder, class) of each image."""
        samples = super()._find_samples()
        if self.is_split:
            return samples
        chosen = []
        for _, group in groupby(samples, key=lambda sample: sample[1]):
            # by a digest of the name: an image that is added moves few others
            of_class = sorted(group, key=lambda sample: zlib.crc32(sample[0].encode()))
            count = max(round(self.val_share * len(of_class)), min(1, len(of_class) - 1))
            chosen += of_class[:count] if self.split == 'val' else of_class[count:]
        return sorted(chosen)
