"""Pictures to try: of a folder, of the demo's data, or painted like these."""

import shutil
from pathlib import Path

import cv2
import shapes_dataset

from support import cli
from support.paths import ROOT
from support.prediction.inputs import find_sources

DEMO = ROOT / 'data/shapes/val2017'
MOST = 5


def pictures(folder: str | None, served: Path) -> list[Path]:
    """At most ``MOST`` files in ``served``.

    Args:
        folder: where they are copied from; None takes the demo's, or paints some like these.

    Raises:
        UserError: no such folder, or no image in it.
    """
    if folder is None and not DEMO.is_dir():
        for number in range(MOST):
            scene = shapes_dataset.scene('val', number)
            cv2.imwrite(str(served / f'scene_{number + 1}.png'), scene.image)
        return sorted(served.iterdir())
    if folder is not None and not Path(folder).is_dir():
        raise cli.UserError(f'--examples {folder}: no such folder')
    sources = find_sources([folder or str(DEMO)])[:MOST]
    return [Path(shutil.copy(source.name, served)) for source in sources]
