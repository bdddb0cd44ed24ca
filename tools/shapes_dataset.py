"""A small built-in dataset of painted shapes, in COCO's and in ADE20K's format.

A scene is a textured ground with clutter on it, and on that, one over the other, shapes of
`CLASSES` in all three of COCO's sizes and now and then a crowd of small ones. What is annotated
is what can be seen: an object's mask is its pixels minus everything painted over it, so a mask
may fall into several polygons. Scene i of a split is the same every time: NumPy keeps the stream
of `RandomState` as it is from version to version.

    python tools/shapes_dataset.py data/shapes              # COCO format
    python tools/shapes_dataset.py data/shapes_ade --ade    # the same scenes, ADE20K's format
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.random import RandomState

CLASSES = ('disc', 'square', 'triangle', 'star', 'cross')
# ADE20K labels all there is; 0 is what has no class (here the clutter) and `reduce_zero_label`
# turns it into "ignore".
ADE_CLASSES = ('ground', *CLASSES)
HEIGHT, WIDTH = 192, 256
SPLITS = {'train': 800, 'val': 100}
FORMAT = 1  # raise it when a scene changes, so that datasets of an older version are made anew

# Side of an object in pixels; with its shape's fill it gives an area on COCO's side of the
# borders 32² and 96² (not always: a border case counts as what it is).
SIDES = {'small': (16, 34), 'medium': (40, 96), 'large': (118, 175)}
SIZE_ODDS = {'small': 0.35, 'medium': 0.40, 'large': 0.25}
HUES = (0, 36, 72, 108, 144)  # of 180: each class leans to a hue, with overlap between neighbours
HUE_SPREAD = 9
MIN_VISIBLE = 0.3  # an object of which less is visible is not a fair question


@dataclass
class Shape:
    """One painted thing: class index, boolean visible mask (H, W), and whether it is a crowd."""

    label: int
    mask: np.ndarray
    crowd: bool = False
    painted: int = 0  # pixels before anything covered them


@dataclass
class Scene:
    """An image (H, W, 3) BGR uint8, its shapes from back to front, its clutter (H, W) bool."""

    image: np.ndarray
    clutter: np.ndarray
    shapes: list[Shape] = field(default_factory=list)


# ---------------------------------------------------------------------------------- painting


def outline(label: int, side: float, angle: float, stretch: float) -> np.ndarray:
    """Corner points (N, 2) of a class's shape about the origin, `side` its extent in pixels."""
    name, r = CLASSES[label], side / 2
    if name == 'disc':
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(t), np.sin(t)], 1)
    elif name == 'square':
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.86
    elif name == 'triangle':
        t = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
        points = np.stack([np.cos(t), np.sin(t)], 1) * 1.15
    elif name == 'star':
        t = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.55, 1.15)
        points = np.stack([np.cos(t), np.sin(t)], 1) * radius[:, None]
    else:  # cross
        a = 0.38
        arm = [(a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1)]
        points = np.array(arm + [(-x, -y) for x, y in arm]) * 1.05
    points = points * [1, stretch]
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return points @ turn.T * r


def fill(points: np.ndarray) -> np.ndarray:
    """Boolean mask (H, W) of a polygon given by (N, 2) points (x, y), cut at the image's edge."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def noise(rng: RandomState, cell: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Smooth noise of `size` (H, W) in [-1, 1] with features of about `cell` pixels."""
    coarse = rng.uniform(-1, 1, (size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV (hue of 180, the rest of 255) to BGR float32."""
    hsv = np.uint8([[[int(hue) % 180, np.clip(saturation, 0, 255), np.clip(value, 0, 255)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def ground(rng: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A textured ground (H, W, 3) float32 with clutter, and the clutter's mask (H, W)."""
    texture = sum(a * noise(rng, cell) for a, cell in ((22, 64), (14, 16), (9, 4)))
    tint = noise(rng, 48)[..., None] * rng.uniform(-14, 14, 3).astype(np.float32)
    image = colour(rng.randint(180), rng.randint(10, 70), rng.randint(70, 200)) + tint
    image = image + texture[..., None]
    clutter = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.randint(2, 7)):  # bent lines in any colour: none of the classes
        xy = rng.uniform((0, 0), (WIDTH, HEIGHT)) + np.cumsum(rng.uniform(-28, 28, (6, 2)), 0)
        line = np.zeros_like(clutter)
        cv2.polylines(line, [xy.astype(np.int32)], False, 1, int(rng.randint(1, 4)))
        image[line > 0] = colour(rng.randint(180), rng.randint(40, 255), rng.randint(60, 255))
        clutter |= line
    return image, clutter.astype(bool)


def paint(image: np.ndarray, mask: np.ndarray, label: int, rng: RandomState) -> None:
    """Paint a mask in a colour its class leans to, with a pattern any class may have."""
    base = colour(
        HUES[label] + rng.normal(0, HUE_SPREAD), rng.randint(120, 255), rng.randint(110, 250)
    )
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = np.s_[top : top + height, left : left + width]
    y, x = np.mgrid[window].astype(np.float32)
    kind, period, angle = rng.randint(3), rng.uniform(4, 12), rng.uniform(0, np.pi)
    if kind == 0:  # shaded from one side to the other
        pattern = (x * np.cos(angle) + y * np.sin(angle)) / WIDTH
    elif kind == 1:  # stripes
        pattern = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period))
    else:  # dots
        pattern = np.sin(x * (2 * np.pi / period)) * np.sin(y * (2 * np.pi / period))
    pattern = rng.uniform(8, 30) * pattern + 6 * noise(rng, 3, (height, width))
    image[window][mask[window]] = (base + pattern[..., None])[mask[window]]


# ------------------------------------------------------------------------------------ scenes


def place(rng: RandomState, size: str) -> tuple[int, np.ndarray]:
    """A random shape of a size: its class index and painted mask (H, W)."""
    label, side = rng.randint(len(CLASSES)), rng.uniform(*SIDES[size])
    margin = 0.35 * side  # up to about a third of an object may leave the image
    centre = rng.uniform((margin, margin), (WIDTH - margin, HEIGHT - margin))
    stretch = rng.uniform(0.8, 1.25)
    points = outline(label, side, rng.uniform(0, 2 * np.pi), stretch) + centre
    return label, fill(points)


def crowd(rng: RandomState, image: np.ndarray) -> Shape:
    """A heap of small shapes of one class, painted; one region, its shapes are not counted."""
    label, region = rng.randint(len(CLASSES)), np.zeros((HEIGHT, WIDTH), bool)
    centre = rng.uniform((40, 40), (WIDTH - 40, HEIGHT - 40))
    for _ in range(rng.randint(12, 24)):
        offset = centre + rng.normal(0, 1, 2) * (26, 16)
        points = outline(label, rng.uniform(12, 20), rng.uniform(0, 2 * np.pi), 1.0) + offset
        mask = fill(points)
        if mask.any():
            paint(image, mask, label, rng)
            region |= mask
    return Shape(label, region, crowd=True, painted=int(region.sum()))


def scene(split: str, index: int) -> Scene:
    """Scene `index` of a split: the same for the same arguments, whatever was made before."""
    rng = RandomState([FORMAT, list(SPLITS).index(split), index])
    image, clutter = ground(rng)
    result = Scene(image, clutter)
    shapes = result.shapes
    if rng.uniform() < 0.12:
        shapes.append(crowd(rng, image))
    wanted = rng.randint(2, 6)
    sizes = rng.choice(list(SIZE_ODDS), wanted, p=list(SIZE_ODDS.values()))
    # Large ones lie at the back, as the eye expects; otherwise they would bury the rest.
    for size in sorted(sizes, key=list(SIDES).index, reverse=True):
        for _ in range(20):
            label, mask = place(rng, size)
            left = [shape.mask & ~mask for shape in shapes]
            if mask.sum() >= 40 and all(
                m.sum() >= max(40, MIN_VISIBLE * s.painted)
                for m, s in zip(left, shapes, strict=True)
            ):
                for shape, rest in zip(shapes, left, strict=True):
                    shape.mask = rest
                shapes.append(Shape(label, mask, painted=int(mask.sum())))
                paint(image, mask, label, rng)
                break
    for shape in shapes:
        clutter &= ~shape.mask
    image += rng.randint(-7, 8, image.shape, dtype=np.int8)
    result.image = cv2.GaussianBlur(np.clip(image, 0, 255).astype(np.uint8), (3, 3), 0.6)
    return result


# ------------------------------------------------------------------------- masks to polygons


def polygons(mask: np.ndarray, left: int = 0) -> list[list[int]]:
    """COCO polygons [x1, y1, x2, y2, ...] along the pixels' edges: exactly the mask's pixels.

    COCO's polygons have no holes, so a part with a hole is cut in two through the hole.
    `left` is the column of the image at which `mask` begins.
    """
    # At twice the size, every corner of a pixel has a pixel of its own: the contour through
    # pixel centres there is the contour along pixel edges here.
    double = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
        if parent >= 0:
            x, _, width, _ = cv2.boundingRect(contour)
            cut = (x + width // 2) // 2
            return polygons(mask[:, :cut], left) + polygons(mask[:, cut:], left + cut)
    rings = []
    for contour in contours:
        ring = (contour[:, 0] + 1) // 2 + [left, 0]
        keep = (ring != np.roll(ring, 1, 0)).any(1)
        rings.append(ring[keep].reshape(-1).tolist())
    return rings


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE, as its crowds have it: runs down the columns, zeros first."""
    flat = mask.reshape(-1, order='F').astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return dict(counts=counts.tolist(), size=list(mask.shape))


def annotation(shape: Shape, image_id: int, number: int) -> dict:
    """COCO's entry of one shape: area and box are those of its visible pixels."""
    rows, columns = np.flatnonzero(shape.mask.any(1)), np.flatnonzero(shape.mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return dict(
        id=number,
        image_id=image_id,
        category_id=shape.label + 1,
        segmentation=run_lengths(shape.mask) if shape.crowd else polygons(shape.mask),
        area=int(shape.mask.sum()),
        bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        iscrowd=int(shape.crowd),
    )


# ----------------------------------------------------------------------------------- writing


def write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f'{path}: the image could not be written')


def write_coco(root: Path, counts: dict[str, int]) -> Iterator[str]:
    """Write `annotations/instances_{split}2017.json` and `{split}2017/`; yields file names."""
    (root / 'annotations').mkdir(parents=True)
    for split, count in counts.items():
        folder = root / f'{split}2017'
        folder.mkdir()
        images, annotations = [], []
        for index in range(count):
            drawn, name = scene(split, index), f'{index + 1:012d}.jpg'
            write_image(folder / name, drawn.image)
            images.append(dict(id=index + 1, file_name=name, height=HEIGHT, width=WIDTH, license=1))
            for shape in drawn.shapes:
                annotations.append(annotation(shape, index + 1, len(annotations) + 1))
            yield name
        content = dict(
            info=dict(description='Painted shapes', version=str(FORMAT), year=2024),
            licenses=[dict(id=1, name='CC0 1.0', url='')],
            categories=[
                dict(id=i + 1, name=name, supercategory='shape') for i, name in enumerate(CLASSES)
            ],
            images=images,
            annotations=annotations,
        )
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content, separators=(',', ':')))


def semantic_mask(drawn: Scene) -> np.ndarray:
    """ADE20K's labels (H, W) uint8: 0 other, 1 the ground, then `CLASSES`."""
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    labels[drawn.clutter] = 0
    for shape in drawn.shapes:
        labels[shape.mask] = shape.label + 2
    return labels


def write_ade(root: Path, counts: dict[str, int]) -> Iterator[str]:
    """Write `{images,annotations}/{training,validation}/`; yields file names."""
    for split, folder in (('train', 'training'), ('val', 'validation')):
        for kind in ('images', 'annotations'):
            (root / kind / folder).mkdir(parents=True)
        for index in range(counts[split]):
            drawn, name = scene(split, index), f'ADE_{split}_{index + 1:08d}'
            write_image(root / 'images' / folder / f'{name}.jpg', drawn.image)
            cv2.imwrite(str(root / 'annotations' / folder / f'{name}.png'), semantic_mask(drawn))
            yield name


def make_dataset(root: str | Path, ade: bool = False, counts: dict[str, int] | None = None) -> bool:
    """Make the dataset at `root` unless it is there already; True when it was made.

    It is written beside `root` and moved there whole; a folder that is not one of ours is never
    replaced (FileExistsError).
    """
    root, counts = Path(root), counts or SPLITS
    content = dict(dataset='shapes', version=FORMAT, format='ade' if ade else 'coco', **counts)
    stamp = root / 'shapes.json'
    if stamp.is_file() and json.loads(stamp.read_text()) == content:
        return False
    if root.exists() and not stamp.is_file():
        raise FileExistsError(f'{root} exists and is no shapes dataset; name another folder')
    fresh = root.with_name(f'{root.name}.{os.getpid()}')
    try:
        total = sum(counts.values())
        for done, _ in enumerate((write_ade if ade else write_coco)(fresh, counts), 1):
            if done % 200 == 0 or done == total:
                print(f'  {done} of {total} scenes', flush=True)
        (fresh / stamp.name).write_text(json.dumps(content))
        if root.exists():
            shutil.rmtree(root)
        os.replace(fresh, root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description='Make the built-in dataset of painted shapes.')
    parser.add_argument('root', help='folder to make')
    parser.add_argument('--ade', action='store_true', help="ADE20K's format instead of COCO's")
    for split, count in SPLITS.items():
        parser.add_argument(f'--{split}', type=int, default=count, help=f'scenes, {count}')
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in SPLITS}
    if min(counts.values()) < 1:
        parser.error('--train and --val must be at least 1')
    try:
        made = make_dataset(args.root, args.ade, counts)
    except OSError as error:
        raise SystemExit(f'shapes_dataset.py: {error}') from None
    print(f'{args.root}: {"made" if made else "already there"}')


if __name__ == '__main__':
    main()
