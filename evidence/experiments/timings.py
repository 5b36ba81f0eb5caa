"""Times of methods that are to be faster, as ratios of calls that take turns in one process.

Measured:  a seed is a block of rounds; a number is the median over the rounds of a block, in each
           of which the two sides run one after the other.
Groups:    steps       a train step with windows of 128 bytes and ALiBi or CABLE over one with
                       windows of 256 bytes and sinusoids, of as many bytes: time, and the temporary
                       memory of XLA's own analysis
           kernelized  causal softmax attention over kernelized attention with relative positions,
                       and the slope of the latter on logarithmic axes
           streaming   decoding behind a long text with every key over DuoAttention, half of whose
                       heads stream: time, and the bytes of both caches
           sparse      decoding behind a long text with every key over Double Sparsity with one key
                       and one channel in 16, of the whole model and of its attention alone
           contexts    the time to the first token behind 16 contexts that are read in a row over
                       that behind contexts that are encoded each on its own, and that are cached
Time:      about two minutes a group on one core
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import posenc_jax as pj
from benchmarks.measure import ratio, take_turns, temporary
from evidence.experiments.long_decoding import NEW, behind, decoder
from evidence.experiments.program import Program, Row
from posenc_jax.lab.decoding import ape_parallel, double_sparsity, duo_attention
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.duo_attention import cache as duo_cache
from posenc_jax.lab.decoding.read_contexts import read
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.cache import Cache
from posenc_jax.protocol.tokens import Tokens

Found = Iterator[tuple[str, float, int, float]]  # a variant, its place, its seed and its number
MODEL = dict(vocab_size=256, layers=4, width=160, heads=4)
DECODED = dict(vocab_size=256, train_len=1024, layers=4, width=256, heads=8, encoding='rope()')
SINK, RECENT = 64, 256
CONTEXTS = 16


def steps(known: argparse.Namespace) -> Found:
    calls, memory = {}, {}
    sides = {'sinusoidal': 2 * known.window, 'alibi': known.window, 'cable': known.window}
    for name, length in sides.items():
        cfg = TransformerConfig(**MODEL, train_len=length, encoding=f'{name}()')
        calls[name], compiled = _train_step(cfg, rows=known.tokens // length)
        memory[name] = temporary(compiled)
    for seed in known.seeds:
        seconds = take_turns(calls, known.rounds)
        for name in ('alibi', 'cable'):
            yield f'time of {name}', known.window, seed, ratio(seconds, name, 'sinusoidal')
            share = memory[name] / memory['sinusoidal']
            yield f'memory of {name}', known.window, seed, share


def _train_step(cfg: TransformerConfig, rows: int) -> tuple[Callable, jax.stages.Compiled]:
    """A compiled step of AdamW on drawn tokens, and its program."""
    graphdef, params, rest = nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param, ...)
    tokens = jax.random.randint(jax.random.key(0), (rows, cfg.train_len + 1), 0, cfg.vocab_size)
    optimizer = optax.adamw(1e-3)

    @jax.jit
    def step(params, state, tokens):
        def loss(params):
            logits = nnx.merge(graphdef, params, rest)(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    inputs = params, optimizer.init(params), tokens
    compiled = step.lower(*inputs).compile()
    return functools.partial(compiled, *inputs), compiled


def kernelized(known: argparse.Namespace) -> Found:
    lengths = [known.length // 8, known.length // 4, known.length // 2, known.length]
    calls = {length: _attention(length) for length in lengths}
    for seed in known.seeds:
        times = []
        for length, own in calls.items():
            seconds = take_turns(own, known.rounds if length < known.length else 2)
            yield 'softmax', length, seed, ratio(seconds, 'softmax', 'kernelized')
            times.append(statistics.median(seconds['kernelized']))
        slope = np.polyfit(np.log(lengths), np.log(times), 1)[0]
        yield 'slope', known.length, seed, float(slope)


def _attention(length: int) -> dict[str, Callable]:
    """Causal attention of one head of 16 components, by name."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, (1, length, 1, 16)) for key in keys]
    tok = Tokens.of(length=length)
    specs = {
        'softmax': 'nope()',
        'kernelized': 'kernelized_rpe(features=16, max_distance=128, fft_from=1)',
    }

    def of(spec):
        encoding = pj.make(spec, heads=1, head_dim=16, causal=True)

        def run(q, k, v):
            projected = encoding.project(q, k, v, tok, tok)
            return pj.attend(encoding, *projected, applied=pj.TOKEN_STAGE)

        return functools.partial(jax.jit(run), *inputs)

    return {name: of(spec) for name, spec in specs.items()}


def _size(cache: Cache) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))


def streaming(known: argparse.Namespace) -> Found:
    full = Transformer(TransformerConfig(**DECODED), rngs=nnx.Rngs(0))
    gates = np.random.default_rng(0).random((full.cfg.layers, full.cfg.heads))
    heads = duo_attention.retrieval_heads(gates, sparsity=0.5)
    duo = duo_attention.deploy(full, heads, sink=SINK, recent=RECENT).for_decoding()
    full = full.for_decoding()
    every = behind(full, known.length, prefill)
    few = behind(duo, known.length, duo_cache.prefill)
    calls = {
        'every key': decoder(full, every, decode_step),
        'duo': decoder(duo, few, duo_cache.decode_step),
    }
    for seed in known.seeds:
        seconds = take_turns(calls, known.rounds)
        yield 'time', known.length, seed, ratio(seconds, 'every key', 'duo')
        yield 'memory', known.length, seed, _size(every) / _size(few)


def sparse(known: argparse.Namespace) -> Found:
    model = Transformer(TransformerConfig(**DECODED), rngs=nnx.Rngs(0)).for_decoding()
    cfg, keep = model.cfg, known.length // 16
    channels = np.tile(np.arange(cfg.head_dim // 16), (cfg.layers, cfg.heads, 1))
    cut = functools.partial(double_sparsity.label, channels=channels, dense_layers=0)
    every = behind(model, known.length, prefill)
    calls = {
        'every key': decoder(model, every, decode_step),
        'sparse': decoder(
            model, cut(every), functools.partial(double_sparsity.decode_step, keep=keep)
        ),
        # What is left of a step without attention: nearly no key.
        'rest': decoder(model, behind(model, NEW, prefill), decode_step),
    }
    for seed in known.seeds:
        seconds = take_turns(calls, known.rounds)
        yield 'model', known.length, seed, ratio(seconds, 'every key', 'sparse')
        middle = {name: statistics.median(times) for name, times in seconds.items()}
        alone = {name: middle[name] - middle['rest'] for name in ('every key', 'sparse')}
        yield 'attention', known.length, seed, alone['every key'] / alone['sparse']


def contexts(known: argparse.Namespace) -> Found:
    cfg = TransformerConfig(**MODEL, train_len=1024, encoding='rope()')
    model = Transformer(cfg, rngs=nnx.Rngs(0)).for_decoding()
    random = np.random.default_rng(0)
    prefix, query = (random.integers(0, cfg.vocab_size, (1, n)) for n in (4, 16))
    parts = [random.integers(0, cfg.vocab_size, (1, known.context)) for _ in range(CONTEXTS)]
    text = jnp.asarray(np.concatenate([prefix, *parts, query], axis=1))
    capacity = text.shape[1] + 16
    graphdef, state = nnx.split(model)

    @jax.jit
    def in_a_row(state, text):
        model = nnx.merge(graphdef, state)
        return prefill(model, init_cache(model, Tokens.of(length=capacity)), text, last=1)

    def use(held):
        reader, cache = ape_parallel.join(model, held, capacity=capacity)
        return read(reader, cache, query, last=1)

    held = ape_parallel.encode(model, prefix, parts)
    swapped = (held[0], *held[:0:-1])
    calls = {
        'in a row': lambda: in_a_row(state, text),
        'encoded': lambda: use(ape_parallel.encode(model, prefix, parts)),
        'cached': lambda: use(swapped),
    }
    for seed in known.seeds:
        seconds = take_turns(calls, known.rounds)
        for name in ('encoded', 'cached'):
            yield name, known.context, seed, ratio(seconds, 'in a row', name)


GROUPS: Mapping[str, Callable[[argparse.Namespace], Found]] = {
    'steps': steps, 'kernelized': kernelized, 'streaming': streaming, 'sparse': sparse,
    'contexts': contexts,
}  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The numbers of all groups; the calls of a group are compiled once for all seeds."""
    for group in options.groups:
        for name, place, seed, value in GROUPS[group](options):
            yield group, name, place, seed, value


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    choose={'groups': GROUPS},
    options={
        'rounds': (7, 'rounds of a block'), 'window': (128, 'bytes, of `steps`'),
        'tokens': (2048, 'bytes of a step, of `steps`'),
        'length': (32768, 'tokens, of `kernelized`, `streaming` and `sparse`'),
        'context': (256, 'tokens of a context, of `contexts`'),
    },
    table={'title': 'Times', 'x': 'size', 'value': 'ratio'},
)  # fmt: skip
