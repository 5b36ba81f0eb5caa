"""Selective RoPE: rotary phases summed from increments that a short convolution makes."""

import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import heads_first
from posenc_jax.methods.carope import carope_last, carope_match
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Base, Divides, Ge, Gt, Lt, Size
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.encoding import Constant, drawn_uniform
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

Temperature = Literal['rope', 'rfa']
Gate = Literal['none', 'head', 'low_rank', 'channel']
TEMPERATURES = ('rope', 'rfa')
_TAPS = 4
_DIFFERENCE = (0.0, 0.0, -1.0, 1.0)  # a token's own row minus the one before
_EPS = 1e-6
BASE, THETA = 500000.0, 0.5


def selective_rope_temperatures(
    planes: int, kind: Temperature = 'rope', *, base: float = BASE, theta: float = THETA
) -> np.ndarray:
    """`tau_t`, radians per unit of a phase, float64: `base^(-t / planes)` of 'rope', or of 'rfa'
    `tan(w_t / 2) / tan(theta pi / 2)`, w_t evenly spaced in [0, theta pi].

    Raises:
      ValueError: no plane; a base below 1; an unknown kind.

    Example:
      >>> selective_rope_temperatures(4, 'rfa').round(4).tolist()
      [0.0, 0.2679, 0.5774, 1.0]
    """
    frequencies = rope_frequencies(2 * planes, base)
    if check_choice('temperature', kind, TEMPERATURES) == 'rope':
        return frequencies
    return np.tan(np.linspace(0.0, theta * np.pi, planes) / 2) / np.tan(theta * np.pi / 2)


def selective_rope_units(x: Float[Array, 'B rows D'], heads: int) -> Float[Array, 'B rows D']:
    """The layer input with the slice of every head divided by its length, float32."""
    slices = x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1)
    squares = jnp.sum(slices**2, axis=-1, keepdims=True)
    return (slices * jax.lax.rsqrt(squares + _EPS)).reshape(x.shape)


def selective_rope_maps(
    weights: Float[Array, 'N I F'], scale: Float[Array, 'N']
) -> Float[Array, 'N I F']:
    """A map of full rank for each head: columns of length 1, times a number.

    Example:
      >>> selective_rope_maps(jnp.array([[[3.0], [4.0]]]), jnp.array([5.0])).tolist()
      [[[3.0], [4.0]]]
    """
    lengths = jnp.linalg.norm(weights, axis=1, keepdims=True)
    return scale[:, None, None] * weights / jnp.maximum(lengths, 1e-12)


def selective_rope_increments(
    phi: Float[Array, 'B rows N F'], taps: Float[Array, 'taps N F'], tok: Tokens
) -> Float[Array, 'B L N F']:
    """Causal convolution of each channel over the tokens of one document.

    Args:
      phi: rows of the tokens and, in front of them, one fewer than there are taps; 0 at padding.
      taps: the last one is for the token itself.
      tok: tokens of the last L rows.
    """
    before = len(taps) - 1
    total = jnp.zeros((), jnp.float32)
    for tap in range(len(taps)):
        reach = tok.rank >= before - tap  # the row is of the same document
        rows = jnp.where(reach[..., None, None], phi[:, tap : tap + tok.length], 0.0)
        total = total + rows * taps[tap]
    return total


@register(
    'selective_rope',
    kind='encoding',
    card=Card(
        name='Selective RoPE',
        example='selective_rope(rank=8)',
        use_when='You train a linear or softmax model whose rotations follow the content.',
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class SelectiveRoPE(Carries):
    """Rotates queries and keys of each head by sums of increments that follow the tokens.

    `logit_ij = R(A_i) q_i . R(A_j) k_j / sqrt(H)`, `A_it = tau_t sum_{l<=i} phi_lt`, `phi =
    conv(W_b W_a unit(x))`, x the layer input. `unit` divides the slice of each head by its length,
    the convolution is causal, of width 4 and separate for each of the N H/2 channels, and `tau_t =
    base^(-2t/H)`. Increments may have either sign, and no position is read. Padding adds nothing,
    and the sum starts again in each document.

    Differs from the paper: nothing in the formulas. The sum between key and query is formed block
    by block, so a cache holds keys that are not turned and the N H/2 increments of each token in
    place of a running sum. The paper does not treat key heads that several query heads share; here
    every query head turns the shared key by its own phases. A norm of queries and keys acts behind
    the rotation in the released model; here it acts in front, which changes nothing, since
    rotations keep lengths, unless its weights differ from feature to feature. The released recipe
    for text has a weight decay of 0.1, also of the maps here; the training loop of this package has
    none of what an encoding learns.

    The keys that a query sees must be contiguous and end at the query (causal, document, window),
    because tokens of blocks that a mask rules out are not counted.

    Args:
      rank: of the map from x to the channels. With None the channels of a head read its own slice
        of x by a map of full rank, see `selective_rope_maps`.
      base: of tau of 'rope'; None for 500,000.
      temperature: 'rope', or 'rfa' for tau from tangents of even angles up to theta pi.
      theta: of 'rfa'; None for 0.5.
      bias: adds exp(beta) to the increments, beta trained for each channel and 0 at the start.
      gate: multiplies the increments by a trained sigmoid, one for each 'head', one for each head
        that reads x by a map of low rank ('low_rank'), or such a one for each 'channel'; or 'none'.
      gate_rank: of this map.
      skip_conv: increments are differences of neighbouring rows in place of the convolution. Their
        sum is then the last row, so only the query and the key themselves count.
      heads, head_dim, model_dim: N, H and D, from the model; D is a multiple of N.
      rngs: draws the maps.

    Raises:
      ValueError: an odd head width; a theta with 'rope' or a base with 'rfa'; at call, a layer
        input that does not have three rows more than there are keys.

    Reference: Movahedi, Carstensen, Afzal, Hutter, Orvieto, Cevher, arXiv 2511.17388.
    """

    lookback = _TAPS - 1

    traits = frozenset({'rotates', 'sums_between', 'forms_logits'})

    def __init__(
        self,
        rank: Size | None = 32,
        base: Base | None = None,
        temperature: Temperature = 'rope',
        theta: Annotated[float, Gt(0), Lt(1)] | None = None,
        bias: bool = False,
        gate: Gate = 'none',
        gate_rank: Size = 16,
        skip_conv: bool = False,
        heads: Annotated[int, Ge(1), Divides('model_dim')] = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        other, kind, given = (
            ('theta', 'rfa', theta) if temperature == 'rope' else ('base', 'rope', base)
        )
        if given is not None:
            raise ValueError(
                f'selective_rope: {other} belongs to temperature={kind!r}, got {other}={given} '
                f'with temperature={temperature!r}'
            )
        self.base = BASE if base is None else base
        self.theta = THETA if theta is None else theta
        self.temperature: Temperature = temperature
        planes, self.heads = len(rope_frequencies(head_dim, self.base)), heads

        def drawn(fan_in, shape, *axes):  # the default of a linear map in the released code
            return drawn_uniform(rngs, shape, fan_in**-0.5, axes)

        channels = ('heads', None)
        if rank is None:
            width = model_dim // heads
            self.maps = drawn(width, (heads, width, planes), 'heads', None, None)
            self.scale = nnx.Param(jnp.ones(heads, jnp.float32), axes=('heads',))
        else:
            self.maps = None
            self.down = drawn(model_dim, (model_dim, rank), 'width', None)
            self.up = drawn(rank, (rank, heads, planes), None, *channels)
        if skip_conv:
            taps = jnp.broadcast_to(jnp.array(_DIFFERENCE)[:, None, None], (_TAPS, heads, planes))
            self.taps = Constant(taps, axes=(None, *channels))
        else:
            self.taps = drawn(_TAPS, (_TAPS, heads, planes), None, *channels)
        beta = jnp.zeros((heads, planes), jnp.float32)
        self.beta = nnx.Param(beta, axes=channels) if bias else None
        low = gate in ('low_rank', 'channel')
        self.gate_down = drawn(model_dim, (model_dim, gate_rank), 'width', None) if low else None
        fan_in, role = (gate_rank, None) if low else (model_dim, 'width')
        own, axes = ((heads, planes), channels) if gate == 'channel' else ((heads,), ('heads',))
        gated = gate != 'none'
        self.gate_kernel = drawn(fan_in, (fan_in, *own), role, *axes) if gated else None
        self.gate_bias = drawn(fan_in, own, *axes) if gated else None

    def increments(self, x, tok: Tokens):
        """Increments [B, L, N, F] of the angles, in radians; x has `lookback` rows in front."""
        unit = selective_rope_units(x, self.heads)
        wide = functools.partial(jnp.einsum, precision='highest')
        if self.maps is None:
            phi = wide('bsr,rnf->bsnf', wide('bsd,dr->bsr', unit, self.down[...]), self.up[...])
        else:
            slices = unit.reshape(*unit.shape[:2], self.heads, -1)
            maps = selective_rope_maps(self.maps[...], self.scale[...])
            phi = wide('bsni,nif->bsnf', slices, maps)
        phi = selective_rope_increments(phi, self.taps[...], tok)
        if self.beta is not None:
            phi = phi + jnp.exp(self.beta[...])
        if self.gate_kernel is not None and self.gate_bias is not None:
            rows = unit[:, self.lookback :]
            if self.gate_down is not None:
                rows = wide('bsd,dr->bsr', rows, self.gate_down[...])
            gate = wide('bsd,d...->bs...', rows, self.gate_kernel[...]) + self.gate_bias[...]
            phi = phi * jax.nn.sigmoid(gate).reshape(*phi.shape[:3], -1)
        tau = selective_rope_temperatures(
            phi.shape[-1], self.temperature, base=self.base, theta=self.theta
        )
        phi = phi * jnp.asarray(tau, jnp.float32)
        return phi if tok.valid is None else jnp.where(tok.valid[..., None, None], phi, 0.0)

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('selective_rope', x, k.shape[1], lookback=self.lookback)
        return q, k, v, tq, tk.with_feats(selective_rope=self.increments(x, tk))

    def first_carry(self, q, tq):
        return jnp.zeros((*q.shape[:3], q.shape[3] // 2), jnp.float32)

    def logits(self, s, q, k, tq, tk, seen, carry):
        increments = heads_first(tk.feats['selective_rope'])
        return carope_match(q, k, increments, carope_last(tq, tk), carry)
