"""The targets that kernels are made for, and the tiles into which they cut queries and keys."""

from typing import Any

from posenc_jax.attention.kernels.padding import powers
from posenc_jax.base import targets
from posenc_jax.base.derivatives import precision
from posenc_jax.protocol.composite import name_of, parts_of

KERNELS = 'kernel', 'hopper'  # the implementations of `attend` that are kernels or an error
_USE_BLOCKED = (
    "use implementation='blocked' or 'fused' (of a run: --config.model.implementation=blocked)"
)
TPU_DTYPES = 'float32', 'bfloat16'  # that Mosaic, the compiler of kernels for a TPU, supports
# Queries and keys of a tile of a TPU: the usual number, and one that is better for most encodings
# and that the memory of a core has no room for with some. `compiled.csv` says with which.
TPU_SIDES = 256, 512
# The same of a GPU: the usual tile, and two with which kernels run fewer instructions for a pair
# where registers and shared memory are enough.
GPU_TILES = (64, 64), (128, 64), (128, 128)
# The same for products in full float32, which have no tensor cores and need more registers: for
# heads of up to 64, and for wider ones.
FULL_TILES = (32, 32), (32, 16)


class NoKernelError(ValueError):
    """A kernel cannot compute this attention.

    Args:
      reason: why, with 'a kernel' as its subject.
      instead: what may be changed so that it can, or nothing.
      form: of `attend`, whose kernel it is.

    Attributes:
      reason: as given.
    """

    def __init__(self, reason: str, instead: str = '', form: str = 'kernel'):
        self.reason = reason
        what = f'attend: implementation={form!r}'
        super().__init__(f'{what} {reason}; {instead and f"{instead}, or "}{_USE_BLOCKED}')


def target(form: str = 'kernel', **arrays: Any) -> str:
    """What kernels are made for.

    Args:
      form: of `attend`, whose kernel it is.
      **arrays: what they read, by the names that a message has for them.

    Raises:
      NoKernelError: the platform has no kernel, or none that reads an array of this dtype.
    """
    platform = targets.platform()
    if platform == 'shapes':
        return 'interpreter'  # the shapes are the same everywhere
    known = (*targets.INTERPRETED, 'cuda', 'tpu')
    if platform not in known or (form == 'hopper' and platform == 'tpu'):
        raise NoKernelError(f'does not run on {platform}', form=form)
    for name, a in arrays.items() if platform == 'tpu' else ():
        if (found := a.dtype.name) not in TPU_DTYPES:
            raise NoKernelError(
                f'needs {name} in {" or ".join(TPU_DTYPES)} on a TPU, got {found}', 'cast them'
            )
    return platform


def check_compiled(encoding, width: int, dtype: str, tile: tuple[int, int], fused: bool) -> None:
    """Refuses a kernel that does not fit the device, by what its compiler said of it with this tile
    or a smaller one. What `compiled.csv` does not list is taken to fit.

    Args:
      encoding: of the attention.
      width: of a head.
      dtype: of the queries.
      tile: queries and keys.
      fused: also refuses a kernel that fits and is slow.

    Raises:
      NoKernelError: the compiler refuses the kernel, the device has too little memory for it, or it
        is slow.
    """
    if (device := targets.device()) is None:
        return
    from posenc_jax.attention.kernels import compiled

    for part in parts_of(encoding):
        if why := compiled.refusal(name_of(part), width, dtype, device, tile, slow=fused):
            raise NoKernelError(why, 'give a smaller block (--config.model.block)')


def in_full_float32(dtype: str) -> bool:
    """Whether a GPU computes products of this dtype in float32, and not in TF32, with the precision
    that is set.
    """
    full = dtype == 'float32' and targets.float32_products(precision()) is None
    return full and targets.platform() == 'cuda'


def best_tile(encoding, width: int, dtype: str) -> tuple[int, int] | None:
    """Queries and keys per tile with which the compiler of the device makes the fastest kernel, by
    `compiled.csv`; None where that has no line. A line answers for narrower heads, but not for
    several parts that make logits, since each part needs room of its own. On a GPU, products in
    full float32 have a tile of their own, whatever the encoding.

    Args:
      encoding: of the attention.
      width: of a head or of its values, whichever is wider.
      dtype: of the queries.
    """
    if in_full_float32(dtype):
        return FULL_TILES[width > 64]
    if (device := targets.device()) is None:
        return None
    from posenc_jax.attention.kernels import compiled

    name, *more = compiled.names(encoding)
    line = None if more else compiled.line_for(name, width, dtype, device)
    return None if line is None or line.refused else line.sides


def sizes(target: str, widths, batch: int, queries: int, keys: int, block=None) -> tuple[int, int]:
    """Queries and keys per tile.

    Args:
      target: what the kernel is made for.
      widths: of a head, and of its values.
      batch, queries, keys: how many rows, queries and keys there are.
      block: the choice of the caller, or None.

    Raises:
      NoKernelError: a tile or a width that these kernels cannot take, or a number that is not
        known.
    """
    if not all(isinstance(n, int) for n in (batch, queries, keys)):
        raise NoKernelError(f'needs known sizes, got {batch} rows, {queries} queries, {keys} keys')
    if target in targets.INTERPRETED:
        found, enough = map(powers, (block or (16, 16), (queries, keys)))
        return min(found[0], enough[0]), min(found[1], enough[1])
    # The matrix units of a GPU take 16 rows or more; those of a TPU read whole lanes.
    power = lambda n: n >= 16 and n & (n - 1) == 0
    if target == 'cuda':
        of_width = of_block = 'a power of two of at least 16', power
        least, usual = 16, GPU_TILES[0]
    else:
        of_width = 'a multiple of 8', lambda n: n % 8 == 0
        of_block = 'a multiple of 128', lambda n: n % 128 == 0
        least, usual = 128, (TPU_SIDES[0],) * 2
    for name, n in zip(('head width', 'width of values'), widths):
        if not of_width[1](n):
            raise NoKernelError(f'needs a {name} that is {of_width[0]}, got {n}')
    for n in block or ():
        if not of_block[1](n):
            raise NoKernelError(
                f'needs a block that is {of_block[0]}, got {n}', 'give such a block'
            )
    enough = [max(least, n) for n in powers((queries, keys))]
    found = block or usual
    return min(found[0], enough[0]), min(found[1], enough[1])
