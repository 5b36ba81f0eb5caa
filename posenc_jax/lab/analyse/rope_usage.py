"""Frequency usage: how large queries and keys are in each rotary plane. Also builds a query and a
key for a head that attends by position alone.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from posenc_jax.lab.analyse.capture import capture_encodings, check_rotary, compiled
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import draw_planes, planes_size
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.rope import LAYOUTS, Layout
from posenc_jax.methods.single_rotary import single_rotary
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens


def planes(x: Num[Array, '... H'], count: int, layout: Layout = 'half') -> Float[Array, '... F 2']:
    """The two features of each of the first `count` rotary planes, in float32. Features that are
    not rotated are left out.
    """
    check_choice('layout', layout, LAYOUTS)
    turned = x[..., : 2 * count].astype(jnp.float32)
    pairs = turned.reshape(*x.shape[:-1], *((2, count) if layout == 'half' else (count, 2)))
    return jnp.swapaxes(pairs, -1, -2) if layout == 'half' else pairs


@dataclasses.dataclass(frozen=True)
class Usage:
    """Mean norms of queries and keys in each rotary plane; the planes are in descending order of
    frequency.

    Attributes:
      q: u_q, [layers, N, F].
      k: u_k, [layers, K, F].
      count: how many tokens were averaged.
      head_dim: H.
    """

    q: Float[np.ndarray, 'layers N F']
    k: Float[np.ndarray, 'layers K F']
    count: int
    head_dim: int

    @property
    def product(self) -> Float[np.ndarray, 'layers N F']:
        """`u_q u_k / sqrt(H)` per query head: by Cauchy-Schwarz, the most that a plane can add to
        the logit of a query and a key of mean norm.
        """
        return (
            self.q
            * np.repeat(self.k, self.q.shape[1] // self.k.shape[1], axis=1)
            / self.head_dim**0.5
        )

    def merge(self, other: 'Usage') -> 'Usage':
        """The means over the tokens of both."""
        total = self.count + other.count
        mean = lambda a, b: a + (b - a) * (other.count / total)
        return Usage(mean(self.q, other.q), mean(self.k, other.k), total, self.head_dim)


@register(
    'rope_usage',
    kind='analysis',
    card=analysis_card(
        'frequency usage',
        'rope_usage(model, tokens)',
        ('You have a rotary model and want to know which frequencies can move its logits.'),
    ),
)
def rope_usage(model: Transformer, tokens: Int[Array, 'B L'], tok: Tokens | None = None) -> Usage:
    """Measures how much each rotary frequency can add to the logits of every head.

    `u_t = mean_i |(q_it, q_i(t+F))|; |logit of plane t| <= |q_t| |k_t| / sqrt(H)`, where |.| is the
    norm of the two features of plane t; u_k is the same mean over keys. Rotation changes neither,
    and the bound is that of Cauchy-Schwarz. Needs one forward pass. Differs from the paper: queries
    and keys are averaged separately, so that nothing is stored per pair of tokens; an attention
    factor (of YaRN, for example) is not included.

    Args:
      model: every layer has one rotary encoding; grouped-query heads are allowed.
      tokens: token ids. For more text, `merge` the results of several batches.
      tok: positions, documents and padding of the tokens; padding is not averaged. None: positions
        from 0 and no padding.

    Raises:
      ValueError: a layer without exactly one rotary encoding (the layer's encoding is named); all
        tokens are padding.

    Reference: Barbero, Vitvitskyi, Perivolaropoulos, Pascanu, Velickovic, arXiv 2410.06205.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> usage = rope_usage(
      ...     tiny_model('rope()', layers=3, width=16, kv_heads=1), jnp.ones((1, 5), jnp.int32)
      ... )
      >>> usage.q.shape, usage.k.shape, usage.product.shape
      ((3, 2, 4), (3, 1, 4), (3, 2, 4))
    """
    check_rotary('rope_usage', model)
    valid = (
        np.ones(tokens.shape, bool)
        if tok is None or tok.valid is None
        else np.broadcast_to(tok.valid, tokens.shape)
    )
    if not valid.any():
        raise ValueError('rope_usage averages over tokens; all of these are padding')
    q, k = _usage(model, tokens, tok, valid)
    return Usage(np.asarray(q), np.asarray(k), int(valid.sum()), model.cfg.head_dim)


@compiled
def _usage(model, tokens, tok, valid):
    def look(encoding, before, after):
        rotary = single_rotary('rope_usage', encoding)

        def mean(x):
            size = jnp.linalg.norm(planes(x, rotary.rotary_dim // 2, rotary.layout), axis=-1)
            return jnp.sum(size, axis=(0, 1), where=valid[..., None, None]) / valid.sum()

        return tuple(map(mean, before))

    return capture_encodings(model, tokens, tok, look)


def _rows(one):
    count = quarter(one.product.shape[-1])
    for layer, most in enumerate(one.product.mean(1)):
        sums = most.sum(), most[:count].sum(), most[-count:].sum()
        yield layer + 1, *sums, int(most.argmax())


def _draw(axes, name, one):
    draw_planes(axes[0], one.product, label='u_q u_k / sqrt(H)', first=1)
    axes[0].set_title(name, fontsize=8)


def _size(found):
    width, height = np.max([planes_size(one.product.shape) for one in found.values()], axis=0)
    return float(width), float(height)


def quarter(planes: int) -> int:
    """A quarter of the planes, at least one."""
    return max(planes // 4, 1)


def positional_head(
    inv_freq: Float[np.ndarray, 'F'], weights: Float[np.ndarray, 'F'], shift: int
) -> tuple[Float[np.ndarray, 'H'], Float[np.ndarray, 'H']]:
    """A query vector and a key vector, each used for all tokens, with which a head attends by
    position alone after their rotation (layout 'half').

    `k = psi` and `q = R(-shift theta) psi` with `|psi_t|^2 = sqrt(H) w_t`. Then `logit_ij = sum_t
    w_t cos((i - j - shift) theta_t)`, which is largest at j = i - shift: shift 0 gives a diagonal
    head, shift 1 a previous-token head. Large weights of the high frequencies bring the probability
    of that key arbitrarily near 1, as long as these frequencies do not repeat within the text.

    Args:
      inv_freq: theta, radians per position.
      weights: w, not negative: what each plane adds to the largest logit.
      shift: how many positions before the query the largest logit lies.

    Raises:
      ValueError: negative weights, or not one for every frequency.
    """
    inv_freq, weights = np.asarray(inv_freq, np.float64), np.asarray(weights, np.float64)
    if weights.shape != inv_freq.shape or (weights < 0).any():
        raise ValueError(
            f'positional_head takes one weight >= 0 for each of {inv_freq.shape} frequencies, '
            f'got {weights}'
        )
    size = np.sqrt((2 * len(inv_freq)) ** 0.5 * weights)
    angle = -shift * inv_freq
    return np.concatenate([size * np.cos(angle), size * np.sin(angle)]), np.concatenate(
        [size, np.zeros_like(size)]
    )


ANALYSIS = Comparison(
    measure=rope_usage,
    batches=4,
    longest=512,
    columns=('layer', 'all planes', 'fastest 1/4', 'slowest 1/4', 'peak'),
    rows=_rows,
    draw=_draw,
    panels=1,
    title='The most that each rotary plane adds to a logit',
    size=_size,
    numbers=lambda one: {'q': one.q, 'k': one.k, 'product': one.product, 'tokens': one.count},
    remarks=lambda found: [
        'u_q u_k / sqrt(H), mean over the heads: what a query and a key of mean norm add to '
        'their logit at most; peak: the plane with the most'
    ],
)
