<<<<<<< HEAD
"""Conversions from a model to another model: TULIP, Pos2Distill, DroPE."""

from posenc_jax.lab.conversion import drope, pos2distill, tulip

__all__ = ['drope', 'pos2distill', 'tulip']
=======
"""Conversions from a model to another model: FlexiViT, TULIP, Pos2Distill."""

from posenc_jax.lab.conversion import pi_resize, pos2distill, tulip

__all__ = ['pi_resize', 'pos2distill', 'tulip']
>>>>>>> f-images
__dir__ = __all__.copy
