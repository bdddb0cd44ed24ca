"""What mmengine lacks to run one config everywhere: on GPUs or without, in one process or more."""

import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn


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


@HOOKS.register_module()
class MainProcessLoggerHook(LoggerHook):
    """mmengine's logger hook, but one process alone writes the metrics of a test.

    There every process writes the same file at the same time; the last bytes of a longer text then
    stay behind a shorter one (their timings differ), which is no JSON.
    """

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if is_main_process():
            super().after_test_epoch(runner, metrics)


class PortableRunner(Runner):
    """mmengine's runner; also runs several processes without a GPU, and logs the learning rate.

    Without a GPU the processes talk through gloo, and SyncBN, which needs CUDA, becomes BN: each
    process then normalises over its own images.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """Join the process group by gloo where there is no GPU; mmengine would ask for CUDA."""
        if self._launcher == 'pytorch' and on_cpu() and not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """DDP on the CPU takes no ``device_ids``, and SyncBN does not run there."""
        if not (self.distributed and on_cpu()):
            return super().wrap_model(model_wrapper_cfg, model)
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            self.logger.info('No GPU: SyncBN becomes BN, over the images of each process alone.')
            model = revert_sync_batchnorm(model)
        return MMDistributedDataParallel(
            module=model,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate with the batch as mmengine does, and log from what to what."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        base = optim_wrapper.optimizer.defaults['lr']
        group = optim_wrapper.optimizer.param_groups[0]
        before = group['lr']
        super().scale_lr(optim_wrapper, auto_scale_lr)
        ratio = group['lr'] / before
        if optim_wrapper.base_param_settings is not None:
            # a group without parameters that shows in the log as base_lr; mmengine forgets it
            optim_wrapper.base_param_settings['lr'] *= ratio
        base_batch = auto_scale_lr['base_batch_size']
        self.logger.info(
            f'Learning rate: {base:g} at {base_batch} images a step -> {base * ratio:g} at '
            f'{base_batch * ratio:g}.'
        )
