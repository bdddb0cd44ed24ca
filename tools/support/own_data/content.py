"""Other formats as the content of a COCO file."""

from collections.abc import Iterable
from dataclasses import dataclass, field

Polygon = list[tuple[float, float]]


@dataclass
class Object:
    """An object: the number of its class, its box, and its outline where there is one.

    The box is left, top, right, bottom in pixels.
    """

    label: int
    box: tuple[float, float, float, float]
    polygons: list[Polygon] = field(default_factory=list)

    @classmethod
    def of_polygons(cls, label: int, polygons: list[Polygon]) -> 'Object':
        xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
        return cls(label, (min(xs), min(ys), max(xs), max(ys)), polygons)

    def row(self) -> dict:
        left, top, right, bottom = self.box
        row = dict(
            category_id=self.label + 1,
            bbox=[left, top, right - left, bottom - top],
            area=(right - left) * (bottom - top),
            iscrowd=0,
        )
        if self.polygons:
            flat = [[c for point in polygon for c in point] for polygon in self.polygons]
            row['segmentation'] = flat
            row['area'] = sum(map(area, self.polygons))
        return row


@dataclass
class Picture:
    """An image and its objects; the name is below the folder of all images."""

    name: str
    width: int
    height: int
    objects: list[Object]


def area(polygon: Polygon) -> float:
    """In pixels, by the shoelace formula."""
    following = polygon[1:] + polygon[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(polygon, following, strict=True))) / 2


def content(classes: list[str], pictures: Iterable[Picture]) -> dict:
    """The three lists of a COCO file, numbered from 1."""
    images, rows = [], []
    for number, picture in enumerate(pictures, start=1):
        images.append(
            dict(id=number, file_name=picture.name, width=picture.width, height=picture.height)
        )
        for thing in picture.objects:
            rows.append({'id': len(rows) + 1, 'image_id': number, **thing.row()})
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]
    return dict(images=images, annotations=rows, categories=categories)
