"""Per-head mixtures: each head is what its side makes of it alone, through every door, and the rest
is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.cli.gallery import Probe, by_distance
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('per_head')['values']
CONTEXT = dict(heads=4, kv_heads=2, head_dim=8, model_dim=32, train_len=16)


def test_golden_heads():
    probe = Probe(heads=8, head_dim=64)
    values = by_distance(
        probe.make('per_head(first=rope(), second=alibi(), heads_of_first=4)'), 513, probe
    )
    distance = np.asarray(GOLDEN['distances'])
    cosines = 64 * (np.asarray(GOLDEN['mean_cosine']) - 1) / 64**0.5
    np.testing.assert_allclose(values[:4, distance], np.tile(cosines, (4, 1)), atol=8 * 6e-5)
    np.testing.assert_allclose(
        values[4:], -np.asarray(GOLDEN['slopes'])[4:, None] * np.arange(513), atol=1e-5
    )


PAIRS = [
    ('rope()', 'nope()'),
    ('cope(npos=5)', 'shaw(max_distance=3)'),  # a carry beside a collect door
    ('shaw(max_distance=3)', 'shaw(max_distance=5)'),  # the same feature twice
    ('window(size=4)', 'rope() | kerple()'),
    ('dca(encoding=rope(), chunk=4, local=2)', 'tapa()'),  # two sides that match
]


@pytest.mark.full_but_one
@pytest.mark.parametrize('first, second', PAIRS)
def test_every_head_is_what_its_side_alone_makes_of_it(first, second):
    """Output of attention, tiled, with grouped keys, parameters moved off zero."""
    draw = lambda n, heads: jax.random.normal(jax.random.key(n), (2, 12, heads, 8))
    q, k, v, x = (
        draw(0, 4),
        draw(1, 2),
        draw(2, 2),
        jax.random.normal(jax.random.key(3), (2, 12, 32)),
    )
    mixture = pj.make(f'per_head(first={first}, second={second}, heads_of_first=2)', **CONTEXT)
    graphdef, state = nnx.split(mixture)
    state = jax.tree.map(lambda a: a + 0.3 if jnp.issubdtype(a.dtype, jnp.floating) else a, state)
    mixture = nnx.merge(graphdef, state)
    tok = pj.Tokens.of(length=12)

    @jax.jit
    def attended(encoding):
        encoding = pj.chain(encoding, pj.make('causal()'))
        inputs = encoding.project(q, k, v, tok, tok, x)
        return pj.attend(encoding, *inputs, block=(4, 5), applied=pj.TOKEN_STAGE)

    parts = mixture, mixture.first, mixture.second
    found, of_first, of_second = map(np.asarray, map(attended, parts))
    np.testing.assert_allclose(found[:, :, :2], of_first[:, :, :2], atol=2e-6)
    np.testing.assert_allclose(found[:, :, 2:], of_second[:, :, 2:], atol=2e-6)
    assert np.abs(found - of_first).max() > 1e-3


def test_the_card_promises_what_both_sides_do():
    card = lambda first, second: (
        pj.make(f'per_head(first={first}, second={second}, heads_of_first=2)', **CONTEXT).card
    )
    assert (
        card('rope()', 'alibi()').promises.sweep_free
        and not card('rope()', 'cope()').promises.sweep_free
    )
    assert (
        card('fire()', 'rope()').promises.needs_training
        and not card('fire()', 'rope()').promises.relative
    )
    assert card('cope()', 'nope()').causal_only == pj.make('cope()', **CONTEXT).card.causal_only


@pytest.mark.full
def test_it_nests_and_a_model_with_it_decodes_as_it_reads():
    three = (
        'per_head(first=cable(), second=per_head(first=alibi(), second=cable(), '
        'heads_of_first=3), heads_of_first=2)'
    )
    cfg = TransformerConfig(vocab_size=11, train_len=8, layers=2, width=32, heads=4, encoding=three)
    model, prompt = (
        Transformer(cfg, rngs=nnx.Rngs(0)),
        jax.random.randint(jax.random.key(0), (2, 5), 0, 11),
    )
    out = generate(model, prompt, max_new_tokens=4, temperature=0.0)
    read = jax.jit(lambda model, ids: model(ids))(model, out).argmax(-1)
    np.testing.assert_array_equal(out[:, :5], prompt)
    np.testing.assert_array_equal(out[:, 5:], read[:, 4:-1])


@pytest.mark.parametrize(
    'spec, said',
    [
        ('per_head(first=rope(), second=alibi(), heads_of_first=4)', '1 .. 3 of 4 heads, got 4'),
        (
            'per_head(first=rope(), second=alibi(), heads_of_first=3)',
            '3 heads cut a group of 2 that share a key head; use 2',
        ),
        (
            'per_head(first=sinusoidal(), second=alibi(), heads_of_first=2)',
            "sinusoidal opens 'embed'",
        ),
        ('per_head(first=rope(), second=path(), heads_of_first=2)', "path opens 'update_keys'"),
        (
            'per_head(first=rope(freqs=dynamic_ntk()), second=alibi(), heads_of_first=2)',
            'rope are cached raw',
        ),
        ('per_head(first=full(), second=alibi(), heads_of_first=2)', 'disagree'),
        (
            'per_head(first=rope(), second=alibi(), heads_of_first=2) | rope()',
            'per_head and rope both rotate',
        ),
    ],
)
def test_what_cannot_be_mixed_is_said(spec, said):
    with pytest.raises(SpecError, match=said.replace('(', '\\(').replace(')', '\\)')):
        pj.make(spec, **CONTEXT)
