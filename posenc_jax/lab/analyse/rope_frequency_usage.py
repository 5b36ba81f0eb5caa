"""The share of each rotary frequency in the logits of every head: by the norms of queries and keys,
and by what it really adds.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.capture import check_causal, check_rotary, over_queries, with_valid
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import small_legend, some, whole_numbers
from posenc_jax.lab.analyse.rope_usage import Usage, planes, quarter, rope_usage
from posenc_jax.lab.analyse.states import batches, over_layers
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.single_rotary import single_rotary
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register


class FrequencyUsage(NamedTuple):
    """Shares of the planes, which are in descending order of frequency; each head's add up to 1.

    Attributes:
      norms: u_q u_k of a plane, the means of its norms over tokens, over the sum of all planes.
      logits: mean of |what the plane adds to a logit| over causal pairs, over the sum of all.
      slow: the first plane that makes less than one turn within the trained length, or the number
        of planes if there is none.
    """

    norms: Float[np.ndarray, 'layers N F']
    logits: Float[np.ndarray, 'layers N F']
    slow: int

    def fastest(self) -> Float[np.ndarray, 'layers N']:
        """The share of the norms in the fastest quarter of the planes."""
        return self.norms[..., : quarter(self.norms.shape[-1])].sum(-1)

    def slowest(self) -> Float[np.ndarray, 'layers N']:
        """The share of the norms in the slowest quarter of the planes."""
        return self.norms[..., -quarter(self.norms.shape[-1]) :].sum(-1)


def first_slow_plane(inv_freq: Float[np.ndarray, ' F'], length: int) -> int:
    """The first plane that makes less than one turn within a length; F if there is none.

    Args:
      inv_freq: radians per position, in descending order.
      length: in tokens.
    """
    return int((np.asarray(inv_freq) * length >= 2 * math.pi).sum())


@register(
    'rope_frequency_usage',
    kind='analysis',
    card=analysis_card(
        'shares of rotary frequencies',
        'rope_frequency_usage(model, tokens)',
        'You have a rotary model and want to know which frequencies its heads use.',
        causal_only=True,
    ),
)
def rope_frequency_usage(
    model: Transformer, tokens: Int[np.ndarray, 'S T'], *, batch: int = 4, block: Size = 64
) -> FrequencyUsage:
    """Which rotary frequencies a head uses: shares of the norms, and of the logits.

    `u_f = mean |q_f| mean |k_f| / sum_f; l_f = mean_(j<=i) |q_if . R k_jf| / sum_f`. The shares u
    of the norms come from the means that `rope_usage` measures, an upper bound of what a plane
    adds; rotation does not change them. A head with a large share in the fast planes attends by
    position, e.g. to the token before; slow planes carry what the tokens mean. Random queries and
    keys have equal shares. Differs from the paper: both are shares of a head, so that layers can be
    compared.

    Args:
      model: a decoder, every layer with one rotary encoding; grouped-query heads are allowed.
      tokens: ids of the sequences.
      batch: sequences that are read at a time.
      block: how many queries are evaluated at a time, at least 1.

    Raises:
      ValueError: a layer without exactly one rotary encoding; queries that see later tokens; a
        block below 1.

    Reference: Barbero, Vitvitskyi, Perivolaropoulos, Pascanu, Velickovic, arXiv 2410.06205.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = rope_frequency_usage(
      ...     tiny_model('rope()', width=16), np.arange(16).reshape(2, 8) % 7
      ... )
      >>> found.norms.shape, found.logits.sum(-1).round(3).tolist()
      ((1, 2, 4), [[1.0, 1.0]])
    """
    rotary = check_rotary('rope_frequency_usage', model)[0]
    check_causal('rope_frequency_usage', model)
    usage: Usage | None = None
    logits = 0.0
    for rows in batches(tokens, batch):
        own = rope_usage(model, rows)
        usage = own if usage is None else usage.merge(own)
        logits = logits + np.asarray(over_layers(model, rows, _plane_sums, block), np.float64)
    assert usage is not None
    share = lambda a: a / a.sum(-1, keepdims=True)
    length = jnp.full((1, 1), model.cfg.train_len) if rotary.uses_length else None
    inv_freq = np.ravel(np.asarray(rotary.frequencies(length)[0], np.float64))
    return FrequencyUsage(
        share(usage.product), share(logits), first_slow_plane(inv_freq, model.cfg.train_len)
    )


def _plane_sums(block, encoding, before, after):
    """The sum of |what a plane adds to a logit| over the sequences and the pairs j <= i, [N, F]."""
    rotary = single_rotary('rope_frequency_usage', encoding)
    q, k, tq, tk = after
    batch, _, heads, width = q.shape
    count, layout = rotary.rotary_dim // 2, rotary.layout
    tq, tk = with_valid(tq.without_feats(), batch), with_valid(tk, batch)
    in_planes = lambda a: jnp.moveaxis(planes(a.astype(jnp.float32), count, layout), -2, 0)
    k = in_planes(jnp.swapaxes(k, 1, 2))  # [F, B, K, S, 2]

    def one(total, start, own):
        rows, own_tq = jnp.swapaxes(own[0], 1, 2), own[1]
        seen = encoding.mask(own_tq, tk) & own_tq.valid[:, None, :, None]

        def plane(pair):
            q, k = pair
            grouped = q.reshape(batch, k.shape[1], -1, *q.shape[2:])
            s = jnp.einsum('bkgth,bksh->bkgts', grouped, k)
            s = s.reshape(batch, heads, *s.shape[3:]) / width**0.5
            return jnp.where(seen, jnp.abs(s), 0.0).sum((0, 2, 3))

        return total + jax.lax.map(plane, (in_planes(rows), k)).T

    return over_queries(one, jnp.zeros((heads, count)), (q, tq), block)


def _rows(one):
    count = quarter(one.norms.shape[-1])
    for layer, both in enumerate(zip(one.norms.mean(1), one.logits.mean(1))):
        shares = ((a[:count].sum(), a[-count:].sum()) for a in both)
        yield layer + 1, *(share for pair in shares for share in pair), int(both[0].argmax())


def _remarks(found):
    for name, one in found.items():
        count, fast = quarter(one.norms.shape[-1]), one.fastest()
        best = [
            f'({layer + 1}, {head}) {fast[layer, head]:.2f}' for layer, head in _fast_heads(one)
        ]
        yield (
            f'{name}: the {count} slowest planes hold {one.slowest().mean():.0%} of the norms, the '
            f'{count} fastest {fast.mean():.0%}; the largest mean share is that of plane '
            f'{one.norms.mean((0, 1)).argmax()}'
        )
        yield f'heads with the largest share in the fastest planes (layer, head): {", ".join(best)}'
        yield f'first plane with less than one turn within the trained length: {one.slow}'


def _draw(axes, name, one):
    for axis, shares, what in zip(axes, one[:2], ('norms', 'logits')):
        image = axis.imshow(shares.mean(1), aspect='auto', cmap='viridis', vmin=0)
        axis.set(xlabel='plane (high to low frequency)', ylabel='layer')
        axis.set_yticks(ticks := some(len(shares), 8), [t + 1 for t in ticks], fontsize=7)
        axis.set_title(f'{name}: share of the {what}', fontsize=8)
        axis.axvline(one.slow - 0.5, color='white', linestyle=':', linewidth=1)
        whole_numbers(axis.xaxis)
        axis.figure.colorbar(image, ax=axis)
    for layer, head in _fast_heads(one):
        label = f'layer {layer + 1}, head {head}'
        axes[2].plot(one.norms[layer, head], linewidth=1, label=label)
    axes[2].plot(one.norms.mean((0, 1)), 'k--', linewidth=1, label='mean of all heads')
    axes[2].set(xlabel='plane (high to low frequency)', ylabel='share of the norms')
    axes[2].set_ylim(0, None)
    whole_numbers(axes[2].xaxis)
    small_legend(axes[2])


def _fast_heads(one: FrequencyUsage, most: int = 3) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the largest share in the fastest quarter, largest first."""
    fast = one.fastest()
    best = np.argsort(-fast, axis=None, kind='stable')[:most]
    return [tuple(map(int, np.unravel_index(at, fast.shape))) for at in best]


ANALYSIS = Comparison(
    measure=rope_frequency_usage,
    batches=4,
    longest=512,
    columns=(
        'layer',
        'norms, fastest 1/4',
        'norms, slowest 1/4',
        'logits, fastest 1/4',
        'logits, slowest 1/4',
        'peak',
    ),
    rows=_rows,
    draw=_draw,
    panels=3,
    title='Shares of the rotary frequencies (dotted: from here on less than one turn within '
    'the trained length)',
    size=(12.0, 3.6),
    numbers=lambda one: {
        'norms': one.norms.mean(1),
        'logits': one.logits.mean(1),
        'fastest_quarter': one.fastest(),
        'slow': one.slow,
    },
    remarks=_remarks,
)
