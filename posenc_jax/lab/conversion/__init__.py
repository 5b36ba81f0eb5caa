"""Conversions from a model to another model: FlexiViT, TULIP, Pos2Distill."""

from posenc_jax.lab.conversion import pi_resize, pos2distill, tulip

__all__ = ['pi_resize', 'pos2distill', 'tulip']
__dir__ = __all__.copy
