"""Mixed precision where there is an accelerator."""

from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS


def on_cpu() -> bool:
    """Whether mmengine will put the model on the CPU for want of an accelerator."""
    return get_device() == 'cpu'


@OPTIM_WRAPPERS.register_module(name='AmpWhereAvailable')
def amp_where_available(
    *, dtype: str | None = None, loss_scale: float | str | dict = 'dynamic', **kwargs
) -> OptimWrapper:
    """Mixed precision as configured where there is an accelerator, float32 (and a line) where not.

    Takes what :class:`AmpOptimWrapper` takes. Without it a config with float16 stops on a CPU.
    """
    if not on_cpu():
        # an int would be refused: `loss_scale=512` on a command line is one
        scale = float(loss_scale) if isinstance(loss_scale, int) else loss_scale
        return AmpOptimWrapper(dtype=dtype, loss_scale=scale, **kwargs)
    print_log(f'No GPU: training in float32 instead of {dtype or "mixed precision"}.', 'current')
    return OptimWrapper(**kwargs)
