"""Texts in the rows of a cache that begin and end at different steps: `jax.vmap` over caches of one
row. Each text gets what it gets alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj

WIDTH, CAPACITY = 16, 9
LENGTHS = (5, 9, 2, 7, 1, 4)  # of the texts, the prompt included
PROMPTS = (2, 4, 1, 3, 1, 4)  # tokens that are read in one step


def served(layer, texts, prompts, rows=2):
    """The outputs of each text, served in a few rows: a text takes a free row, whose cache is that
    of its prompt, and leaves it when it ends.
    """
    step = jax.jit(jax.vmap(lambda x, cache: layer.step(x[None, None], cache)))
    empty = layer.start(1, CAPACITY)
    caches = jax.tree.map(lambda a: jnp.stack([a] * rows), empty)
    waiting, here, out = list(range(len(texts))), {}, [[] for _ in texts]
    while waiting or here:
        for row in range(rows):
            while row not in here and waiting:
                text = waiting.pop(0)
                y, own = layer.step(texts[text][None, : prompts[text]], empty)
                out[text].extend(y[0])
                if len(out[text]) < len(texts[text]):
                    here[row] = text
                    caches = jax.tree.map(lambda a, new: a.at[row].set(new), caches, own)
        new = np.zeros((rows, WIDTH), np.float32)
        for row, text in here.items():
            new[row] = texts[text][len(out[text])]
        y, caches = step(new, caches)
        for row, text in list(here.items()):
            out[text].append(y[row, 0, 0])
            if len(out[text]) == len(texts[text]):
                del here[row]
    return [jnp.stack(own) for own in out]


@pytest.mark.parametrize(
    'spec',
    [
        'rope() | alibi()',
        pytest.param('rope() | window(size=3)', marks=pytest.mark.full),
        pytest.param('fire(width=4)', marks=pytest.mark.full),
        pytest.param('fox()', marks=pytest.mark.full),
        pytest.param('carope()', marks=pytest.mark.full),
        pytest.param('path()', marks=pytest.mark.full),
        pytest.param('self_extend(encoding=rope(), group=2, local=2)', marks=pytest.mark.full),
    ],
)
def test_each_text_gets_what_it_gets_alone(spec):
    layer = pj.Attention(spec, WIDTH, 2, kv_heads=1, train_len=4, rngs=nnx.Rngs(0))
    texts = [
        jax.random.normal(jax.random.key(n), (length, WIDTH)) for n, length in enumerate(LENGTHS)
    ]
    # Every token of `path` rewrites the keys before it, so it reads one token in a step.
    prompts = (1,) * len(texts) if spec == 'path()' else PROMPTS
    for text, found in zip(texts, served(layer, texts, prompts)):
        np.testing.assert_allclose(found, layer(text[None])[0], atol=2e-5)


def test_a_row_that_is_too_full_leaves_the_others_as_they_are():
    """It has NaN; behind a new text it is like any other row."""
    layer = pj.Attention('rope()', WIDTH, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, WIDTH))
    empty = layer.start(1, 4)
    _, long = layer.step(x[:1, :3], empty)
    caches = jax.tree.map(lambda *a: jnp.stack(a), long, empty)
    step = jax.vmap(lambda x, cache: layer.step(x[None, None], cache))
    for place in range(3):
        y, caches = step(x[:, place], caches)
    assert bool(jnp.isnan(y[0]).all())
    np.testing.assert_allclose(y[1, 0], layer(x[1:, :3])[0, 2:], atol=1e-5)
    caches = jax.tree.map(lambda a, new: a.at[0].set(new), caches, empty)
    y, _ = step(x[:, 3], caches)
    np.testing.assert_allclose(y[0, 0], layer(x[:1, 3:4])[0], atol=1e-5)
    np.testing.assert_allclose(y[1, 0], layer(x[1:, :4])[0, 3:], atol=1e-5)
