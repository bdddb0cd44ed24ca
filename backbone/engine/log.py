"""The log: metrics written once, and a line of progress where iterations take long."""

import time
from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .amp import on_cpu


@HOOKS.register_module()
class MainProcessLoggerHook(LoggerHook):
    """mmengine's logger hook, with two differences.

    - One process alone writes the metrics of a test. There every process writes the same file at
      the same time; the last bytes of a longer text then stay behind a shorter one (their timings
      differ), which is no JSON.
    - On a CPU, where ``interval`` iterations may take minutes, a line is also written by the first
      iteration that ends ``seconds`` after the last line. 0: never.
    """

    def __init__(self, *args: Any, seconds: float = 10, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds = seconds if on_cpu() else 0
        self._last_line = time.monotonic()

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        self._last_line = time.monotonic()

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._log(super().after_train_iter, runner, batch_idx, *args, **kwargs)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._log(super().after_val_iter, runner, batch_idx, *args, **kwargs)

    def after_test_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._log(super().after_test_iter, runner, batch_idx, *args, **kwargs)

    def _log(
        self, log: Callable[..., None], runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        """Call ``log``, with an interval of one iteration where a line is overdue."""
        interval = self.interval
        if self.seconds and time.monotonic() - self._last_line >= self.seconds:
            self.interval = 1
        if self.every_n_inner_iters(batch_idx, self.interval):
            self._last_line = time.monotonic()
        try:
            log(runner, batch_idx, *args, **kwargs)
        finally:
            self.interval = interval

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if is_main_process():
            super().after_test_epoch(runner, metrics)
