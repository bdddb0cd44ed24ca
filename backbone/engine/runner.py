"""What mmengine lacks to run one config everywhere: on GPUs or without, in one process or more."""

import copy

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from .amp import on_cpu
from .keys import apply_keys


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


@RUNNERS.register_module()
class RMTRunner(PortableRunner):
    """The portable runner, and the keys of :mod:`backbone.engine.keys`."""

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'RMTRunner':
        """Build from ``cfg``, which itself stays as it is."""
        return super().from_cfg(apply_keys(copy.deepcopy(cfg)))

    def train(self) -> nn.Module:
        """Say so where the backbone starts from noise, then train."""
        pretrained = self.cfg.model.backbone.get('init_cfg')
        if not (pretrained or self._load_from or self._resume):
            self.logger.warning(
                'The backbone starts from scratch (random weights). For ImageNet weights, as in '
                'the published recipe, give --cfg-options pretrained=FILE.'
            )
        return super().train()
