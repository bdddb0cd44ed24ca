"""What mmengine lacks to train and test RMT. The configs import it, ``import backbone`` never does.

Importing it registers the runner, the hooks and the optimizer wrapper that the configs name, puts
the safe reader of weights behind mmengine's loaders, lets everybody's scripts honour the keys, and
helps ``import torchvision`` where that fails.
"""

from . import entry as entry
from . import loading as loading
from . import torchvision_import as torchvision_import
from .amp import amp_where_available
from .averaging import BatchEMAHook
from .checkpoints import FamilyHook, WholeCheckpointHook
from .explain import ConfigError
from .keys import apply_keys
from .log import MainProcessLoggerHook
from .runner import PortableRunner, RMTRunner
from .seeding import SeedByIterationHook
from .watch import ShortRunHook, StopAtInvalidLossHook

__all__ = [
    'BatchEMAHook',
    'ConfigError',
    'FamilyHook',
    'MainProcessLoggerHook',
    'PortableRunner',
    'RMTRunner',
    'SeedByIterationHook',
    'ShortRunHook',
    'StopAtInvalidLossHook',
    'WholeCheckpointHook',
    'amp_where_available',
    'apply_keys',
]
