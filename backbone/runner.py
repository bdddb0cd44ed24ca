"""Keeps configs that the first release dumped working: they import ``backbone.runner``."""

from . import engine as engine
