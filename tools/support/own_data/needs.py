"""Packages that this command alone needs."""

from importlib import import_module
from types import ModuleType

from support.cli import UserError


def labelformat(name: str) -> ModuleType:
    """A module of labelformat, which reads YOLO and Pascal VOC.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(f'labelformat.formats.{name}')
    except ModuleNotFoundError as error:
        raise UserError(
            f'{error.name} is not installed, and this format is read with labelformat: '
            'pip install labelformat, or this project with its extra [own-data]'
        ) from error
