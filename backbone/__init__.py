"""RMT for detection, segmentation and classification; importing this package registers it."""

from .classifier import ProjectionNeck
from .manhattan import ManhattanAttention
from .rmt import RMT, VARIANTS, Variant

__all__ = ['RMT', 'VARIANTS', 'ManhattanAttention', 'ProjectionNeck', 'Variant']
