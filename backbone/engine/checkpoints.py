"""Checkpoints that are whole or not there, whatever happens while they are written."""

import os
from contextlib import suppress

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..weights.checkpoint import CheckpointError
from ..weights.families import family_in


@register_backend('whole')
class WholeFileBackend(LocalBackend):
    """Writes a file beside its place (``NAME.part``), then puts it there whole.

    A part that a killed process left is overwritten when the run gets there again.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        path = os.fspath(filepath)
        part = f'{path}.part'
        try:
            with suppress(FileExistsError):  # by a file: opening says so better
                os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
            with open(part, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())  # some file systems find out here that they are full
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(part)
            raise CheckpointError(
                f'{path}: not written: {error.strerror}; the checkpoints before it are whole: '
                'put that right, then go on with --resume'
            ) from error


class _PatientBackend(WholeFileBackend):
    """Removes files when told to let go of them, unless another has taken their place by then."""

    def __init__(self) -> None:
        self._outdated: list[tuple[str, int]] = []

    def remove(self, filepath: str | os.PathLike) -> None:
        self._outdated.append((os.fspath(filepath), os.stat(filepath).st_ino))

    def let_go(self) -> None:
        while self._outdated:
            path, inode = self._outdated.pop()
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    super().remove(path)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, in an order that never leaves less than there was.

    The new checkpoint is written beside its place and renamed, then ``last_checkpoint`` names it,
    then what ``max_keep_ckpts`` or a better one has made superfluous goes. mmengine removes first
    and writes in place: a full disk or a kill then leaves a torn file, and may leave no other.
    Checkpoints in a remote store (``out_dir``) are left to its own backend.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend='whole')
            self.file_backend = _PatientBackend()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        superfluous = self._keep(step, runner)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            pointer = os.path.join(runner.work_dir, 'last_checkpoint')
            WholeFileBackend().put(self.last_ckpt.encode(), pointer)
            if superfluous and self.file_backend.isfile(superfluous):
                self.file_backend.remove(superfluous)
            self._let_go()

    def _keep(self, step: int, runner: Runner) -> str | None:
        """Note that the checkpoint of ``step`` is kept; the path of one that then is not."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return None
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        oldest = self.keep_ckpt_ids.popleft() if full else None
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        if oldest is None:
            return None
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(oldest))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._let_go()

    def _let_go(self) -> None:
        if isinstance(self.file_backend, _PatientBackend):
            self.file_backend.let_go()


@HOOKS.register_module()
class FamilyHook(Hook):
    """Writes the family of the backbone into every checkpoint, whichever hook saves it.

    RAVLT and MAViT have the same names and shapes: nothing else in a file tells them apart.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if name := family_in(runner.model).name:
            checkpoint['meta']['rmt'] = {'family': name}
