"""What an exported file says of itself, in the metadata that ONNX has for it: text by key."""

import json
from dataclasses import asdict, dataclass, fields

FORMAT = '1'
"""Of this metadata; in the file as ``rmt_format``."""

TASKS = ('detection', 'segmentation', 'features')


@dataclass(frozen=True)
class Metadata:
    """All but the format; in the file each field is JSON, a text as it is.

    Attributes:
        task: one of :data:`TASKS`.
        model: name of the config.
        classes: their names, by label.
        palette: a colour (R, G, B) a class.
        scale: what the test pipeline resizes a picture to: (longer, shorter) side at most with
            ``keep_ratio``, else (width, height). None where it resizes nothing.
        keep_ratio: whether the picture's proportions stay.
        interpolation: OpenCV's name of it, in small letters.
        mean: RGB of what the padding is filled with, the mean that the file subtracts.
        mask_threshold: least probability of a mask's pixel.
        provenance: whence the file is: config, checkpoint and its digest, versions, date.
    """

    task: str
    model: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    interpolation: str = 'bilinear'
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mask_threshold: float = 0.5
    provenance: dict | None = None

    def to_text(self) -> dict[str, str]:
        """As the file holds it."""
        values = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in asdict(self).items()
        }
        return {'rmt_format': FORMAT, **values}

    @classmethod
    def from_text(cls, text: dict[str, str]) -> 'Metadata':
        """The reverse.

        Raises:
            ValueError: none, or not of this format; the message says what is wrong.
        """
        if 'rmt_format' not in text:
            raise ValueError('has no metadata of ours')
        if text['rmt_format'] != FORMAT:
            raise ValueError(f'has metadata of format {text["rmt_format"]}, this reads {FORMAT}')
        values = {}
        for field in fields(cls):
            if field.name not in text:
                raise ValueError(f'its metadata lacks {field.name}')
            value = text[field.name]
            values[field.name] = value if field.type is str else _tuples(json.loads(value))
        if values['task'] not in TASKS:
            raise ValueError(f'its task is {values["task"]!r}, not one of {", ".join(TASKS)}')
        return cls(**values)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
