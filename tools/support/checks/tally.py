"""How much of a data set is used, in one line."""

from collections import Counter
from dataclasses import dataclass, field

from support.checks.rows import CROWD, OTHER_CLASS


@dataclass
class Tally:
    """What a data set has, and which of its objects train nothing, by reason."""

    images: int
    objects: int = 0
    dropped: Counter = field(default_factory=Counter)
    idle: int = 0
    """images without an object that trains"""

    @property
    def usable(self) -> int:
        return self.objects - self.dropped.total()

    @property
    def evaluated(self) -> int:
        """The objects that count in an evaluation: size does not matter there."""
        return self.objects - self.dropped[CROWD] - self.dropped[OTHER_CLASS]

    def reasons(self) -> str:
        """``'3 narrower than 1 pixel, 12 crowds'``, empty where nothing is dropped."""
        return ', '.join(f'{number} {reason}' for reason, number in self.dropped.most_common())

    def describe(self, trains: bool) -> str:
        """The line for a data set to train on, or to evaluate."""
        text = f'{self.images} images, {self.objects} objects'
        if not trains:
            others = self.objects - self.evaluated
            return text + (f' ({others} of them crowds or of other classes)' if others else '')
        if self.dropped:
            text += f', of which train nothing: {self.reasons()}'
        return text + (f'; {self.idle} images without an object to train' if self.idle else '')
