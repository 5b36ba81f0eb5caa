"""Conversions from a model to another model: TULIP, Pos2Distill."""

from posenc_jax.lab.conversion import pos2distill, tulip

__all__ = ['pos2distill', 'tulip']
__dir__ = __all__.copy
