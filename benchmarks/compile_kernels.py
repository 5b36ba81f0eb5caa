"""What the compilers of GPUs and TPUs make of attention kernels, on a machine that has neither.

The command prints a table in Markdown: registers, spilled bytes, shared memory, instructions of a
tile, products on tensor cores and asynchronous copies on a GPU; bundles of a tile on a TPU. On a
GPU the tile is one that needs no mask, where the kernel has a loop of its own for such tiles. Each
cell has the numbers of the kernels forward / dq / dkv, and those of the kernel of carries. Each
encoding is compiled in a process of its own, because compilers end their process where they fail.

    pip install --no-deps --target compilers -r requirements/compilers.txt
    export PYTHONPATH=.:compilers
    python benchmarks/compile_kernels.py --targets sm_90 --specs 'nope()' 'rope() | alibi()'
    python benchmarks/compile_kernels.py --targets v5e --units --keys splash nope alibi
    python benchmarks/compile_kernels.py --targets sm_90a  # the kernel for Hopper, forward alone
    python benchmarks/compile_kernels.py --steps  # train steps for a GPU and four TPUs: memory
    python benchmarks/compile_kernels.py --keys --targets sm_80 v5p --widths 64 128 --write
    python benchmarks/compile_kernels.py --recorded  # the table, as docs/performance.md has it
    python benchmarks/compile_kernels.py --check  # eleven kernels and a step, against the table

With --write the lines go to `posenc_jax/attention/kernels/compiled.csv`, which `attend` reads; with
--new only those that it lacks. A tile takes 5 to 30 s of processor time. For a TPU two tiles are
compiled, and for a GPU three. The line is that of the tile with the fewest bundles for a pair of a
query and a key, or with the shortest time by the model of an H100.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
import sys

if __name__ == '__main__':  # before JAX is imported
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
from flax import nnx

import posenc_jax as pj
from benchmarks import kernel_table
from benchmarks.compilers import children, gpu, hopper, steps, tpu
from benchmarks.compilers.recorded import CHECKED, model, page, worse
from posenc_jax.attention import policy
from posenc_jax.attention.kernels import compiled
from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.attention.kernels.compiled import PASSES, SPLASH, Compiled
from tests import contract_test

LENGTH = 2048
SECONDS = 120  # of processor time for an encoding, unless asked otherwise
# A few encodings of each class.
REPRESENTATIVES = (
    'nope()', 'window(size=1024)', 'alibi()', 'kerple()', 'fire()', 'transformer_xl()', 't5_rpe()',
    'shaw()', 'cope()', 'path()',
)  # fmt: skip
SHOWN = [spec.partition('(')[0] for spec in REPRESENTATIVES]
# Examples whose tables are too small for texts of LENGTH tokens.
ENLARGED = {
    'learned_absolute': 'learned_absolute(max_len=2048)',
    'sigma_gpt': 'sigma_gpt(max_len=8192)',
    'positional_attention': 'positional_attention(max_len=2048)',
    'seqpe': 'seqpe(max_pos=8192)',
    'tupe': 'tupe(max_len=2048)',
    'randomized_pe': 'randomized_pe(max_len=8192, eval_len=4096) | rope()',
}


# The tiles from which a line is chosen.
TILES = dict.fromkeys(compiled.SHARED, kernel_sizes.GPU_TILES) | {compiled.HOPPER: [hopper.TILE]}
TILES |= {target: [(side, side) for side in kernel_sizes.TPU_SIDES] for target in tpu.TOPOLOGIES}
# Train steps: the encoding, and how attention is computed; and the one that --check compiles.
STEPS = (('alibi()', 'blocked'), ('alibi()', 'fused'), ('t5_rpe()', 'fused'))
CHECKED_STEP = 'alibi()', 'sm_90', 'fused'


def is_tpu(target: str) -> bool:
    return target in tpu.TOPOLOGIES


def compilers(target: str):
    """The module that asks the compilers of a target."""
    return tpu if is_tpu(target) else hopper if target == compiled.HOPPER else gpu


def of(key: str, spec: str, width: int, dtype: str, target: str, block, seconds: int, **changes):
    """A line of the table, and for each kernel of a TPU the operations of each unit for a tile; or
    why there is no program for a compiler.

    Args:
      key: what the line calls the encoding.
      block: queries and keys of a tile. None is the tile with the least work for a pair among those
        of the target: bundles on a TPU, and modelled time on a GPU.
      seconds: of processor time that the compilers have.
      **changes: other arguments of `kernel_table.attention`.
    """
    if block is None:
        ask = functools.partial(of, key, spec, width, dtype, target, seconds=seconds, **changes)
        found = (ask(block=tile) for tile in TILES[target])
        return min(found, key=_of_pair)
    sizes = dict(
        rows=1, length=LENGTH, width=width, dtype=jnp.dtype(dtype), block=block,
        model=kernel_table.HEADS * width, kv_heads=kernel_table.HEADS,
    ) | changes  # fmt: skip
    on, environment = compilers(target), tpu.environment(target) if is_tpu(target) else {}
    platform = 'tpu' if is_tpu(target) else 'cuda'
    tile = kernel_sizes.sizes(platform, (width, width), 1, LENGTH, LENGTH, block)
    if on is hopper:  # which has one tile, whatever is asked for
        tile = hopper.TILE
    line = functools.partial(
        Compiled, key, width, dtype, target, 'x'.join(map(str, tile)), compilers=on.releases()
    )
    try:
        found = children.call(
            functools.partial(on.kernels, key.partition('(')[0], spec, target, **sizes),
            seconds=seconds, environment=environment,
        )  # fmt: skip
    except children.NotLowered as error:
        return f'{key}, {target}: {error}', {}
    except children.Refused as error:
        return line(refused=str(error).splitlines()[0][:200]), {}
    kernels = [found[name] for name in PASSES if name in found]
    names = [field.name for field in dataclasses.fields(Compiled) if field.name in kernels[0]]
    numbers = {name: tuple(kernel[name] for kernel in kernels) for name in names}
    units = {name: kernel['units'] for name, kernel in found.items() if 'units' in kernel}
    return line(**numbers), units


def _of_pair(found) -> tuple[bool, float]:
    """Whether the loop of the forward pass in what `of` gives waits for spilled registers; and the
    bundles of a pair of a query and a key, or the modelled time.
    """
    line, _ = found
    if isinstance(line, str) or line.refusal(slow=False):
        return True, math.inf
    work = sum(line.bundles) / math.prod(line.sides) if line.bundles else sum(model(line))
    return any(line.local[:1]), work


def examples(keys) -> list[tuple[str, str]]:
    """The key and the spec of encodings. Without keys these are all but those that end with the
    token stage, whose kernel is that of `nope`. The key 'splash' is the kernel of JAX for TPUs.
    """
    cards = [e for e in contract_test.ENTRIES if e not in contract_test.OPTIONAL]
    known = {entry.key: entry for entry in cards if entry.kind == 'encoding'}
    if not keys:
        own = [key for key in known if not contract_test.has_plain_pairs(known[key])]
        keys = [*SHOWN, *(key for key in own if key not in SHOWN)]
    spec = lambda key: key if key == SPLASH else ENLARGED.get(key) or _usual(known[key])
    return [(key, spec(key)) for key in keys]


def _usual(entry) -> str:
    """An encoding with its defaults, which make larger tables than those of the example of its
    Card; that example, where an argument has no default.
    """
    if entry.key in contract_test.PLACED:  # by positions that fit the example
        return entry.card.example
    spec = f'{entry.key}()'
    try:
        jax.eval_shape(lambda: nnx.state(pj.make(spec, rngs=nnx.Rngs(0), **kernel_table.SIZES)))
    except (TypeError, ValueError):
        return entry.card.example
    return spec


def class_of(key: str) -> str:
    """The class of an encoding with its defaults, as `attend` finds it."""
    length, heads, width = 8, kernel_table.HEADS, kernel_table.WIDTH
    ((_, spec),) = examples([key])
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **kernel_table.SIZES)
    q, tok = jnp.zeros((1, length, heads, width)), pj.Tokens.of(length=length)
    x = jnp.zeros((1, length + encoding.lookback, kernel_table.MODEL))
    return policy.class_of(encoding, *encoding.project(q, q, q, tok, tok, x))


def tile(text: str) -> tuple[int, int]:
    """Queries and keys of a tile from '128x64', or from '64' for as many of both."""
    queries, _, keys = text.partition('x')
    return int(queries), int(keys or queries)


def table(lines) -> list[str]:
    """Lines of Markdown for lines of the table."""
    shown = [
        name for name in (field.name for field in dataclasses.fields(Compiled))
        if name not in ('encoding', 'width', 'dtype', 'target', 'compilers')
        and any(getattr(line, name) for line in lines)
    ]  # fmt: skip
    rows = [f'| kernel | {" | ".join(shown)} |', '|---' * (len(shown) + 1) + '|']
    for line in lines:
        name = f'`{line.encoding}` H{line.width} {line.dtype}, {line.target}'
        rows.append(f'| {name} | {" | ".join(compiled.cell(getattr(line, n)) for n in shown)} |')
    return rows


def units_table(units) -> list[str]:
    """Lines of Markdown for the operations of the units of a TPU, by kernel."""
    names = list(next(iter(units.values()), {}))
    rows = [f'| kernel | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
    return rows + [f'| {k} | {" | ".join(map(str, u.values()))} |' for k, u in units.items()]


def check(seconds: int, processes: int) -> None:
    """Compiles `CHECKED` and a train step, and ends with status 1 where something is worse than the
    table says.
    """
    recorded = compiled.table()
    specs = dict(examples([key for key, *_ in CHECKED]))
    ask = lambda job: of(job[0], specs[job[0]], *job[1:], recorded[job].sides, seconds)[0]
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        lines = list(pool.map(ask, CHECKED))
    bad = 0
    for line in lines:
        before = recorded[line.key]
        if before.compilers != line.compilers:
            print(f'{line.key}: not compared, the table has {before.compilers}')
            continue
        found = worse(line, before)
        bad += bool(found)
        print(f'{line.key}: {"; ".join(found) or "as recorded"}')
    spec, target, how = CHECKED_STEP
    try:
        many = children.call(steps.memory, spec, target, how, seconds=4 * seconds)['kernels']
    except (children.Refused, children.NotLowered) as error:
        sys.exit(f'a train step of {spec}, {target}: {error}')
    lacks = many < len(PASSES) - 1
    print(f'a train step of {spec}, {target}: {many} kernels{", lacks some" * lacks}')
    sys.exit(bad > 0 or lacks)


def whole_steps(targets, seconds: int) -> None:
    """Prints the memory of train steps."""
    print(
        '| step | target | arguments, MiB | temporary, MiB | kernels |',
        '|---|---|---|---|---|',
        sep='\n',
    )
    for (spec, how), target in itertools.product(STEPS, targets):
        environment = tpu.environment(target) if is_tpu(target) else {}
        try:
            found = children.call(
                steps.memory, spec, target, how, seconds=seconds, environment=environment
            )
            cells = [f'{n:,.0f}' for n in found.values()]
        except children.Refused as error:
            cells = [str(error).replace('|', '/'), '', '']
        print(f'| `{spec}`, {how} | {target} | {" | ".join(cells)} |', flush=True)


def arguments() -> argparse.Namespace:
    """The options of the command, or one line about a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    targets = [*compiled.SHARED, *tpu.TOPOLOGIES]
    add('--targets', nargs='+', choices=targets, help='sm_90; of --steps sm_90 and v5e')
    add('--specs', nargs='+', metavar='SPEC', help='what to compile; by default representatives')
    add('--keys', nargs='*', help='encodings with their defaults; all where no key follows')
    add('--widths', type=int, nargs='+', default=[128], help='of heads')
    add('--dtypes', nargs='+', default=['bfloat16'], choices=['bfloat16', 'float32', 'float16'])
    add('--block', type=tile, nargs='+', default=[None], help='128x64, or 64 for 64x64: a tile')
    add('--packed', action='store_true', help='rows of two documents and padding')
    add('--kv-heads', type=int, choices=[1, 2, 4], help='for four heads of queries')
    add(
        '--precision', help="of products of float32: 'highest', as for jax.default_matmul_precision"
    )
    add('--seconds', type=int, default=SECONDS, help='of processor time for an encoding')
    add('--processes', type=int, default=1, help='at a time')
    add('--units', action='store_true', help='operations of each unit of a TPU')
    add('--steps', action='store_true', help='whole train steps')
    add('--recorded', action='store_true', help='prints what the table has, as a page')
    add('--check', action='store_true', help='eleven lines and a train step against the table')
    add('--new', action='store_true', help='leaves out what the file has')
    add('--write', action='store_true', help=f'writes the lines to {compiled.PATH.name}')
    options = parser.parse_args()
    options.changes = {
        name: value
        for name in ('kv_heads', 'precision', 'packed')
        if (value := vars(options)[name])
    }
    if options.write and (options.keys is None or options.block != [None] or options.changes):
        parser.error('--write needs --keys alone besides targets, widths and dtypes')
    if options.targets is None:
        options.targets = ['sm_90', 'v5e'] if options.steps else ['sm_90']
    needed = {target for *_, target in CHECKED} if options.check else options.targets
    for target in () if options.recorded else needed:
        if absent := compilers(target).missing():
            parser.error(f'{target} needs {absent}; requirements/compilers.txt has it')
    return options


def main():
    options = arguments()
    if options.recorded:
        return print(*page({key: class_of(key) for key in SHOWN}), sep='\n')
    if options.check:
        check(options.seconds, options.processes)
    if options.steps:
        return whole_steps(options.targets, options.seconds)
    asked = [(spec, spec) for spec in options.specs or REPRESENTATIVES]
    if options.keys is not None:
        asked = examples(options.keys)
    rest = options.widths, options.dtypes, options.targets, options.block
    jobs, known = list(itertools.product(asked, *rest)), dict(compiled.table())
    if options.new:
        jobs = [job for job in jobs if (job[0][0], *job[1:4]) not in known]
    lines, units = [], {}
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        ask = functools.partial(of, seconds=options.seconds, **options.changes)
        waits = [pool.submit(ask, *example, *job) for example, *job in jobs]
        for wait in concurrent.futures.as_completed(waits):
            line, own = wait.result()
            if isinstance(line, str):
                print(line, flush=True)
                continue
            lines.append(line)
            name = table([line])[2].split('|')[1].strip()
            for kernel, use in own.items():
                bundles = line.bundles[PASSES.index(kernel)]
                units[f'{name}, {line.tile}, {kernel}'] = use | dict(bundles=f'{bundles:g}')
            if options.write:
                compiled.write([line])
                print(*table([line])[2:], flush=True)
    if lines and not options.write:
        print(*table(lines), sep='\n')
    if options.units:
        print('', *units_table(units), sep='\n')


if __name__ == '__main__':
    main()
