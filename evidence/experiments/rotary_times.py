"""Times of rotary methods against RoPE, both sides in turn in one process.

Time:      about 4 minutes for three seeds on one core
Groups:    training   a step of training (loss and gradient) with CARoPE and with RoPE: 2 layers of
                      width 128, 8 sequences of 256 tokens
           decoding   a step behind 32,768 tokens with LM-Infinite, whose cache has 64 first tokens
                      and a window of 2048, and with RoPE and a full cache: 2 layers of width 128
A seed is a model of its own. A time is the median of several turns. Values of weights and of caches
do not matter, and are random.
Results:   WORKDIR/GROUP/results.csv: milliseconds, and how many times as fast as RoPE (panel
           'speed'), as the median of the ratios of the turns
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import optax
from flax import nnx

from evidence.experiments.long_decoding import NEW, behind, decoder
from evidence.experiments.program import Found, Program, each
from evidence.experiments.tables import report
from posenc_jax.lab.decoding.constant_cache import constant_cache
from posenc_jax.lab.decoding.decode import decode_step, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig

SIZES = dict(vocab_size=256, layers=2, width=128, heads=4)
BATCH, LENGTH, TURNS = 8, 256, 9
BEHIND, FIRST, WINDOW = 32768, 64, 2048


def model(encoding: str, seed: int, train_len: int) -> Transformer:
    """A model with drawn weights."""
    cfg = TransformerConfig(**SIZES, train_len=train_len, encoding=encoding)
    return Transformer(cfg, rngs=nnx.Rngs(seed))


def training(encoding: str, seed: int) -> Callable[[], object]:
    """A call that computes loss and gradient of one batch."""
    graphdef, state = nnx.split(model(encoding, seed, LENGTH))
    tokens = jax.random.randint(jax.random.key(seed), (BATCH, LENGTH + 1), 0, 256)

    @jax.jit
    def step(state):
        def loss(state):
            logits = nnx.merge(graphdef, state)(tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        return jax.value_and_grad(loss, allow_int=True)(state)

    return functools.partial(step, state)


def decoding(encoding: str, seed: int) -> Callable[[], object]:
    """A call that decodes `NEW` tokens behind `BEHIND`."""
    made = model(encoding, seed, WINDOW).for_decoding()
    few = lambda cache: constant_cache(made, cache, cache.tokens, room=NEW)
    every = lambda cache: cache
    cache = behind(made, BEHIND, prefill, every if encoding == 'rope()' else few, seed)
    return decoder(made, cache, decode_step)


def turns(calls: list[Callable[[], object]]) -> list[list[float]]:
    """Seconds of every call, `TURNS` times each, after one call that does not count."""
    for call in calls:
        jax.block_until_ready(call())
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(TURNS):
        order = range(len(calls)) if turn % 2 else reversed(range(len(calls)))
        for number in order:
            began = time.perf_counter()
            jax.block_until_ready(calls[number]())
            seconds[number].append(time.perf_counter() - began)
    return seconds


GROUPS: dict[str, tuple[Callable[[str, int], Callable[[], object]], dict[str, str]]] = {
    'training': (training, {'rope': 'rope()', 'carope': 'carope()'}),
    'decoding': (
        decoding,
        {
            'rope': 'rope()',
            'lm_infinite': f'lm_infinite(encoding=rope(), n_global={FIRST}, n_local={WINDOW})',
        },
    ),
}


def measured(group: str, seed: int, options: argparse.Namespace) -> Found:
    """The times of a group, and how many times as fast as RoPE the others are."""
    del options
    make, encodings = GROUPS[group]
    seconds = turns([make(encoding, seed) for encoding in encodings.values()])
    for name, own in zip(encodings, seconds, strict=True):
        yield 'milliseconds', name, 0, 1e3 * statistics.median(own)
        ratios = [rope / this for rope, this in zip(seconds[0], own, strict=True)]
        yield 'speed', name, 0, statistics.median(ratios)


def rows(options: argparse.Namespace) -> None:
    """A table for each group, in a folder of its own."""
    for group in options.groups:
        own = argparse.Namespace(
            seeds=options.seeds, groups=[group], workdir=options.workdir / group, turns=TURNS
        )
        title = f'Times of {group}'
        report(each(measured, 'groups')(own), own.workdir, title=title, x='place', value='value')


PROGRAM = Program(__name__, __doc__, rows, choose={'groups': GROUPS})
