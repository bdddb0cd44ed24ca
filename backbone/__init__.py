"""RMT and its family for detection, segmentation and classification; importing registers them."""

from .classifier import ProjectionNeck
from .manhattan import ManhattanAttention
from .mavit import MAViT
from .ravlt import RAVLT
from .rmt import RMT, VARIANTS, Variant

__all__ = ['RAVLT', 'RMT', 'VARIANTS', 'MAViT', 'ManhattanAttention', 'ProjectionNeck', 'Variant']
