"""Another model made of a model: TULIP, Pos2Distill."""

from posenc_jax.conversion import pos2distill, tulip
