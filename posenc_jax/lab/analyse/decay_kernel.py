"""The theoretical receptive field (TRF) of an additive bias r(d), the decay kernel of an encoding:
how many of the nearest keys hold all but a share epsilon of `sum_d exp(r(d))`. It needs no model.

Reference: Qin, Zhong, Deng, arXiv 2307.10156.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.base.memory import main_memory, readable
from posenc_jax.lab.analyse.capture import compiled
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import DOORS, Encoding
from posenc_jax.protocol.tokens import Tokens

REACH = 200_000
_CHUNK = 8192
_PROBES = 32


def decay_kernel(encoding: Encoding, heads: int, reach: int = REACH) -> Float[np.ndarray, 'N D']:
    """The decay kernel of an encoding: r(d) for the distances d = 0 .. reach - 1, in float64.

    r(d) is what the encoding makes of a logit 0 between the query at position `reach - 1` and the
    key d tokens before it; it is -inf where a mask hides the key.

    Args:
      encoding: opens only the doors `logits` and `mask`, so that its logits depend on positions
        alone.
      heads: N, heads of the encoding.
      reach: D, number of distances, at least 4.

    Raises:
      ValueError: the encoding opens another door (it is named); fewer than 4 distances, or more
        than fit in memory; no head.
    """
    if reach < 4 or heads < 1:
        raise ValueError(
            f'a decay kernel has at least 4 distances and 1 head, got {reach} and {heads}'
        )
    # Bytes of the kernel in float32 pieces, joined, and in float64.
    if (needed := 20 * heads * reach) > (limit := main_memory()):
        raise ValueError(
            f'{reach} distances of {heads} heads would take {readable(needed)}, this machine has '
            f'{readable(limit)}; give fewer distances'
        )
    _check_additive(encoding)
    chunks = []
    for start in range(0, reach, _CHUNK):
        distance = np.minimum(np.arange(start, start + min(_CHUNK, reach)), reach - 1)
        chunks.append(np.asarray(_row(encoding, distance, reach - 1, 0, fixed=(heads,))))
    return np.concatenate(chunks, axis=1)[:, :reach].astype(np.float64)


def _check_additive(encoding: Encoding) -> None:
    for part in parts_of(encoding):
        doors = (*DOORS, 'qkv', 'first_carry')
        other = [door for door in doors if part.opens(door) and door not in ('logits', 'mask')]
        if other or part.traits & {'forms_logits', 'mixes_logits'}:
            does = f'opens {other[0]!r} as well' if other else 'forms logits of its own'
            raise ValueError(
                'a theoretical receptive field needs a bias that depends on positions alone; '
                f'{name_of(part)} {does}'
            )


@compiled
def _row(encoding, heads, distance, row, shift):
    """r(d) of the query at index `row` at these distances, with all positions moved by `shift`."""
    index = jnp.full((1, 1), row, jnp.int32)
    tok = lambda index: Tokens(index, index + shift, rank=index)
    tq, tk = tok(index), tok(index - distance[None])
    seen = encoding.mask(tq, tk)
    seen = jnp.ones((1, 1, 1, distance.shape[0]), bool) if seen is None else seen
    carry = first_carry(encoding, jnp.zeros((1, heads, 1, 1)), tq)
    s = jnp.zeros((1, heads, 1, distance.shape[0]))
    s, _ = encoding.logits(s, None, None, tq, tk, seen, carry)
    return jnp.where(seen, s, -jnp.inf)[0, :, 0]


def _is_relative(encoding: Encoding, heads: int, reach: int) -> bool:
    distance = np.geomspace(1, reach, _PROBES).astype(np.int32) - 1
    here, there = (
        np.asarray(_row(encoding, distance, reach - 1, shift, fixed=(heads,)))
        for shift in (0, reach)
    )
    # A bias that is a sum of large terms which cancel (sandwich) has rounding errors of the size of
    # these terms at every distance, so the tolerance contains a share of its spread.
    seen = np.isfinite(here)
    spread = np.max(here, axis=1, where=seen, initial=-np.inf) - np.min(
        here, axis=1, where=seen, initial=np.inf
    )
    return bool(
        np.isclose(here, there, rtol=1e-5, atol=1e-5 * np.maximum(spread, 0.0)[:, None]).all()
    )


def field_of(r: Float[np.ndarray, '*n D'], epsilon: float = 0.05) -> Int[np.ndarray, '*n']:
    """The smallest J with `sum_(d < J) exp(r(d)) > (1 - epsilon) sum_d exp(r(d))`, where the second
    sum goes over all distances of `r`.

    Raises:
      ValueError: epsilon outside (0, 1).

    Example:
      >>> field_of(-0.5 * np.arange(1000.0), 0.1).item()
      5
    """
    check_epsilon(epsilon)
    held = np.cumsum(relative_weights(r), axis=-1)
    return 1 + np.argmax(held > (1 - epsilon) * held[..., -1:], axis=-1)


def undecided(r: Float[np.ndarray, '*n D'], epsilon: float = 0.05) -> Bool[np.ndarray, '*n']:
    """Whether more than epsilon of the series may lie beyond the D distances of `r`, because it
    diverges or decreases too slowly to tell.

    The rest of the series is estimated from blocks of doubled width (Cauchy's condensation test).
    Let A be the sum of exp(r(d)) over [D/4, D/2), B the sum over [D/2, D), and rho = B / A. If this
    ratio does not decrease from block to block, the rest is at least `B rho / (1 - rho)`; it is
    infinite where rho >= 1.
    """
    check_epsilon(epsilon)
    weights = relative_weights(r)
    size = weights.shape[-1]
    before, last = weights[..., size // 4 : size // 2].sum(-1), weights[..., size // 2 :].sum(-1)
    shrinks = last < before
    ratio = np.where(shrinks, last / np.where(before > 0, before, 1.0), 0.0)
    rest = np.where(shrinks, last * ratio / (1 - ratio), np.where(last > 0, np.inf, 0.0))
    return rest > epsilon * weights.sum(-1)


def relative_weights(r):
    """`exp(r(d) - max r)` over the last axis, in float64."""
    return np.exp(np.asarray(r, np.float64) - np.max(r, axis=-1, keepdims=True))


def check_epsilon(epsilon):
    if not 0 < epsilon < 1:
        raise ValueError(
            'epsilon, the share of the weight that may lie beyond a receptive field, is in (0, '
            f'1), got {epsilon}'
        )


def theoretical_field(
    encoding: Encoding, heads: int, *, reach: int = REACH, epsilon: float = 0.05
) -> Float[np.ndarray, 'N']:
    """The TRF of each head, in keys: `field_of` of the decay kernel, or inf if it is `undecided`.

    The sum ends at `reach`, so a finite TRF is slightly too small. For a series that decreases as
    1/d^2, a field as wide as 1 % of `reach` is 1 % too narrow. If the bias does not depend on the
    distance alone (FIRE), the sum goes over the keys of the query at position `reach - 1`, and the
    TRF is always finite.

    Args:
      encoding, heads, reach: as for `decay_kernel`.
      epsilon: share of the weight that may lie beyond the field, in (0, 1).

    Raises:
      ValueError: as for `decay_kernel`, or an epsilon outside (0, 1).
    """
    r = decay_kernel(encoding, heads, reach)
    fields = field_of(r, epsilon).astype(np.float64)
    return (
        np.where(undecided(r, epsilon), np.inf, fields)
        if _is_relative(encoding, heads, reach)
        else fields
    )


def trained_field(
    model: Transformer, *, reach: int = REACH, epsilon: float = 0.05
) -> Float[np.ndarray, 'layers N']:
    """`theoretical_field` of every layer of a model, with the parameters that the model has now."""
    encodings = [model.encoding(layer_type, block) for layer_type, block in model.layers()]
    return np.stack(
        [theoretical_field(e, model.cfg.heads, reach=reach, epsilon=epsilon) for e in encodings]
    )
