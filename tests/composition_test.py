"""Tests of combinations: biases with position ids and with rotary encodings, layers that differ in
their encoding, and heads that differ in it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.protocol.families import Bias
from posenc_jax.protocol.registry import entries

CONTEXT = dict(heads=4, kv_heads=2, head_dim=8, model_dim=32, train_len=16)
BIASES = [  # of one position
    entry.card.example
    for entry in entries('encoding')
    if isinstance(entry.build, type) and issubclass(entry.build, Bias)
    if getattr(entry.build, 'components', 1) == 1
]
IDS = {
    'drawn': 'randomized_pe(max_len=64, eval_len=40)',
    'fractional': 'giraffe_random()',
    'evaluated': 'randomized_pe(max_len=64, eval_len=40)',
}


def logits(encoding, tok):
    """Of random queries and keys, one dense tile, from the doors."""
    q, k = (
        jax.random.normal(jax.random.key(n), (1, heads, 12, 8)) for n, heads in ((0, 4), (1, 2))
    )
    return np.asarray(pair_logits(encoding, q, k, tok, tok)[0])


@pytest.mark.full_but_one
@pytest.mark.parametrize('ids', IDS)
@pytest.mark.parametrize('bias', BIASES)
def test_a_bias_reads_the_positions_that_a_scheme_assigns(bias, ids):
    together, alone = pj.make(f'{IDS[ids]} | {bias}', **CONTEXT), pj.make(bias, **CONTEXT)
    tok = together.place(
        pj.Tokens.of(length=12), key=None if ids == 'evaluated' else jax.random.key(3)
    )
    assert not np.array_equal(tok.pos, np.arange(12)[None])
    np.testing.assert_array_equal(logits(together, tok), logits(alone, tok))
    given = pj.Tokens.of(positions=tok.pos)
    np.testing.assert_array_equal(logits(together, tok), logits(alone, given))


@pytest.mark.parametrize('bias', BIASES)
def test_a_rotation_and_a_bias_add_up(bias):
    """Rotated logits plus what the bias adds to plain ones, whatever the order of the chain."""
    tok = pj.Tokens.of(length=12)
    q, k = (
        jax.random.normal(jax.random.key(n), (1, 12, heads, 8)) for n, heads in ((0, 4), (1, 2))
    )

    def of(spec):
        encoding = pj.make(spec, **CONTEXT)
        a, b, _, tq, tk = encoding.project(q, k, k, tok, tok, jnp.ones((1, 12, 32)))
        a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
        return np.asarray(pair_logits(encoding, a, b, tq, tk)[0])

    both = of(f'rope() | {bias}')
    np.testing.assert_array_equal(both, of(f'{bias} | rope()'))
    np.testing.assert_allclose(both, of('rope()') + of(bias) - of('nope()'), atol=2e-5)


MODELS = {
    'pattern': dict(
        encoding='rope()', pattern=('rope() | window(size=4)', 'alibi()', 'nope()'), layers=3
    ),
    'per head': dict(encoding='per_head(first=rope(), second=alibi(), heads_of_first=2)', layers=2),
    'ids, rotation and bias': dict(
        encoding='randomized_pe(max_len=64, eval_len=40) | rope() | kerple()', layers=2
    ),
    'ids and vectors of distances': dict(
        encoding='randomized_pe(max_len=64, eval_len=40) | shaw()', layers=2
    ),
    'convolved projections and a bias': dict(encoding='rcmha(max_len=16) | alibi()', layers=2),
    'one side reads what the other turns': dict(
        encoding='per_head(first=shaw(), second=rope(), heads_of_first=2)', layers=2
    ),
    'a table and a bias': dict(encoding='sinusoidal() | t5_rpe()', layers=2),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('name', MODELS)
def test_models_of_mixed_encodings_decode_as_they_read(name):
    cfg = TransformerConfig(
        vocab_size=11, train_len=8, width=32, heads=4, kv_heads=2, **MODELS[name]
    )
    model, prompt = (
        Transformer(cfg, rngs=nnx.Rngs(0)),
        jax.random.randint(jax.random.key(0), (2, 5), 0, 11),
    )
    out = generate(model, prompt, max_new_tokens=4, temperature=0.0)
    read = jax.jit(lambda tokens: model(tokens))
    for _ in range(4):
        prompt = jnp.concatenate([prompt, read(prompt)[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(out, prompt)
