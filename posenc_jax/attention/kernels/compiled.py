"""The reports of compilers on the kernels of encodings: `compiled.csv`, a line for each kernel.

`benchmarks/compile_kernels.py` writes that file. `attend` reads it, so that `'fused'` does not take
a kernel that a device has no room for or that waits for its own memory most of the time.
"""

import csv
import dataclasses
import functools
import math
import pathlib
from typing import Any

from posenc_jax.base import targets
from posenc_jax.protocol.composite import name_of, parts_of

PATH = pathlib.Path(__file__).with_name('compiled.csv')
HOPPER = 'sm_90a'  # the kernel for Hopper, which that architecture alone has
# What a block of threads may have of the shared memory of a GPU, in KiB.
SHARED = {'sm_80': 163, 'sm_90': 227, HOPPER: 227}
# Bytes of each thread that the kernels of the forward and of the backward pass may spill.
_MOST_SPILLS = 1024, 8192, 8192
_LISTED_TPU = 'v5e'  # whose lines say how slow kernels are on other TPUs
# The lines of JAX's own kernel for TPUs, and how many times its bundles a kernel may have.
SPLASH, MOST_BUNDLES = 'splash', 2.5
# The kernels of an encoding, in the order of the numbers of a line. The last one is that of
# encodings with a carry.
PASSES = 'forward', 'dq', 'dkv', 'carries'
Numbers = tuple[float, ...]  # one for each kernel; none where the compiler has no such number


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler said of the kernels of attention with an encoding.

    Attributes:
      encoding: its registry key, or 'splash', which is JAX's own kernel for TPUs.
      width: of a head.
      dtype: of queries, keys and values.
      target: 'sm_80' or 'sm_90', which are GPUs; 'sm_90a', the kernel for Hopper, which has a
        forward pass alone; 'v5e' or 'v5p', which are TPUs.
      tile: queries and keys of a tile; where nothing compiled, those of the smallest one tried.
      warps: of a block of threads of a GPU, each of 32 threads.
      registers: of a thread of a GPU.
      spills: bytes that a thread of a GPU spills; vectors that a visit of a TPU writes and reads
        for lack of registers.
      shared: memory of a GPU that the threads of a block share, in KiB.
      loop: instructions of a GPU for one tile, without a mask where such tiles have a loop of their
        own. Those of a loop in it count as often as it runs.
      other: the same as loop for the other tiles, which need a mask or look-ups.
      others: how many of these tiles a block of queries meets at most in a long causal text, 0
        where there is one loop for all.
      local: instructions of `loop` that write or read spilled registers.
      inner: instructions of a GPU or bundles of a TPU that are in such loops.
      tensor: products on tensor cores for one tile.
      copies: asynchronous copies to shared memory.
      serial: 1 where the products of a GPU of type sm_90 wait for each other.
      bundles: of a TPU for one tile. Those of a loop in it count as often as it runs.
      refused: why the compiler compiled nothing, or nothing.
      compilers: their names and releases; and 'of earlier kernels' where a kernel was changed since
        they were asked about it.
    """

    encoding: str
    width: int
    dtype: str
    target: str
    tile: str = ''
    warps: Numbers = ()
    registers: Numbers = ()
    spills: Numbers = ()
    shared: Numbers = ()
    loop: Numbers = ()
    other: Numbers = ()
    others: Numbers = ()
    local: Numbers = ()
    inner: Numbers = ()
    tensor: Numbers = ()
    copies: Numbers = ()
    serial: Numbers = ()
    bundles: Numbers = ()
    refused: str = ''
    compilers: str = ''

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.encoding, self.width, self.dtype, self.target

    @property
    def sides(self) -> tuple[int, int]:
        """Queries and keys of a tile, as numbers."""
        queries, keys = map(int, self.tile.split('x'))
        return queries, keys

    def over_splash(self) -> float | None:
        """The bundles of all passes for a pair of a query and a key, over those of splash attention
        on the same TPU with heads of the same width; None where there is no such line.
        """
        splash = table().get((SPLASH, self.width, self.dtype, self.target))
        if splash is None or not self.bundles:
            return None
        of_pair = lambda line: sum(line.bundles) / math.prod(line.sides)
        return of_pair(self) / of_pair(splash)

    def refusal(self, slow: bool = True) -> str | None:
        """Why a device cannot run this kernel, or where `slow` is true, why it is slow, because it
        waits for its own memory or has too many bundles; None if neither is so.
        """
        where = f'{self.encoding} with heads of width {self.width} in {self.dtype} on {self.target}'
        if self.refused:
            return f'does not compile for {where}: {self.refused}'
        there = SHARED.get(self.target)
        if there and self.shared and max(self.shared) > there:
            return (
                f'would need {max(self.shared):g} KiB of shared memory for {where}, which has '
                f'{there} KiB'
            )
        if slow and there:
            for name, spilled, most in zip(PASSES, self.spills, _MOST_SPILLS):
                # What is spilled in rare tiles alone does no harm to the forward pass.
                often = name != 'forward' or not self.local or self.local[0]
                if spilled > most and often:
                    of = f'{spilled:g} bytes of each thread'
                    return f'would spill {of} for {where}, more than {most}'
        if slow and (times := self.over_splash() or 0) > MOST_BUNDLES:
            return (
                f'would take {times:.1f} times the bundles of splash attention for {where}, more '
                f'than {MOST_BUNDLES}'
            )
        return None


@functools.cache
def table(path: pathlib.Path | None = None) -> dict[tuple[str, int, str, str], Compiled]:
    """The lines of the file, by their encoding, width, dtype and target."""
    with (path or PATH).open(newline='') as file:
        found = [_read(line) for line in csv.DictReader(file)]
    return {line.key: line for line in found}


def write(lines, path: pathlib.Path | None = None) -> None:
    """Writes lines into the file, in the place of those of the same kernels."""
    table.cache_clear()
    found = table(path) | {line.key: line for line in lines}
    order = lambda line: (line.target, line.dtype, line.encoding, line.width)
    with (path or PATH).open('w', newline='') as file:
        names = [field.name for field in dataclasses.fields(Compiled)]
        rows = csv.DictWriter(file, names, lineterminator='\n')
        rows.writeheader()
        for line in sorted(found.values(), key=order):
            rows.writerow({name: cell(getattr(line, name)) for name in names})
    table.cache_clear()


def _read(line: dict[str, str]) -> Compiled:
    values: dict[str, Any] = {**line, 'width': int(line['width'])}
    for field in dataclasses.fields(Compiled):
        if field.type == Numbers:
            text = line[field.name]
            values[field.name] = tuple(map(float, text.split('/'))) if text else ()
    return Compiled(**values)


def cell(value) -> str:
    """A value as text."""
    return '/'.join(f'{n:g}' for n in value) if isinstance(value, tuple) else str(value)


def names(encoding) -> list[str]:
    """The registry keys of the parts of an encoding whose kernels the file would list: those that
    change logits or how values are summed, or 'nope' where none does.
    """
    changes = lambda part: part.opens('logits') or part.opens('collect')
    return [name_of(part) for part in parts_of(encoding) if changes(part)] or ['nope']


def line_for(encoding_key: str, width: int, dtype: str, target: str | None) -> Compiled | None:
    """The line that answers for heads of this width: that of the narrowest heads that are no
    narrower; None if there is none.

    Args:
      encoding_key, dtype, target: as for `refusal`.
    """
    key = encoding_key, _stored(dtype), target
    lines = [
        line for line in table().values()
        if (line.encoding, line.dtype, line.target) == key and line.width >= width
    ]  # fmt: skip
    return min(lines, key=lambda line: line.width, default=None)


def _stored(dtype: str) -> str:
    """The dtype of the lines that answer for a dtype. float16 has the size of bfloat16."""
    return 'bfloat16' if dtype == 'float16' else dtype


def refusal(
    encoding_key: str,
    head_dim: int,
    dtype: str,
    target: str | None,
    tile: tuple[int, int],
    slow: bool = True,
) -> str | None:
    """Why `'fused'` must not take the kernel of an encoding, with 'a kernel' as its subject; None
    if it fits or if nothing is known.

    Args:
      encoding_key: the registry key.
      head_dim: the width of a head. What a narrower head has no room for, a wider one has none for
        either. On a TPU a line of wider heads also says how slow narrower ones are, and one of
        bfloat16 or of a v5e how slow kernels of other dtypes and TPUs are.
      dtype: the name of the dtype of the queries. float16 has the size of bfloat16.
      target: as in `Compiled`; None for an unknown device.
      tile: queries and keys. What a smaller tile has no room for, a larger one has none for either.
      slow: also refuses kernels that fit and are slow, as in `Compiled.refusal`.
    """
    dtype = _stored(dtype)
    known = [
        line for line in table().values()
        if (line.encoding, line.dtype, line.target) == (encoding_key, dtype, target)
        and line.width <= head_dim
        and all(own >= listed for own, listed in zip(tile, line.sides))
    ]  # fmt: skip
    if slow and target in targets.TPUS.values():
        like = (dtype, target), ('bfloat16', target), ('bfloat16', _LISTED_TPU)
        lines = (line_for(encoding_key, head_dim, *of) for of in like)
        known += [line for line in lines if line and line.bundles][:1]
    found = [
        why for line in sorted(known, key=lambda line: line.width) if (why := line.refusal(slow))
    ]
    return found[-1] if found else None
