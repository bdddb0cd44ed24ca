"""The paper's tables as objects; their numbers stand in docs/paper.yml."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from support.paths import ROOT


@dataclass(frozen=True)
class Table:
    """A family of configs: one recipe with several variants.

    Attributes:
        name: key in docs/paper.yml.
        metrics: what is evaluated, by the evaluators' names; the first is the headline.
    """

    name: str
    title: str
    schedule: str
    dataset: str
    folder: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One config, and what the paper says of it.

    Attributes:
        variant: 'T', 'S', 'B' or 'L'.
        config: path from the project's root.
        shape: input height and width behind the multiply-adds.
        params: in millions; None, as ``flops``, where the paper has no such row.
        flops: multiply-adds of convolutions and linear layers in billions.
        paper: the paper's metrics in percent; empty where it has no such row.
    """

    table: Table
    variant: str
    config: str
    shape: tuple[int, int]
    params: float | None
    flops: float | None
    paper: dict[str, float]

    @property
    def name(self) -> str:
        return Path(self.config).stem


def read_paper() -> tuple[list[Row], dict[str, dict[str, dict[str, list[float | None]]]]]:
    """All rows, table by table, and the peers as {table: {model: {size: [params, flops, ...]}}}."""
    content, rows = _content(), []
    for name, fields in content['tables'].items():
        pattern, shape, variants = fields.pop('config'), fields.pop('shape'), fields.pop('rows')
        table = Table(name, **{**fields, 'metrics': tuple(fields['metrics'])})
        for letter, numbers in variants.items():
            numbers = numbers or {}
            rows.append(
                Row(
                    table=table,
                    variant=letter.upper(),
                    config=f'{table.folder}/{pattern.format(letter)}.py',
                    shape=tuple(numbers.get('shape', shape)),
                    params=numbers.get('params'),
                    flops=numbers.get('flops'),
                    paper=dict(zip(table.metrics, numbers.get('values', ()), strict=False)),
                )
            )
    return rows, content['peers']


def read_zoo() -> dict[str, dict[str, float]]:
    """The first metric of models that have no row and are no peer, as {table: {model: metric}}."""
    return _content()['zoo']


def _content() -> dict:
    return yaml.safe_load((ROOT / 'docs' / 'paper.yml').read_text(encoding='utf-8'))
