"""The two losses that train the encoder of SeqPE beside the task, and the positions they compare.

`seqpe_contrastive_loss` makes the nearest of several positions the one whose vector is most alike.
`seqpe_transfer_loss` makes the vectors of a far window as alike among each other as those of the
first window.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posenc_jax.methods.seqpe_encoder import seqpe_digits, seqpe_positions

EDITED = 0.4  # how often the candidates are uniform ones and edits of the digits, not neighbours
SHORTEST_RANGE = 256  # of neighbouring candidates, in positions

_exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def seqpe_contrastive_loss(
    pivots: Float[Array, 'B d'], candidates: Float[Array, 'B C d'], labels: Int[Array, 'B']
) -> Float[Array, '']:
    """L_ct: cross-entropy of the candidate `labels` under the softmax of `pivot . candidate`.

    Returns:
      The mean over B pivots, nats.
    """
    logits = _exact('bd,bcd->bc', pivots, candidates)
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def seqpe_transfer_loss(
    teacher: Float[Array, '*B n d'], student: Float[Array, '*B n d'], heads: int
) -> Float[Array, '']:
    """L_tr: the two KL divergences between the rows of the Gram matrices, softmax of each row.

    A vector is cut into heads, and every head has a Gram matrix. The divergences are means over all
    elements of these matrices, not sums over a row. No gradient reaches the teacher.
    """

    def rows(a):
        a = a.reshape(*a.shape[:-1], heads, -1)
        return jax.nn.log_softmax(_exact('...inh,...jnh->...nij', a, a), axis=-1)

    t, s = rows(jax.lax.stop_gradient(teacher)), rows(student)
    return ((jnp.exp(t) - jnp.exp(s)) * (t - s)).mean()


def seqpe_edited(key: Array, digits: Int[Array, 'm']) -> Int[Array, 'm']:
    """The digits after one to three random edits: a digit inserted, removed, replaced, or two
    exchanged. An inserted digit pushes the first one out, behind a removed one comes a zero in
    front.
    """
    at, count = jnp.arange(digits.shape[0]), digits.shape[0]
    # All numbers at once, since every draw takes long to compile.
    drawn = jax.random.randint(key, (13,), 0, 2**31 - 1)
    for number in range(3):
        kind, i, j, new = (n % size for n, size in zip(drawn[4 * number :], (4, count, count, 10)))
        replaced = digits.at[i].set(new)
        edited = jnp.select(
            [kind == 0, kind == 1, kind == 2],
            [
                jnp.where(at < i, jnp.roll(digits, -1), replaced),
                jnp.where(at <= i, jnp.roll(digits, 1).at[0].set(0), digits),
                replaced,
            ],
            digits.at[i].set(digits[j]).at[j].set(digits[i]),
        )
        digits = jnp.where(number <= drawn[12] % 3, edited, digits)
    return digits


def seqpe_distances(a: Int[Array, '*#B P'], b: Int[Array, '*#B P']) -> Float[Array, '*B']:
    """Squared distances of positions, float32."""
    return ((a - b).astype(jnp.float32) ** 2).sum(-1)


def seqpe_candidates(
    key: Array, pivot: Int[Array, 'P'], count: int, max_pos: int, digits: int
) -> Int[Array, '{count} P']:
    """The positions that L_ct compares with a pivot; none equals the pivot.

    In 40 % of the draws they are uniform, and a quarter of these is replaced by edits of the
    digits of the pivot that are farther than the nearest of the others. Otherwise they lie in one
    random range of `max(256, 5 count)` positions (with P components a cube of this volume).

    Args:
      pivot: the position.
      count: how many candidates.
      max_pos: components lie below it.
      digits: of a component.
    """
    kind, uniform, edits, corner, near = jax.random.split(key, 5)
    parts = pivot.shape[0]
    spread = jax.random.randint(uniform, (count, parts), 0, max_pos)
    spread = jnp.where((spread == pivot).all(-1, keepdims=True), (spread + 1) % max_pos, spread)

    kept = count - count // 4
    edited = jax.vmap(seqpe_edited, (0, None))(
        jax.random.split(edits, count // 4), seqpe_digits(pivot, digits)
    )
    edited = seqpe_positions(edited, parts)
    farther = seqpe_distances(edited, pivot) > seqpe_distances(spread[:kept], pivot).min()
    usable = farther[:, None] & (edited < max_pos).all(-1, keepdims=True)
    hard = jnp.concatenate([spread[:kept], jnp.where(usable, edited, spread[kept:])])

    side = seqpe_side(max(SHORTEST_RANGE, 5 * count), parts)
    first = jax.random.randint(corner, (parts,), 0, max(max_pos - side, 0) + 1)
    close = first + jax.random.randint(near, (count, parts), 0, min(side, max_pos))
    close = jnp.where((close == pivot).all(-1, keepdims=True), spread, close)
    return jnp.where(jax.random.uniform(kind) < EDITED, hard, close)


def seqpe_side(volume: int, components: int) -> int:
    """The side of the smallest cube of whole positions with this volume."""
    side = max(1, round(volume ** (1 / components)))
    return side + (side**components < volume)


def seqpe_comparisons(
    key: Array, draws: int, components: int, max_pos: int, candidates: int, digits: int
) -> Int[Array, '{draws} _ {components}']:
    """What L_ct compares: in every row a uniform pivot and behind it its candidates.

    Args:
      draws: number of pivots.
      components, max_pos, candidates, digits: as for `seqpe_candidates`.
    """
    of_pivots, of_candidates = jax.random.split(key)
    pivots = jax.random.randint(of_pivots, (draws, components), 0, max_pos)
    draw = lambda key, pivot: seqpe_candidates(key, pivot, candidates, max_pos, digits)
    others = jax.vmap(draw)(jax.random.split(of_candidates, draws), pivots)
    return jnp.concatenate([pivots[:, None], others], axis=1)


def seqpe_labels(compared: Int[Array, 'B C P']) -> Int[Array, 'B']:
    """The first of the candidates that are nearest to the pivot in front of them."""
    return jnp.argmin(seqpe_distances(compared[:, 1:], compared[:, :1]), axis=-1)


def seqpe_windows(
    key: Array, draws: int, components: int, max_pos: int, offsets: int, length: int
) -> Int[Array, '2 {draws} _ {components}']:
    """Positions of the first window, and the same places of windows that start later, for L_tr.

    A window has `length` positions, or is a cube of this volume with side T. Starts are uniform in
    `T // 4 .. max_pos - T - 1`, and the positions of one window are distinct.

    Args:
      draws: number of windows.
      components, max_pos: components of positions lie below `max_pos`.
      offsets: positions of a window, at most all.
    """
    of_offsets, of_starts = jax.random.split(key)
    side = seqpe_side(length, components)
    volume = side**components
    draw = lambda key: jax.random.permutation(key, volume)[:offsets]
    flat = jax.vmap(draw)(jax.random.split(of_offsets, draws))
    places = jnp.stack(jnp.unravel_index(flat, (side,) * components), axis=-1)
    starts = jax.random.randint(of_starts, (draws, 1, components), side // 4, max_pos - side)
    return jnp.stack([places, starts + places])
