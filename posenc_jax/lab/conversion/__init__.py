"""Conversions from a model to another model: FlexiViT, TULIP, Pos2Distill, DroPE."""

from posenc_jax.lab.conversion import drope, pi_resize, pos2distill, tulip

__all__ = ['drope', 'pi_resize', 'pos2distill', 'tulip']
__dir__ = __all__.copy
