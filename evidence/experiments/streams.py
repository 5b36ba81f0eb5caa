"""A model of whole sources that learns to write while it reads: grouped ids and ids by arrival.

Data:      a source of 16 symbols of 16 kinds; the g-th word of the target is a function of the
           source symbols g and g - 1, drawn once for all. A decoder of 2 layers of width 64 with
           RoPE is first trained on sources that are read as a whole, with ids that count through
           source and target. It is then tuned for a few steps to write the g-th word when it has
           read g symbols, in one of three ways:
  grouped      the ids of `gpe`: source and target both count from 0
  continued    `gpe` with the ids of the first training, source and target one after the other
  interleaved  symbols and words in the order in which they arrive, with ids that count through it
Measured:  words of the target that are right, before and after tuning
Paper:     Tong et al. (arXiv 2505.16983): in streaming, the order within source and within target
           matters more than absolute order, so grouped ids are better than interleaved ones.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.protocol.tokens import Tokens

WORDS, KINDS = 16, 16
PROMPT, START = 2 * KINDS, 2 * KINDS + 1
SOURCE = WORDS + 1  # with the prompt
# Rows are the source behind its prompt and the target behind its start; ids of `gpe` are (group,
# segment).
GROUPS = np.concatenate([np.stack([np.full(SOURCE, g), np.arange(SOURCE)], -1) for g in (0, 1)])
# prompt, first symbol, start, second symbol, first word, ...
ARRIVAL = [0] + [at for g in range(WORDS) for at in (g + 1, SOURCE + g)]
WAYS = {
    'whole': f'gpe(k={SOURCE}, phi={SOURCE}) | rope()',
    'grouped': 'gpe(k=1) | rope()',
    'continued': f'gpe(k=1, phi={SOURCE}) | rope()',
    'interleaved': 'rope()',
}
TABLE = np.random.default_rng(7).integers(0, KINDS, (KINDS, KINDS))


def batch(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Source and target, in this order, and the words."""
    source = rng.integers(0, KINDS, (rows, WORDS))
    words = TABLE[source, np.roll(source, 1, axis=1)]
    words[:, 0] = TABLE[source[:, 0], 0]
    column = lambda value: np.full((rows, 1), value)
    tokens = [column(PROMPT), source, column(START), KINDS + words]
    return {'tokens': np.concatenate(tokens, axis=1), 'words': words}


def logits(model: Transformer, tokens: jax.Array, way: str) -> jax.Array:
    """Logits of the words, read in one of `WAYS`."""
    if way == 'interleaved':
        at = [ARRIVAL.index(SOURCE + g) for g in range(WORDS)]
        return model(tokens[:, jnp.array(ARRIVAL)])[:, jnp.array(at)]
    return model(tokens, Tokens.of(positions=GROUPS[None]))[:, SOURCE:-1]


def loss(model: Transformer, batch: dict[str, jax.Array], way: str) -> jax.Array:
    """Nats of a word."""
    found = logits(model, batch['tokens'], way)
    return optax.softmax_cross_entropy_with_integer_labels(found, batch['words']).mean()


def right(model: Transformer, way: str) -> float:
    """The share of words that are right."""
    test = batch(np.random.default_rng(0), 512)
    read = nnx.jit(functools.partial(logits, way=way))
    found = np.asarray(read(model, test['tokens']).argmax(-1))
    return float((found == test['words']).mean())


def model_of(way: str, seed: int) -> Transformer:
    cfg = TransformerConfig(
        vocab_size=2 * KINDS + 2, output_size=KINDS, train_len=2 * SOURCE, layers=2, width=64,
        heads=4, encoding=WAYS[way],
    )  # fmt: skip
    return Transformer(cfg, rngs=nnx.Rngs(seed))


def measured(seed: int, options: argparse.Namespace) -> Found:
    """The share of words that are right, by way of reading and steps of tuning."""
    steps, tuned = options.steps, options.tuned
    rng = np.random.default_rng([seed, 1])
    batches = (batch(rng, 64) for _ in range(steps))
    whole = fitted(
        model_of('whole', seed), functools.partial(loss, way='whole'), batches, steps=steps
    )
    yield 'words', 'whole', 0, right(whole, 'whole')
    more = [batch(rng, 64) for _ in range(tuned)]
    for way in list(WAYS)[1:]:
        model = model_of(way, seed)
        nnx.update(model, nnx.state(whole, nnx.Param))
        yield 'words', way, 0, right(model, way)
        model = fitted(model, functools.partial(loss, way=way), more, steps=tuned, rate=1e-3)
        yield 'words', way, tuned, right(model, way)


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured),
    options={'steps': 700, 'tuned': 100},
    table={'title': 'Streams', 'x': 'steps of tuning', 'value': 'right'},
)
