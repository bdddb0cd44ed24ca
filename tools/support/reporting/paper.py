"""The published tables as objects; their numbers stand in docs/paper.yml."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from support.paths import ROOT


@dataclass(frozen=True)
class Family:
    """A kind of backbone, and the paper that describes it.

    Attributes:
        name: of its class, as configs have it: 'RMT'.
        title: the paper's.
        url: where the paper is.
        source: where its results are published, in words.
    """

    name: str
    title: str
    url: str
    source: str


@dataclass(frozen=True)
class Table:
    """Configs of one recipe, in several families and sizes.

    Attributes:
        name: key in docs/paper.yml.
        metrics: what is evaluated, by the evaluators' names; the first is the headline.
        ours: whether nobody has published results of this recipe with these backbones.
    """

    name: str
    title: str
    schedule: str
    dataset: str
    folder: str
    metrics: tuple[str, ...]
    ours: bool = False


@dataclass(frozen=True)
class Row:
    """One config, and what is published of it.

    Attributes:
        variant: 'T', 'S', 'B' or 'L'.
        config: path from the project's root.
        shape: input height and width behind the multiply-adds.
        params: in millions; None, as ``flops``, where nothing is published.
        flops: multiply-adds of convolutions and linear layers in billions.
        paper: the published metrics in percent; empty where there are none.
        note: what else is to be said of the row's numbers.
    """

    table: Table
    family: Family
    variant: str
    config: str
    shape: tuple[int, int]
    params: float | None
    flops: float | None
    paper: dict[str, float]
    note: str

    @property
    def name(self) -> str:
        return Path(self.config).stem

    @property
    def model(self) -> str:
        """'RMT-T'"""
        return f'{self.family.name}-{self.variant}'


def read_paper() -> tuple[list[Row], dict[str, dict[str, dict[str, list[float | None]]]]]:
    """All rows, table by table, and the peers as {table: {model: {size: [params, flops, ...]}}}."""
    content, rows = _content(), []
    families = {name: Family(name, **fields) for name, fields in content['families'].items()}
    for name, fields in content['tables'].items():
        pattern, shape, by_family = fields.pop('config'), fields.pop('shape'), fields.pop('rows')
        table = Table(name, **{**fields, 'metrics': tuple(fields['metrics'])})
        for family, variants in by_family.items():
            for letter, numbers in variants.items():
                numbers = numbers or {}
                stem = pattern.format(f'{family.lower()}_{letter}')
                rows.append(
                    Row(
                        table=table,
                        family=families[family],
                        variant=letter.upper(),
                        config=f'{table.folder}/{stem}.py',
                        shape=tuple(numbers.get('shape', shape)),
                        params=numbers.get('params'),
                        flops=numbers.get('flops'),
                        paper=dict(zip(table.metrics, numbers.get('values', ()), strict=False)),
                        note=numbers.get('note', ''),
                    )
                )
    return rows, content['peers']


def read_zoo() -> dict[str, dict[str, float]]:
    """The first metric of models that have no row and are no peer, as {table: {model: metric}}."""
    return _content()['zoo']


def _content() -> dict:
    return yaml.safe_load((ROOT / 'docs' / 'paper.yml').read_text(encoding='utf-8'))
