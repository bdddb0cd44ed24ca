"""What mmengine lacks to train and test RMT. The configs import it, ``import backbone`` never does.

Importing it registers the runner, the hooks and the optimizer wrapper that the configs name, puts
the safe reader of weights behind mmengine's loaders, and lets everybody's scripts honour the keys.
"""

from . import entry as entry
from . import loading as loading
from .amp import amp_where_available
from .explain import ConfigError
from .hooks import MainProcessLoggerHook, SeedByIterationHook
from .keys import apply_keys
from .runner import PortableRunner, RMTRunner

__all__ = [
    'ConfigError',
    'MainProcessLoggerHook',
    'PortableRunner',
    'RMTRunner',
    'SeedByIterationHook',
    'amp_where_available',
    'apply_keys',
]
