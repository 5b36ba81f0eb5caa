"""Learnable Fourier features of points, as an encoder of coordinates."""

import dataclasses
from typing import Annotated

from flax import nnx

from posenc_jax.features.coordinates.encoder import CoordinateEncoder, Wide
from posenc_jax.language.spec import CONTEXT
from posenc_jax.methods.learnable_fourier import (
    LearnableFourier,
    learnable_fourier_features,
    learnable_fourier_network,
    learnable_fourier_start,
)
from posenc_jax.protocol.bounds import Divides, Ge
from posenc_jax.protocol.registry import Promises, register


@register(
    'learnable_fourier',
    kind='coordinates',
    card=dataclasses.replace(
        LearnableFourier.card,
        equation='GELU(r W1^T + b1) W2^T + b2, r = [cos(p W_r^T) | sin(p W_r^T)] / sqrt(F)',
        example='learnable_fourier(components=2, width=16, features=32, gamma=1.0)',
        use_when=(
            'You train on coordinates and want learned waves as features of your own network.'
        ),
        promises=Promises(needs_training=True),
    ),
)
class LearnableFourierFeatures(CoordinateEncoder):
    """The trained function of a point that the encoding of the same name adds to token vectors,
    here as features, for example to be concatenated with others.

    `GELU(r W1^T + b1) W2^T + b2`, `r = [cos(p W_r^T) | sin(p W_r^T)] / sqrt(F)`; each of G groups
    of d / G coordinates gives 1 / G of the features by the same weights. Differs from the paper:
    see the encoding.

    Args:
      components: d, coordinates of a point.
      width: features of a point.
      groups: G, divides d and the width.
      features: F, waves: half of them cosines, half sines.
      hidden: units of the network.
      gamma: 1 / gamma is the standard deviation of the first W_r; 1 suits coordinates in [0, 1].

    Raises:
      ValueError: features that are odd or below 2, a gamma that is not positive.

    Reference: Li et al., arXiv 2106.02795.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('learnable_fourier(components=4, width=6, groups=2)')
      >>> encoder.encode(jnp.ones((5, 4))).shape
      (5, 6)
    """

    def __init__(
        self,
        components: Wide = 2,
        width: Wide = 768,
        groups: Annotated[int, Ge(1), Divides('components'), Divides('width')] = 1,
        features: int = 768,
        hidden: int = 32,
        gamma: float = 1.0,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.components, self.width, self.groups = components, width, groups
        first = learnable_fourier_start(
            rngs, components // groups, features, hidden, width // groups, gamma
        )
        self.w_r = nnx.Param(first['w_r'], axes=(None, None))
        self.w1 = nnx.Param(first['w1'], axes=(None, None))
        self.b1 = nnx.Param(first['b1'], axes=(None,))
        self.w2 = nnx.Param(first['w2'], axes=(None, None))
        self.b2 = nnx.Param(first['b2'], axes=(None,))

    def encode(self, coords):
        coords = self.check(coords)
        of_each = self.components // self.groups
        groups = coords.reshape(*coords.shape[:-1], self.groups, of_each)
        out = learnable_fourier_network(
            learnable_fourier_features(groups, self.w_r[...]),
            self.w1[...],
            self.b1[...],
            self.w2[...],
            self.b2[...],
        )
        return out.reshape(*coords.shape[:-1], self.width)
