"""torchvision beside a torch that its compiled operators do not fit, where its import fails.

mmpretrain imports torchvision, for its transforms alone, which are Python. A registry may have it
only as compiled for CUDA: beside a CPU build of torch its library does not load, and its import
ends where it first describes an operator (``operator torchvision::nms does not exist``). Here these
operators are declared, without any code behind them, and the import is done again. Whoever calls
one is told by torch that it has no implementation.

mmdet imports mmpretrain where it is there, so scripts of others would end there too, before they
read a config. Therefore `make setup` runs this file where torchvision does not import: that makes
the environment's Python import it at its start. Else importing ``backbone.engine`` does.

Importing this module imports nothing: it looks at ``import torchvision`` when that comes.
"""

import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

LINE = (
    'The compiled operators of torchvision do not fit this torch: they are declared without code, '
    'so that it imports. Its transforms work; mmcv has the operators.'
)
"""What a run's log says where it was necessary."""

_OPERATORS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, '
    'SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor',
)

_START = (
    'import importlib.util as u; s = u.spec_from_file_location("torchvision_import", {path!r}); '
    'm = u.module_from_spec(s); s.loader.exec_module(m)\n'
)
"""A line of a ``.pth`` file, which Python runs when it starts."""


def was_necessary() -> bool:
    """Whether the import of torchvision failed in this process, and was done again."""
    return hasattr(sys.modules.get('torchvision'), '_declared_without_code')


def at_every_start(site_packages: Path) -> None:
    """Let the Python of ``site_packages`` do this in every process, whatever that imports first."""
    line = _START.format(path=str(Path(__file__).resolve()))
    (site_packages / 'rmt_torchvision_import.pth').write_text(line)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if 'operator torchvision::' not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith('torchvision.')]:
                del sys.modules[name]
            module._declared_without_code = _declare()  # they are gone when the library is
            super().exec_module(module)


def _declare() -> object:
    import torch  # not above: every start of Python would take it along

    library = torch.library.Library('torchvision', 'DEF')
    for operator in _OPERATORS:
        library.define(operator)
    return library


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == 'torchvision' else None
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())

if __name__ == '__main__':
    at_every_start(Path(sysconfig.get_path('purelib')))
