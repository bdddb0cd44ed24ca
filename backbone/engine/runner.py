"""What mmengine lacks to run one config everywhere: on GPUs or without, in one process or more."""

import atexit
import copy

import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from . import torchvision_import
from .amp import on_cpu
from .explain import (
    check_channels,
    check_checkpoint_hook,
    check_optimizer,
    check_parts,
    explained,
)
from .keys import apply_keys, lacks_weights
from .quiet import parameters_in_one_line
from .resume import Plan, checkpoint_beside, count_epochs_anew


class PortableRunner(Runner):
    """mmengine's runner; also runs several processes without a GPU, and logs the learning rate.

    Without a GPU the processes talk through gloo, and SyncBN, which needs CUDA, becomes BN: each
    process then normalises over its own images. A mistake in the config is a
    :class:`~backbone.engine.explain.ConfigError`, before anything is computed.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """Join the process group by gloo where there is no GPU; mmengine would ask for CUDA."""
        if self._launcher == 'pytorch' and on_cpu() and not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def _log_env(self, env_cfg: dict) -> None:
        """Log as mmengine does, which imports torchvision; say so where that had to be helped."""
        super()._log_env(env_cfg)
        if torchvision_import.was_necessary():
            self.logger.info(torchvision_import.LINE)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with explained(self.cfg, 'model'):
            built = super().build_model(model)
            check_channels(built, self.cfg)
        return built

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

    def register_hooks(
        self, default_hooks: dict | None = None, custom_hooks: list | None = None
    ) -> None:
        with explained(self.cfg, 'default_hooks, custom_hooks'):
            super().register_hooks(default_hooks, custom_hooks)
            check_checkpoint_hook(self.hooks, self.save_checkpoint, self.cfg)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build as mmengine does; what it logs a parameter stays in the log at level DEBUG."""
        optimizer = optim_wrapper.get('optimizer') if isinstance(optim_wrapper, dict) else None
        usual = optimizer if isinstance(optimizer, dict) else {}
        with explained(self.cfg, 'optim_wrapper'), parameters_in_one_line(self.logger, usual):
            built = super().build_optim_wrapper(optim_wrapper)
            check_optimizer(built, self.cfg)
        return built

    def build_param_scheduler(self, scheduler: dict | list) -> list | dict:
        with explained(self.cfg, 'param_scheduler'):
            return super().build_param_scheduler(scheduler)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        with explained(self.cfg):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        with explained(self.cfg):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        with explained(self.cfg):
            return super().build_test_loop(loop)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate with the batch as mmengine does, and log from what to what."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        several = isinstance(optim_wrapper, OptimWrapperDict)
        wrappers = list(optim_wrapper.values()) if several else [optim_wrapper]
        before = [wrapper.optimizer.param_groups[0]['lr'] for wrapper in wrappers]
        super().scale_lr(optim_wrapper, auto_scale_lr)
        for wrapper, rate in zip(wrappers, before, strict=True):
            base = wrapper.optimizer.defaults['lr']
            ratio = wrapper.optimizer.param_groups[0]['lr'] / rate
            if wrapper.base_param_settings is not None:
                # a group without parameters that shows in the log as base_lr; mmengine forgets it
                wrapper.base_param_settings['lr'] *= ratio
            base_batch = auto_scale_lr['base_batch_size']
            self.logger.info(
                f'Learning rate: {base:g} at {base_batch} images a step -> {base * ratio:g} at '
                f'{base_batch * ratio:g}.'
            )

    def train(self) -> nn.Module:
        check_parts(self.model.module if is_model_wrapper(self.model) else self.model, self.cfg)
        model = super().train()
        leave_group_at_exit()
        return model

    def val(self) -> dict:
        metrics = super().val()
        leave_group_at_exit()
        return metrics

    def test(self) -> dict:
        metrics = super().test()
        leave_group_at_exit()
        return metrics

    def load_or_resume(self) -> None:
        """Load or resume; a work directory that was moved is no obstacle."""
        if self._resume and self._load_from is None and not self._has_loaded:
            self._load_from = checkpoint_beside(self.work_dir, self.logger)
        super().load_or_resume()

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume as mmengine does, at the rate that the config says for this batch."""
        plan = Plan(self.optim_wrapper, self.param_schedulers)
        super().resume(filename, *args, **kwargs)
        count_epochs_anew(self)
        plan.take_effect(self.logger)


def leave_group_at_exit() -> None:
    """Let this process leave its group before the interpreter ends.

    The group's threads may otherwise abort a process whose work is done (SIGABRT, "terminate called
    without an active exception"). Called when a loop has come to its end: after an error, leaving
    would wait for processes that may never answer.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


OWN_HOOKS = (
    'StrictLoadHook',
    'FamilyHook',
    'SeedByIterationHook',
    'ShortRunHook',
    'StopAtInvalidLossHook',
)
"""Weights load completely or are refused, and what is saved says what it is; a resumed run goes on
as if it had not stopped; a run that is too short to learn warns, one that computes NaN ends."""


@RUNNERS.register_module()
class RMTRunner(PortableRunner):
    """The portable runner, the keys of :mod:`backbone.engine.keys`, and hooks of its own.

    A config's ``custom_hooks`` come beside :data:`OWN_HOOKS`; one of these that stands there, with
    other arguments, counts as it stands.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'RMTRunner':
        """Build from ``cfg``, which itself stays as it is."""
        return super().from_cfg(apply_keys(copy.deepcopy(cfg)))

    def register_hooks(
        self, default_hooks: dict | None = None, custom_hooks: list | None = None
    ) -> None:
        given = list(custom_hooks or [])
        kinds = [hook.get('type') if isinstance(hook, dict) else type(hook) for hook in given]
        named = {getattr(kind, '__name__', str(kind)).split('.')[-1] for kind in kinds}
        ours = [dict(type=name) for name in OWN_HOOKS if name not in named]
        super().register_hooks(default_hooks, ours + given)

    def train(self) -> nn.Module:
        """Say so where a backbone starts from noise, then train."""
        if lacks_weights(self.model) and not (self._load_from or self._resume):
            begins = 'The backbone starts from scratch (random weights).'
            if self.cfg.get('default_scope') == 'mmpretrain':  # which is what makes such weights
                self.logger.info(begins)
            else:
                self.logger.warning(
                    f'{begins} For ImageNet weights, as in the published recipe, give '
                    '--cfg-options pretrained=FILE.'
                )
        return super().train()
