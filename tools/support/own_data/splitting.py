"""Train and val where the data has no such split: by image, every class in both."""

from collections import Counter

import numpy as np

VAL_SHARE, MOST_VAL = 0.2, 1000
"""What is kept from training to validate on: a share of the images, and at most so many."""


def choose_val(classes_of: list[set], seed: int = 0) -> set[int]:
    """Which images to validate on.

    Rare classes choose first. A class that only one image has stays in the training.

    Args:
        classes_of: the classes in each image; there are two images or more.
    """
    number = len(classes_of)
    target = min(max(1, round(number * VAL_SHARE)), MOST_VAL)
    left = Counter(name for classes in classes_of for name in classes)  # images to train with
    order = np.random.default_rng(seed).permutation(number).tolist()
    chosen: set[int] = set()

    def take(wanted: object = None, most: int = number) -> None:
        for i in order:
            if len(chosen) >= most:
                return
            classes = classes_of[i]
            if i in chosen or (wanted is not None and wanted not in classes):
                continue
            if all(left[name] > 1 for name in classes):
                chosen.add(i)
                left.subtract(classes)
                if wanted is not None:
                    return

    most = max(target, min(number // 2, len(left)))
    for name in sorted(left, key=lambda name: (left[name], str(name))):
        if not any(name in classes_of[i] for i in chosen):
            take(name, most)
    take(most=target)
    return chosen or {order[0]}
