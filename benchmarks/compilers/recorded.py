"""The table of what compilers said: a page for docs/performance.md, and what is worse than it."""

import math
import re

from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.kernels.compiled import PASSES, Compiled

# What --check compiles: key, head width, dtype, target.
CHECKED = (
    ('nope', 128, 'bfloat16', 'sm_90'),
    ('alibi', 128, 'bfloat16', 'sm_90'),
    ('alibi', 128, 'bfloat16', 'sm_90a'),
    ('kerple', 64, 'bfloat16', 'sm_90'),
    ('t5_rpe', 64, 'bfloat16', 'sm_90'),
    ('nope', 128, 'bfloat16', 'sm_80'),
    ('alibi', 128, 'bfloat16', 'sm_80'),
    ('fire', 64, 'bfloat16', 'sm_80'),
    ('nope', 128, 'bfloat16', 'v5e'),
    ('alibi', 128, 'bfloat16', 'v5e'),
    ('t5_rpe', 64, 'bfloat16', 'v5e'),
)


# How many times the bundles of splash attention, of all passes, an encoding may have on a TPU.
GOALS = {'nope': 1.2, 'alibi': 1.2, 't5_rpe': 1.6, 'kerple': 1.6, 'fire': 1.6}


def worse(line: Compiled, recorded: Compiled) -> list[str]:
    """What is worse in a line than in the recorded one: more than a tenth of instructions, bundles
    or spills, any more shared memory, or no products on tensor cores or asynchronous copies; and on
    a TPU, more bundles than the goal.
    """
    if line.refused:
        return [line.refused]
    found, times = [], line.over_splash()
    if times is not None and times > (most := GOALS.get(line.encoding, compiled.MOST_BUNDLES)):
        found.append(f'bundles: {times:.2f} times those of splash attention, goal {most}')
    for name, most in dict(loop=1.1, bundles=1.1, spills=1.1, shared=1.0).items():
        for kernel, now, before in zip(PASSES, getattr(line, name), getattr(recorded, name)):
            if now > max(most * before, before + 16 * (name == 'spills')):
                found.append(f'{name} of {kernel}: {now:g}, recorded {before:g}')
    for kernel, now in zip(PASSES, line.tensor):
        if not now and kernel != 'carries':
            found.append(f'{kernel} has no products on tensor cores')
    for kernel, now, before in zip(PASSES, line.copies, recorded.copies):
        if before and not now:
            found.append(f'{kernel} has no asynchronous copies')
    return found


# Products of matrices for a tile, by kernel.
_PRODUCTS = {'forward': 2, 'dq': 3, 'dkv': 4, 'carries': 1}
# An H100: cycles a second, and cores, each of which runs one instruction of four warps, or so many
# multiplications and additions of bfloat16 on its tensor cores, in a cycle. The factor was fitted
# to two measured times of the Triton attention of JAX, where it was 1.24 and 1.26.
_CYCLES, _CORES, _FLOPS, _FACTOR = 1.755e9, 132, 4096, 1.25


def model(line: Compiled, length: int = 8192, heads: int = 32) -> tuple[float, ...]:
    """Milliseconds of the forward pass of causal attention on an H100, and of the backward pass
    where it has kernels, by a model.

    Args:
      line: of the target sm_90 or sm_90a. With a line of sm_80 the result only compares tiles,
        since an A100 has other cores.
      length: of queries and of keys.
      heads: of all rows of the batch.
    """
    queries, keys = line.sides
    rows, columns = length // queries, length // keys
    tiles = heads * (rows * columns + max(rows, columns)) / 2
    times = {}
    others = line.others or (0,) * len(line.loop)
    for kernel, loop, other, many, warps in zip(
        PASSES, line.loop, line.other or line.loop, others, line.warps
    ):
        work = _PRODUCTS[kernel] * 2 * queries * keys * line.width / _FLOPS
        share = min(1, heads * rows * many / tiles)
        run = share * other + (1 - share) * loop
        cycles = _FACTOR * (run * warps / 4 + work)
        times[kernel] = tiles * cycles / (_CORES * _CYCLES) * 1e3
    forward = times.pop('forward')
    return (forward, sum(times.values())) if times else (forward,)


def page(classes: dict[str, str]) -> list[str]:
    """Lines of Markdown: what the table says of some encodings, and what it refuses.

    Args:
      classes: the keys of the encodings, each with its class.
    """
    lines = [line for line in compiled.table().values() if line.dtype == 'bfloat16']
    order = list(classes)
    shown = sorted(
        (a for a in lines if a.encoding in classes), key=lambda a: order.index(a.encoding)
    )
    found = []
    for target in ('sm_90', 'sm_90a', 'sm_80'):
        columns = 'tile', 'registers', 'spills', 'shared', 'loop', 'other', 'inner', 'copies'
        modelled = ['model, ms'] * (target != 'sm_80')
        found += [f'| {target} | class | {" | ".join((*columns, *modelled))} |']
        found += ['|---' * (2 + len(columns) + len(modelled)) + '|']
        for line in shown:
            if line.target == target and not line.refused:
                times = [' / '.join(f'{ms:.1f}' for ms in model(line))] * len(modelled)
                cells = [compiled.cell(getattr(line, name)) for name in columns]
                found += [_row(line, classes, [*cells, *times])]
        found += ['']
    for target in ('v5e', 'v5p'):
        columns = 'tile', 'bundles', 'inner', 'spills'
        found += [f'| {target} | class | {" | ".join(columns)} | over splash | goal |']
        found += ['|---' * 8 + '|']
        for line in shown:
            if line.target == target and not line.refused:
                goal = GOALS.get(line.encoding, compiled.MOST_BUNDLES)
                ends = [f'{line.over_splash() or math.nan:.2f}x', f'{goal}x']
                cells = [compiled.cell(getattr(line, name)) for name in columns]
                found += [_row(line, classes, [*cells, *ends])]
        found += ['', *_all_over_splash(lines, target)]
    for target in ('sm_90', 'sm_90a', 'sm_80', 'v5e', 'v5p'):
        ours = [line for line in lines if line.target == target and line.refusal()]
        ours = [f'`{line.encoding}` H{line.width} ({_cause(line)})' for line in ours]
        found += [f'Refused on {target}: {", ".join(ours) or "nothing"}.', '']
    return found


def _all_over_splash(lines, target: str, width: int = 128) -> list[str]:
    """A line with the bundles of every encoding over those of splash attention."""
    own = [line for line in lines if (line.target, line.width) == (target, width)]
    times = {line.encoding: t for line in own if (t := line.over_splash())}
    times.pop(compiled.SPLASH)
    cells = [f'`{key}` {times[key]:.2f}x' for key in sorted(times, key=times.__getitem__)]
    return [f'Over splash attention on {target}, heads of width {width}: {", ".join(cells)}.', '']


def _cause(line: Compiled) -> str:
    if line.refused:
        return line.refused.splitlines()[0][:80]
    if line.bundles:
        return f'{line.over_splash():.1f}x of splash'
    if max(line.shared) > compiled.SHARED[line.target]:
        return f'{max(line.shared):g} KiB'
    spilled = re.search(r'would spill (\d+)', line.refusal() or '')
    return f'{spilled[1] if spilled else 0} bytes spilled'


def _row(line: Compiled, classes: dict[str, str], cells: list[str]) -> str:
    kernel = f'`{line.encoding}` H{line.width}'
    return f'| {kernel} | {classes[line.encoding]} | {" | ".join(cells)} |'
