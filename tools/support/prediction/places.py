"""Where results go: each under a name of its own, and over nothing that is there."""

import os
from dataclasses import dataclass
from pathlib import Path

from support import cli
from support.files import check_file, check_folder, picture_names
from support.prediction.inputs import Source, is_video


@dataclass(frozen=True)
class Places:
    """Files of a run: two for all, and by a source's name its picture or video and its label maps.

    The label maps of a video are a folder.
    """

    found: Path
    coco: Path | None
    pictures: dict[str, Path]
    labels: dict[str, Path]

    def all(self) -> list[Path]:
        coco = [self.coco] if self.coco else []
        return [self.found, *coco, *self.pictures.values(), *self.labels.values()]


def plan(sources: list[Source], out_dir: str, coco: str | None, label_maps: bool) -> Places:
    """The places of a run's results.

    An image's is its own path below the folder that all inputs share, with ``.png`` appended: so
    images of one name, in several folders or with several suffixes, have a result each.
    """
    out = Path(out_dir)
    files = [source.name for source in sources if not source.camera]
    names = picture_names(files, lambda name: f'{name}.mp4' if is_video(name) else f'{name}.png')
    names |= {s.name: f'camera_{s.name}.mp4' for s in sources if s.camera}
    pictures = {source.name: out / names[source.name] for source in sources}
    labels = {
        source.name: pictures[source.name].with_suffix('.labels' if source.moves else '.labels.png')
        for source in (sources if label_maps else ())
    }
    return Places(out / 'predictions.json', Path(coco) if coco else None, pictures, labels)


def check(places: Places, sources: list[Source], out_dir: str, overwrite: bool) -> None:
    """Refuse places that cannot be written, or hold what is not to be lost; makes nothing.

    Raises:
        UserError: names the place, and what to do.
    """
    check_folder(out_dir, '--out-dir')
    if places.coco:
        check_file(places.coco, '--coco-json')
    inputs = {os.path.abspath(source.name) for source in sources}
    taken = set()
    for path in places.all():
        place = os.path.abspath(path)
        if place in inputs or place in taken:
            what = 'an image to predict' if place in inputs else 'a result of another image'
            raise cli.UserError(f'--out-dir {out_dir}: {path} would be {what} too; name another')
        if os.path.lexists(place) and not overwrite:
            raise cli.UserError(
                f'{path} is there already; name another folder by --out-dir, or add --overwrite'
            )
        taken.add(place)
