"""The performance page of one machine, as Markdown for docs/performance.md.

Attention forward and backward of several encodings against the library's kernel without a bias,
train steps of twelve layers with the share of the arithmetic peak, and decoding. All contenders of
a table take turns in one process.

    PYTHONPATH=. python benchmarks/accelerator.py              # minutes on an accelerator
    PYTHONPATH=. python benchmarks/accelerator.py --small      # a trial on two cores of a CPU
"""

import argparse
import dataclasses
import functools
import re
import statistics

import jax
import jax.numpy as jnp
from flax import nnx
from measure import MIB, milliseconds, ratio, take_turns, temporary
from train_step import VOCAB, MeshStep, batch_of, model_config

import posenc_jax as pj
from posenc_jax.catalog import markdown_table
from posenc_jax.core.registry import shortened
from posenc_jax.decoding.generate import generate
from posenc_jax.model import Transformer, TransformerConfig

ENCODINGS = (
    'nope()', 'rope()', 'alibi()', 'kerple()', 't5_rpe()', 'fire()', 'sandwich()', 'cable()',
    'transformer_xl()', 'cope()', 'path()',
)  # fmt: skip
TRAINED = ('rope()', 'alibi()', 'fire()', 'path()')
# Products and sums of bfloat16 a second, from the makers' data sheets, without sparsity.
PEAKS = {
    'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L4': 121e12, 'V100': 125e12,
    'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5p': 459e12, 'TPU v6 lite': 918e12,
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

    def model(self, spec: str, length: int) -> TransformerConfig:
        heads = max(1, self.width // 64)
        own = dict(layers=self.layers, width=self.width, heads=heads, dtype='bfloat16')
        return model_config(spec, train_len=length, **own)


SMALL = Sizes((512,), 4, (32,), 12, 64, (2, 128), ((1, 128),), 16)


def peak() -> float | None:
    """Products and sums of bfloat16 a second of all devices together, if that is known."""
    name = jax.devices()[0].device_kind
    known = [rate for key, rate in PEAKS.items() if re.search(rf'\b{key}\b', name)]
    return known[0] * jax.device_count() if known else None


def library(q, k, v):
    """Causal attention without a bias by the kernel that JAX has for this platform."""
    how = 'cudnn' if jax.default_backend() == 'gpu' else None
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=how)


def contender(attention, arguments):
    """The compiled gradient, or one line that says why there is none."""
    total = lambda *qkv: attention(*qkv).astype(jnp.float32).sum()
    try:
        made = jax.jit(jax.grad(total, (0, 1, 2))).lower(*arguments).compile()
        jax.block_until_ready(made(*arguments))
    except Exception as error:  # of many libraries, e.g. no memory
        return shortened(f'{type(error).__name__}: {str(error).splitlines()[0]}', 80)
    return made


def attention_rows(sizes: Sizes, rounds: int):
    for length in sizes.lengths:
        for width in sizes.widths:
            keys = jax.random.split(jax.random.key(0), 3)
            shape = 1, length, sizes.heads, width
            arguments = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
            layer = functools.partial(_layer, length=length, heads=sizes.heads, width=width)
            ways = {'library, no positions': library} | {spec: layer(spec) for spec in ENCODINGS}
            made = {name: contender(way, arguments) for name, way in ways.items()}
            runs = {
                name: functools.partial(run, *arguments)
                for name, run in made.items()
                if not isinstance(run, str)
            }
            seconds = take_turns(runs, rounds)
            first = next(iter(runs))
            for name, run in made.items():
                if isinstance(run, str):
                    yield name, f'{length}', f'{width}', run, '', ''
                    continue
                times, memory = ratio(seconds, name, first), f'{temporary(run) / MIB:.0f}'
                time = milliseconds(seconds[name])
                yield name, f'{length}', f'{width}', time, f'{times:.2f}x', memory


def _layer(spec: str, *, length: int, heads: int, width: int):
    context = dict(heads=heads, head_dim=width, model_dim=heads * width, train_len=length)
    encoding = pj.make(spec, causal=True, rngs=nnx.Rngs(0), **context)
    tok = pj.Tokens.of(length=length)

    def attention(q, k, v):
        x = jnp.zeros((1, length + encoding.lookback, heads * width), q.dtype)
        q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, x)
        return pj.attend(encoding, q, k, v, tq, tk, applied=pj.TOKEN_STAGE)

    return attention


def train_rows(sizes: Sizes, rounds: int):
    rows, length = sizes.train
    batch = batch_of(rows, length)
    for spec in TRAINED:
        cfg = sizes.model(spec, length)
        step = MeshStep(cfg, batch)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
        seconds = statistics.median(take_turns({spec: step}, rounds)[spec])
        # Six for each parameter and token, and half a matrix of logits in each layer.
        work = rows * length * (6 * parameters + 6 * sizes.layers * length * sizes.width)
        share = f'{work / seconds / known:.1%}' if (known := peak()) else 'peak not known'
        speed = f'{rows * length / seconds:,.0f}'
        memory = f'{temporary(step.compiled) / MIB:.0f}'
        yield spec, f'{seconds * 1e3:.1f}', speed, share, memory


def decode_rows(sizes: Sizes, rounds: int):
    for spec in TRAINED:
        for rows, prompt in sizes.decode:
            model = Transformer(sizes.model(spec, prompt + sizes.new), rngs=nnx.Rngs(0))
            prompts = jax.random.randint(jax.random.key(1), (rows, prompt), 0, VOCAB)
            run = functools.partial(generate, model, prompts, temperature=0.0)
            # The time of one new token is that of many, minus that of one with the prompt.
            ways = {n: functools.partial(run, max_new_tokens=n) for n in (1, sizes.new)}
            seconds = take_turns({str(n): way for n, way in ways.items()}, rounds)
            read, whole = (statistics.median(times) for times in seconds.values())
            speed = rows * (sizes.new - 1) / max(whole - read, 1e-9)
            yield spec, f'{rows}', f'{prompt}', f'{rows * prompt / read:,.0f}', f'{speed:,.0f}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--small', action='store_true', help='small sizes, for a trial on a CPU')
    parser.add_argument('--rounds', type=int, default=5)
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else Sizes()
    device = jax.devices()[0]
    print(f'### {jax.device_count()} x {device.device_kind}, jax {jax.__version__}\n')
    print(f'Sizes: {sizes}. Numbers are medians of {arguments.rounds} rounds (least in brackets).')
    print('\nAttention, forward and backward, bfloat16, one row:\n')
    names = ('encoding', 'tokens', 'head width', 'ms', 'of the library', 'temporary MiB')
    print(markdown_table(names, attention_rows(sizes, arguments.rounds)), flush=True)
    print('\nTrain step, bfloat16, all devices:\n')
    names = ('encoding', 'ms', 'tokens a second', 'of the peak', 'temporary MiB')
    print(markdown_table(names, train_rows(sizes, arguments.rounds)), flush=True)
    print('\nDecoding, bfloat16, one device:\n')
    names = ('encoding', 'rows', 'prompt', 'tokens of the prompt a second', 'new tokens a second')
    print(markdown_table(names, decode_rows(sizes, arguments.rounds)), flush=True)


if __name__ == '__main__':
    main()
