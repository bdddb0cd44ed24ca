"""RMT for detection and segmentation. Importing this package registers ``RMT`` with mmengine."""

from .manhattan import ManhattanAttention
from .rmt import RMT, VARIANTS, Variant

__all__ = ['RMT', 'VARIANTS', 'ManhattanAttention', 'Variant']
