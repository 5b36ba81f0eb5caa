"""The numbers of queries and keys of a tile of logits."""

from typing import Literal, get_args

from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.protocol.composite import owner_of
from posenc_jax.protocol.errors import check_choice

Implementation = Literal['dense', 'blocked', 'kernel', 'hopper', 'fused']
IMPLEMENTATIONS = get_args(Implementation)

# Sizes of float32 logits. Up to the first size all logits are one tile; beyond it, a tile has about
# the second size at most. Wide products save more time than cache misses cost
# (benchmarks/attention.py), and such a tile is small beside the keys of a long sequence.
_ONE_TILE_BYTES, _TILE_BYTES = 2**20, 2**25


def tile_sizes(
    encoding, shape, keys, block, implementation, target=None, widths=()
) -> tuple[int, ...]:
    """Queries per tile, keys per tile, and keys per tile of the backward pass.

    Args:
      encoding, block, implementation: as for `attend`.
      shape: of the queries, [B, T, N, H].
      keys: their number.
      target: what a kernel is made for, or None for the other forms.
      widths: of a head, and of its values; for a kernel alone.

    Raises:
      ValueError: no such implementation; a block that is no size, or with fewer keys than the
        encoding reads at once; as for `kernels.sizes.sizes`.
    """
    batch, queries, heads, _ = shape
    if implementation is not None:
        check_choice('implementation', implementation, IMPLEMENTATIONS)
    if block is not None:
        sizes = (block, block) if isinstance(block, int) else tuple(block)
        if len(sizes) != 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise ValueError(
                f'attend: block is one or two integers and must be positive, got {block!r}'
            )
    if 'mixes_logits' in encoding.traits:
        return _whole_rows(encoding, shape, keys, implementation, target, sizes if block else ())
    if target is not None:
        sides = None if block is None else sizes
        return kernel_sizes.sizes(target, widths, batch, queries, keys, sides)
    if implementation == 'dense' or not all(isinstance(n, int) for n in (batch, queries, keys)):
        return queries, keys, keys  # lengths may be symbolic, as in `jax.export`
    if block is None:
        carries = encoding.opens('first_carry')
        sizes = _tile(batch * heads, queries, keys, carries, implementation == 'blocked')
    return min(sizes[0], queries), min(sizes[1], keys), min(sizes[-1], keys)


def fits_one_tile(shape, keys, carries: bool) -> bool:
    """Whether attention takes one tile by itself.

    Args:
      shape: of the queries, [B, T, N, H].
      keys: their number.
      carries: whether the encoding has a carry.
    """
    batch, queries, heads, _ = shape
    known = all(isinstance(n, int) for n in (batch, queries, keys))
    return not known or _fits(batch * heads, queries, keys, carries)


def _fits(rows: int, queries: int, keys: int, carries: bool) -> bool:
    # In decoding, logits are small beside the cache, which one tile reads without copying.
    decodes = queries == 1 and not carries
    return decodes or 4 * rows * queries * keys <= _ONE_TILE_BYTES


def _whole_rows(encoding, shape, keys, implementation, target, block) -> tuple[int, int, int]:
    """The same where a tile has all heads and all keys; `block` is the choice of the caller."""
    (batch, queries, heads, _), name = shape, owner_of('mixes_logits', encoding)
    if target is not None:
        raise kernel_sizes.NoKernelError(f'computes one head, and {name} mixes the heads')
    known = all(isinstance(n, int) for n in (batch, queries, keys))
    if known and block and block[1] < keys:
        raise ValueError(
            f'attend: {name} reads all keys of a query at once, {keys} here, got a block of '
            f'{block[1]}; use block=({block[0]}, {keys})'
        )
    if implementation == 'dense' or not known:
        return queries, keys, keys
    values = max(heads, encoding.pair_values)
    most = max(1, _TILE_BYTES // (4 * batch * values * keys))
    return min(block[0] if block else most, queries), keys, keys


def _tile(rows: int, queries: int, keys: int, carries: bool, blocked: bool) -> tuple[int, int, int]:
    """Queries per tile, keys per tile, and keys per tile of the backward pass, for `rows` = batch x
    heads.
    """
    if not blocked and _fits(rows, queries, keys, carries):
        return queries, keys, keys
    # Short sequences gain more from skipping blocks than from wide products.
    side = 64 if keys <= 512 else 256
    while side > 64 and 4 * rows * 2 * side**2 > _TILE_BYTES:
        side //= 2
    # More queries make products wide, fewer keys let more tiles be skipped. A carry is stored for
    # every block of keys, so its tiles are square.
    if carries:
        return side, side, side
    # The backward pass holds several tiles at a time; the forward pass can afford wider ones.
    wide = 2 * side if keys >= 2048 and 4 * rows * (2 * side) ** 2 <= _TILE_BYTES // 2 else side
    return 2 * side, wide, side
