"""Which encodings have attention kernels: those whose kernels lower for an accelerator.

The command prints tables in Markdown: attention of every encoding, and a decoder of 12 layers, with
its gradients, on a mesh of 8 devices. Nothing is run, so no accelerator is needed, and nothing is
timed. 'lowers' means that JAX makes the program of the accelerator's compiler; that compiler may
still refuse it. With --compile that compiler is asked, which needs no TPU either.

    PYTHONPATH=. python benchmarks/kernel_table.py                        # minutes on two cores
    PYTHONPATH=. python benchmarks/kernel_table.py --keys shaw alibi --models 'rope()'
    PYTHONPATH=. python benchmarks/kernel_table.py --errors              # interpreted kernels
    PYTHONPATH=. python benchmarks/kernel_table.py --compile --keys shaw alibi
    PYTHONPATH=. python benchmarks/kernel_table.py --compile 60 --specs 'seqpe(max_pos=2048)' \
        --length 65536 --width 128 --dtype bfloat16

With --errors it prints how much interpreted kernels, of a GPU and of a TPU, differ from the blocked
form instead: the largest difference of results and gradients, over the largest entry of the array
where that is above 1, in float32 and in bfloat16.

With --compile it prints what the compiler of a TPU v5e says of attention, forward and backward:
'compiles', the beginning of the refusal, or that it did not end within some seconds of processor
time (20, or the number behind --compile). `pip install libtpu` brings the compiler. Each program is
compiled in a process of its own, one after the other.
"""

import argparse
import importlib.util
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding

import posenc_jax as pj
from posenc_jax.base.targets import INTERPRETED, made_for
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.sharding import MESH_AXES, param_shardings, spec_of
from posenc_jax.testing.subject import project
from tests import contract_test

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH, MODEL = 2, 64, 4, 2, 64, 64
SIZES = dict(heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH, model_dim=MODEL, train_len=LENGTH)
PLATFORMS = 'cuda', 'tpu'
LOWERS, COMPILES = 'lowers', 'compiles'
# With these settings libtpu compiles on a machine without a TPU, also while another process has
# loaded it.
TOPOLOGY = 'v5e:2x2'
HOST = dict(
    JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-4',
    TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1',
)  # fmt: skip
# Nothing in the pair stage, a bias, tables, an MLP, a carry, tables by vector.
MODELS = 'rope()', 'alibi()', 't5_rpe()', 'fire()', 'cope(npos=16)', 'shaw()'
# A model that is no decoder -> its encoding and other fields.
OTHER_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    'encoder': ('alibi_symmetric()', {}),
    'encoder_decoder': ('alibi()', dict(source_size=64, source_len=LENGTH)),
}
MESH = dict(data=2, fsdp=1, tensor=2, sequence=2)


def attention(
    key: str,
    spec: str,
    platform: str,
    backward: bool,
    dtype=jnp.float32,
    rows: int = ROWS,
    length: int = LENGTH,
    width: int = WIDTH,
    block: int | tuple[int, int] | None = None,
    model: int = MODEL,
    kv_heads: int = KV_HEADS,
    implementation: str = 'kernel',
    device: str | None = None,
    precision: str | None = None,
    packed: bool = False,
):
    """A function that computes attention by kernels for a platform, and its arguments.

    Args:
      key: of the encoding, for which `contract_test.PLACED` may have positions.
      backward: the function computes gradients.
      rows, length, width: of the batch, of the sequences, and of the heads.
      block: as for `attend`.
      model: width of the layer's input.
      kv_heads: of keys and values, for four heads of queries.
      implementation: as for `attend`, a kernel.
      device: as for `targets.made_for`.
      precision: of products of float32, as for `jax.default_matmul_precision`.
      packed: each row has two documents and padding, and the encoding has the mask of documents.
    """
    if key == 'longrope':  # it has one factor for each plane, and the example has four planes
        more = lambda found: f'({", ".join([found[1]] * (width // 8))})'
        spec = re.sub(r'\(([\d., ]+)\)', more, spec, count=2)
    if key == 'longrope2':  # likewise, for the planes from the third on
        spec = spec.replace('(4.0, 5.0)', f'(4.0, {"5.0, " * (width // 2 - 3)})')
    sizes = SIZES | dict(head_dim=width, train_len=length, model_dim=model, kv_heads=kv_heads)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **sizes)
    if packed:
        encoding = pj.chain(encoding, pj.make('document()'))
    if key in contract_test.PLACED:
        encoding = pj.chain(contract_test.PLACED[key](), encoding)
    graphdef, params, constants = nnx.split(encoding, nnx.Param, ...)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
    heads = dict(q=HEADS, k=kv_heads, v=kv_heads)
    weights = {name: shape(model, count, width) for name, count in heads.items()}

    def run(params, constants, weights, x):
        encoding = nnx.merge(graphdef, params, constants)
        tok = pj.Tokens.of(length=length)
        if packed:
            at = np.broadcast_to(np.arange(length), (rows, length))
            tok = pj.Tokens.of(segment=at * 2 // length, valid=at < length - 8)
        projected = project(encoding, weights, x, tok)
        with made_for(platform, device), jax.default_matmul_precision(precision):
            how: dict = dict(implementation=implementation, block=block, applied=pj.TOKEN_STAGE)
            return pj.attend(encoding, *projected, **how).astype(jnp.float32).sum()

    run = jax.grad(run, (0, 2, 3)) if backward else run
    return run, (params, constants, weights, shape(rows, length, model))


def lowering(key: str, spec: str, platform: str) -> str:
    """'lowers', or which pass of attention does not, and why."""

    def of(backward: bool) -> str:
        block = 32 if platform == 'cuda' else None  # several blocks where they may be small
        run, arguments = attention(key, spec, platform, backward, block=block)
        return tried(lambda: jax.jit(run).trace(*arguments).lower(lowering_platforms=(platform,)))

    if (found := of(backward=True)) == LOWERS:  # gradients need the forward pass too
        return LOWERS
    forward = of(backward=False)
    return f'backward: {found}' if forward == LOWERS else f'forward: {forward}'


def tried(run: Callable, done: str = LOWERS) -> str:
    """`done`, or why it is not."""
    try:
        run()
    except Exception as error:  # JAX raises many kinds
        return reason(str(error))
    return done


def compiling(key: str, spec: str, backward: bool, seconds: int, sizes: dict) -> str:
    """'compiles', or why the compiler of TPUs does not compile a pass of attention.

    Args:
      seconds: of processor time that the compiler has.
      sizes: arguments of `attention`.
    """
    spawned = multiprocessing.get_context('spawn')
    here, there = spawned.Pipe(duplex=False)
    child = spawned.Process(target=_compile, args=(key, spec, backward, seconds, sizes, there))
    child.start()
    there.close()  # so that the end of the child is the end of the pipe
    try:
        return here.recv()
    except EOFError:
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        return f'not within {seconds} s' if late else f'the compiler ends with {child.exitcode}'


def _compile(key, spec, backward, seconds, sizes, answer):
    def run():
        device = topologies.get_topology_desc(TOPOLOGY, platform='tpu').devices[0]
        place = SingleDeviceSharding(device)
        run, arguments = attention(key, spec, 'tpu', backward, rows=1, **sizes)
        placed = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments
        )
        lowered = jax.jit(run).trace(*placed).lower(lowering_platforms=('tpu',))
        end, (_, most) = time.process_time() + seconds, resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(end), most))
        lowered.compile()

    answer.send(tried(run, COMPILES))


def model(spec: str, platform: str, mesh=None, length: int = LENGTH, **changes):
    """The program of a model's loss and gradients for a platform, with attention by kernels. An
    encoder-decoder reads its own text as the source.

    Args:
      mesh: devices, which cut the arrays; None for 8 that cut data, tensor and sequence.
      length: of the sequences.
      **changes: other fields of the `TransformerConfig`.
    """
    fields: dict[str, Any] = dict(
        vocab_size=64, train_len=length, layers=12, width=MODEL, heads=HEADS, kv_heads=KV_HEADS,
        head_dim=16, encoding=spec, implementation='kernel',
    )  # fmt: skip
    cfg = TransformerConfig(**(fields | changes))
    if mesh is None:
        mesh = AbstractMesh(tuple(MESH.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    leaves, structure = jax.tree.flatten(state)
    placed = map(place, leaves, jax.tree.leaves(param_shardings(state, mesh)))
    params, rest = nnx.split_state(structure.unflatten(placed), nnx.Param, ...)

    def loss(params, rest, tokens):
        own = nnx.merge(graphdef, params, rest)
        logits = own(tokens, source=own.encoded(tokens) if own.encoder else None)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -picked.mean()

    cut = NamedSharding(mesh, spec_of(('batch', 'sequence')))
    tokens = jax.ShapeDtypeStruct((2 * ROWS, length), jnp.int32, sharding=cut)
    abstract = isinstance(mesh, AbstractMesh)
    within = jax.sharding.use_abstract_mesh(mesh) if abstract else jax.set_mesh(mesh)
    with made_for(platform), within:
        traced = jax.jit(jax.grad(loss)).trace(params, rest, tokens)
        return traced.lower(lowering_platforms=(platform,))


def reason(message: str) -> str:
    """An error of JAX in a few words."""
    line = re.sub(r'\s+', ' ', message)
    known = {
        r'[Uu]nimplemented primitive in Pallas (?:Triton|TPU)[^:]*: ([\w-]+)': r'no `\1`',
        r'Encountered an array of shape \(([\d, ]+)\)': r'the size of [\1] is no power of two',
        r'gives a door one head at a time': 'a door needs several heads',
        r"'kernel' does not loop over the rows of a tile": 'a loop over the rows of a tile',
        r"'kernel' does not draw random numbers in a tile": 'random numbers in a tile',
    }
    for pattern, words in known.items():
        if found := re.search(pattern, line):
            return found.expand(words)
    return line.split('. ')[0][:90].replace('|', '/') or 'a loop that kernels do not have'


def errors(entry) -> list[str]:
    """The largest differences of an encoding, in float32 and in bfloat16: of the kernels of a GPU,
    and of those of a TPU.
    """
    from tests.attention import kernel_test

    def largest(target, dtype) -> float:
        found = kernel_test.both(contract_test.make(entry), dtype=dtype, target=target)
        pairs = zip(*map(jax.tree.leaves, found))
        arrays = [[np.asarray(a, np.float32) for a in pair] for pair in pairs]
        return max(float(abs(a - b).max() / max(1.0, abs(b).max())) for a, b in arrays if a.size)

    try:
        return [
            f'{largest(target, dtype):.1e}'
            for target in INTERPRETED
            for dtype in (jnp.float32, jnp.bfloat16)
        ]
    except ValueError as error:
        return [reason(str(error)), '', '', '']


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--keys', nargs='*', help='of encodings; all by default')
    parser.add_argument('--errors', action='store_true', help='interprets the kernels')
    parser.add_argument(
        '--compile', type=int, nargs='?', const=20, metavar='SECONDS', help='asks the TPU compiler'
    )
    parser.add_argument('--specs', nargs='+', metavar='SPEC', help='other examples to compile')
    parser.add_argument('--length', type=int, default=512, help='of texts to compile for')
    parser.add_argument('--width', type=int, default=WIDTH, help='of heads to compile for')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--models', nargs='*', default=MODELS, help='encodings of whole models')
    options = parser.parse_args()
    asked = {contract_test.id_of(entry): entry for entry in contract_test.ENTRIES}
    if options.keys:
        asked = {name: asked[name] for name in options.keys}
    if options.errors:
        kinds = [f'{kind}, {dtype}' for kind in ('GPU', 'TPU') for dtype in ('float32', 'bfloat16')]
        print(f'| encoding | {" | ".join(kinds)} |', '|---|---|---|---|---|', sep='\n')
        for name, entry in asked.items():
            print(f'| {name} | {" | ".join(errors(entry))} |', flush=True)
            jax.clear_caches()
        return
    if options.compile:
        if importlib.util.find_spec('libtpu') is None:
            sys.exit('--compile needs the compiler of TPUs; pip install libtpu brings it')
        os.environ.update(HOST)
        print('| encoding | forward | backward |', '|---|---|---|', sep='\n')
        examples = [(name, e.card.key, e.card.example) for name, e in asked.items()]
        if options.specs:
            examples = [(f'`{spec}`', spec.partition('(')[0], spec) for spec in options.specs]
        sizes = dict(length=options.length, width=options.width, dtype=jnp.dtype(options.dtype))
        for name, *example in examples:
            asks = lambda backward: compiling(*example, backward, options.compile, sizes)
            backward = asks(True)  # with the forward pass
            forward = backward if backward == COMPILES else asks(False)
            print(f'| {name} | {forward} | {backward} |', flush=True)
        return
    cells = {
        name: [lowering(entry.card.key, entry.card.example, platform) for platform in PLATFORMS]
        for name, entry in asked.items()
    }
    print(*table(cells), sep='\n')
    print('', '| model of 12 layers on 8 devices | GPU | TPU |', '|---|---|---|', sep='\n')
    made = [('decoder', spec, {}) for spec in options.models]
    for kind, spec, fields in made + [(kind, *other) for kind, other in OTHER_KINDS.items()]:
        row = [tried(lambda: model(spec, platform, kind=kind, **fields)) for platform in PLATFORMS]
        print(f'| {kind}, `{spec}` | {" | ".join(row)} |')


def table(cells: dict[str, list[str]]) -> list[str]:
    """Lines of Markdown for what `lowering` says of each encoding on each platform."""
    everywhere = [name for name, row in cells.items() if row == [LOWERS] * len(PLATFORMS)]
    counts = [sum(row[n] == LOWERS for row in cells.values()) for n in range(len(PLATFORMS))]
    lines = [
        f'Of {len(cells)} encodings, {counts[0]} lower for a GPU and {counts[1]} for a TPU, '
        f'forward and backward. For both, {len(everywhere)}: {", ".join(everywhere)}.',
        '',
        '| encoding | GPU | TPU |',
        '|---|---|---|',
    ]
    rest = {name: row for name, row in cells.items() if name not in everywhere}
    return lines + [f'| {name} | {" | ".join(row)} |' for name, row in rest.items()]


if __name__ == '__main__':
    main()
