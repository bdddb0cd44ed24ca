"""The average of the weights over a training, whatever the images of a step."""

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class BatchEMAHook(EMAHook):
    """mmengine's exponential moving average, over as many images with any batch.

    A decay of d a step of B images is one of d^(b / B) a step of b images. Checkpoints have the
    average as their ``state_dict`` and the weights as trained in ``ema_state_dict``; evaluations
    are of the average.

    Args:
        momentum: 1 - d.
        base_batch_size: B.
        kwargs: what mmengine's hook takes.
    """

    def __init__(self, momentum: float, base_batch_size: int, **kwargs: Any) -> None:
        super().__init__(momentum=momentum, **kwargs)
        self.momentum, self.base_batch_size = momentum, base_batch_size

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        images = runner.train_dataloader.batch_size * runner.world_size
        decay = (1 - self.momentum) ** (images / self.base_batch_size)
        self.ema_model.momentum = 1 - decay
        runner.logger.info(
            f'The weights are averaged with a decay of {decay:.7g} a step of {images} images.'
        )
