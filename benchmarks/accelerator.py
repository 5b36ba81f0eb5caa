"""The performance page of one machine, as Markdown for docs/performance.md.

Attention forward and backward of several encodings against the kernel of JAX without a bias and
against FlexAttention of torch, where it is installed; train steps of twelve layers with the share
of the arithmetic peak; decoding. On an accelerator every encoding is timed as `attend` chooses and
with the kernels of this library. All contenders of a table take turns in one process.

    PYTHONPATH=. python benchmarks/accelerator.py              # minutes on an accelerator
    PYTHONPATH=. python benchmarks/accelerator.py --small      # a trial on two cores of a CPU
    PYTHONPATH=. python benchmarks/accelerator.py --encodings 'rope()' 'shaw()'
    PYTHONPATH=. python benchmarks/accelerator.py --all        # hours: attention of every encoding
    PYTHONPATH=. python benchmarks/accelerator.py --decide     # ten minutes: see decide.py

With --decide it times what `attend` can choose from on this device, and writes the file by which
`attend` then chooses, and a page beside it. Heads have the width --width.
"""

import dataclasses
import functools
import itertools
import re
import statistics

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from measure import (
    MIB,
    drawn,
    gradient,
    milliseconds,
    options,
    ratio,
    refuse,
    take_turns,
    temporary_mib,
)  # fmt: skip
from train_step import VOCAB, MeshStep, batch_of, model_config

import posenc_jax as pj
from posenc_jax.attention import decisions
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.language.catalog import markdown_table
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.errors import shortened
from posenc_jax.protocol.registry import entries

ENCODINGS = (
    'nope()', 'rope()', 'alibi()', 'kerple()', 't5_rpe()', 'fire()', 'sandwich()', 'cable()',
    'transformer_xl()', 'cope()', 'path()',
)  # fmt: skip
LIBRARY = 'library, no positions'
# What is timed of every encoding: what `attend` chooses, and the kernels of this library.
FORMS = ('',) if jax.default_backend() == 'cpu' else ('', 'kernel')
TRAINED = ('rope()', 'alibi()', 'fire()', 'path()')
# Products and sums of bfloat16 a second, from the makers' data sheets, without sparsity, by names
# of JAX; the first that occurs is taken. 'TPU v5' is what JAX calls a v5p.
PEAKS = {
    'B200': 2250e12, 'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L4': 121e12, 'V100': 125e12,
    'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5p': 459e12,
    'TPU v5': 459e12, 'TPU v6 lite': 918e12, 'TPU v6e': 918e12,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Lengths and head widths of attention; the model; texts and cached tokens of decoding."""

    lengths: tuple[int, ...] = (2048, 8192)
    heads: int = 16
    widths: tuple[int, ...] = (64, 128)
    layers: int = 12
    width: int = 1024
    train: tuple[int, int] = (8, 2048)  # rows, tokens
    decode: tuple[tuple[int, int], ...] = ((1, 2048), (8, 2048))  # rows, tokens of the prompt
    new: int = 128

    def model(self, spec: str, length: int, **more) -> TransformerConfig:
        heads = max(1, self.width // 64)
        own = dict(layers=self.layers, width=self.width, heads=heads, dtype='bfloat16')
        return model_config(spec, train_len=length, **own, **more)


SMALL = Sizes((512,), 4, (32,), 12, 64, (2, 128), ((1, 128),), 16)


def peak(name: str) -> float | None:
    """Products and sums of bfloat16 a second of all devices together, if that is known.

    Args:
      name: the kind of the devices.
    """
    known = [rate for key, rate in PEAKS.items() if re.search(rf'\b{key}\b', name)]
    return known[0] * jax.device_count() if known else None


def library(make):
    """Causal attention without a bias by the kernel that JAX has for this platform: cuDNN, splash
    attention, which `nope()` takes on a TPU, or XLA on a CPU.
    """
    if jax.default_backend() == 'tpu':
        return make('nope()')
    how = 'cudnn' if jax.default_backend() == 'gpu' else None
    return functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=how)


def contender(make, arguments):
    """The compiled gradient of the attention `make()` and its temporary memory in MiB, or one line
    that says why there is none.
    """
    try:
        made = gradient(make(), *arguments)
        jax.block_until_ready(made())
    except Exception as error:  # of many libraries, e.g. no memory
        return why(error)
    return made, temporary_mib(made)


def flex_attention(arguments):
    """The same of FlexAttention of torch with the bias of ALiBi."""
    try:
        import torch
        from torch.nn.attention import flex_attention as flex

        if not torch.cuda.is_available():
            return 'torch sees no GPU here'
        heads, length = arguments[0].shape[2], arguments[0].shape[1]
        q, k, v = (
            torch.from_dlpack(a.swapaxes(1, 2) + 0).detach().requires_grad_() for a in arguments
        )
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device=q.device) / heads)
        bias = lambda s, b, h, i, j: s + slopes[h] * (j - i)
        seen = flex.create_block_mask(lambda b, h, i, j: j <= i, None, None, length, length)
        attention = torch.compile(flex.flex_attention)

        def run():
            out = attention(q, k, v, score_mod=bias, block_mask=seen).float().sum()
            torch.autograd.grad(out, (q, k, v))
            torch.cuda.synchronize()

        run()
    except Exception as error:
        return why(error)
    return run, ''


def why(error: Exception) -> str:
    lines = str(error).splitlines() or ['']
    return shortened(f'{type(error).__name__}: {lines[0]}', 80)


def attention_rows(sizes: Sizes, rounds: int, encodings):
    for length in sizes.lengths:
        for width in sizes.widths:
            arguments = drawn((1, length, sizes.heads, width), jnp.bfloat16)
            make = functools.partial(layer, length=length, heads=sizes.heads, width=width)
            made = {LIBRARY: contender(lambda: library(make), arguments)}
            for spec, how in itertools.product(encodings, FORMS):
                own = functools.partial(make, spec, how)
                made[_name(spec, how)] = contender(own, arguments)
            made['alibi of FlexAttention'] = flex_attention(arguments)
            ran = {name: found for name, found in made.items() if not isinstance(found, str)}
            seconds = take_turns({name: run for name, (run, _) in ran.items()}, rounds)
            for name, found in made.items():
                if name not in ran:
                    yield name, f'{length}', f'{width}', found, '', ''
                    continue
                time, memory = milliseconds(seconds[name]), ran[name][1]
                times = f'{ratio(seconds, name, LIBRARY):.2f}x' if LIBRARY in ran else '-'
                yield name, f'{length}', f'{width}', time, times, memory


def _name(spec: str, how: str) -> str:
    return f'{spec}, {how}' if how else spec


def encoding_of(spec: str, *, length: int, heads: int, width: int):
    """The encoding of causal attention."""
    context = dict(heads=heads, head_dim=width, model_dim=heads * width, train_len=length)
    return pj.make(spec, causal=True, rngs=nnx.Rngs(0), **context)


def layer(spec: str, how: str = '', *, length: int, heads: int, width: int, block=None):
    """The attention of queries, keys and values of one row with an encoding."""
    encoding = encoding_of(spec, length=length, heads=heads, width=width)
    tok = pj.Tokens.of(length=length)

    def attention(q, k, v):
        x = jnp.zeros((1, length + encoding.lookback, heads * width), q.dtype)
        q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, x)
        own = dict(applied=pj.TOKEN_STAGE, implementation=how or None, block=block)
        return pj.attend(encoding, q, k, v, tq, tk, **own)

    # A kernel runs on one device, also on a host that has several.
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    one = PartitionSpec()
    return jax.shard_map(attention, mesh=mesh, in_specs=one, out_specs=one, check_vma=False)


def train_rows(sizes: Sizes, rounds: int):
    rows, length = sizes.train
    rows = max(rows, jax.device_count())  # the mesh cuts the rows
    batch = batch_of(rows, length)
    for spec, how in itertools.product(TRAINED, FORMS):
        name = _name(spec, how)
        try:
            step = MeshStep(sizes.model(spec, length, implementation=how), batch)
        except Exception as error:  # e.g. no kernel, or no memory
            yield name, why(error), '', '', ''
            continue
        parameters = sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
        seconds = statistics.median(take_turns({name: step}, rounds)[name])
        # Six for each parameter and token, and half a matrix of logits in each layer.
        work = rows * length * (6 * parameters + 6 * sizes.layers * length * sizes.width)
        share = (
            f'{work / seconds / known:.1%}'
            if (known := peak(jax.devices()[0].device_kind))
            else 'peak not known'
        )
        speed = f'{rows * length / seconds:,.0f}'
        yield name, f'{seconds * 1e3:.1f}', speed, share, temporary_mib(step)


def decode_rows(sizes: Sizes, rounds: int):
    for spec in TRAINED:
        for rows, prompt in sizes.decode:
            try:
                model = Transformer(sizes.model(spec, prompt + sizes.new), rngs=nnx.Rngs(0))
                seconds = _decoding(sizes, model, rows, prompt, rounds)
            except Exception as error:  # e.g. no memory
                yield spec, f'{rows}', f'{prompt}', why(error), '', ''
                continue
            read, whole = (statistics.median(times) for times in seconds.values())
            speed = rows * (sizes.new - 1) / max(whole - read, 1e-9)
            tok = pj.Tokens.of(ids=jnp.zeros((rows, prompt + sizes.new), jnp.int32))
            kept = nnx.state(model), jax.eval_shape(lambda: init_cache(model, tok))
            memory = f'{sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept)) / MIB:,.2f}'
            speeds = f'{rows * prompt / read:,.0f}', f'{speed:,.0f}'
            yield spec, f'{rows}', f'{prompt}', *speeds, memory


def _decoding(sizes: Sizes, model: Transformer, rows: int, prompt: int, rounds: int):
    """Seconds of one and of many new tokens. The time of one new token is the difference, because
    both read the prompt.
    """
    prompts = jax.random.randint(jax.random.key(1), (rows, prompt), 0, VOCAB)
    run = functools.partial(generate, model, prompts, temperature=0.0)
    ways = {n: functools.partial(run, max_new_tokens=n) for n in (1, sizes.new)}
    return take_turns({str(n): way for n, way in ways.items()}, rounds)


def every_encoding() -> list[str]:
    """The example of every registered encoding."""
    return [entry.card.example for entry in entries('encoding') if entry.card]


def decided(width: int, rounds: int) -> str:
    """The page of `decide.run` about this device; its file lies where `attend` looks for it."""
    import decide

    place = decisions.path()
    if jax.default_backend() == 'cpu':
        refuse('--decide needs a GPU or a TPU, this is a CPU; leave it out')
    if place is None:
        refuse(f'{decisions.VARIABLE} is empty, so there is no file; unset it, or name one')
    print(f'At most ten minutes. The file will be {place}.', flush=True)
    return decide.run(decide.Sizes(width=width, rounds=rounds), place)


def main():
    arguments = options(
        __doc__,
        small=(False, 'small sizes, for a trial on a CPU'),
        rounds=5,
        encodings=(list(ENCODINGS), 'spec strings whose attention is timed'),
        all=(False, 'the attention of every encoding is timed'),
        decide=(False, 'writes the file by which attention is computed on this device'),
        width=(128, 'of the heads, with --decide'),
    )
    if arguments.decide:
        print(decided(arguments.width, arguments.rounds))
        return
    encodings = every_encoding() if arguments.all else arguments.encodings
    sizes = SMALL if arguments.small else Sizes()
    device = jax.devices()[0]
    print(f'### {jax.device_count()} x {device.device_kind}, jax {jax.__version__}\n')
    print(f'Sizes: {sizes}. Numbers are medians of {arguments.rounds} rounds (least in brackets).')
    print('\nAttention, forward and backward, bfloat16, one row:\n')
    names = ('encoding', 'tokens', 'head width', 'ms', 'of the library', 'temporary MiB')
    rows = attention_rows(sizes, arguments.rounds, encodings)
    print(markdown_table(names, rows), flush=True)
    print('\nTrain step, bfloat16, all devices:\n')
    names = ('encoding', 'ms', 'tokens a second', 'of the peak', 'temporary MiB')
    print(markdown_table(names, train_rows(sizes, arguments.rounds)), flush=True)
    print('\nDecoding, bfloat16, one device:\n')
    names = (
        'encoding', 'rows', 'prompt', 'tokens of the prompt a second', 'new tokens a second',
        'weights and cache, MiB',
    )  # fmt: skip
    print(markdown_table(names, decode_rows(sizes, arguments.rounds)), flush=True)


if __name__ == '__main__':
    main()
