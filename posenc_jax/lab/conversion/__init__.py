"""Conversions from a model to another model: TULIP, Pos2Distill, DroPE."""

from posenc_jax.lab.conversion import drope, pos2distill, tulip

__all__ = ['drope', 'pos2distill', 'tulip']
__dir__ = __all__.copy
