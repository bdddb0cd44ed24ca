"""Weights files: bytes -> dict, safely; dict -> model, completely; model -> file, whole."""
