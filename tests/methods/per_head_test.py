"""Per-head mixtures: each head is what its side makes of it alone, through every door, and the rest
is refused.
"""

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.cli.equal_tokens import Probe, by_distance
from posenc_jax.lab.decoding.generate import generate
from tests.golden_files import golden
from tests.methods.models import model_of, moved, read

GOLDEN = golden('per_head')['values']
CONTEXT = dict(heads=4, kv_heads=2, head_dim=8, model_dim=32, train_len=16)


def test_golden_heads():
    probe = Probe(heads=8, head_dim=64)
    mixture = probe.make('per_head(first=rope(), second=alibi(), heads_of_first=4)')
    values = by_distance(mixture, 513, probe)
    distance, slopes = np.array(GOLDEN['distances']), np.array(GOLDEN['slopes'])
    cosines = 64 * (np.array(GOLDEN['mean_cosine']) - 1) / 64**0.5
    np.testing.assert_allclose(values[:4, distance], np.tile(cosines, (4, 1)), atol=8 * 6e-5)
    np.testing.assert_allclose(values[4:], -slopes[4:, None] * np.arange(513), atol=1e-5)


def mixed(first, second):
    return pj.make(f'per_head(first={first}, second={second}, heads_of_first=2)', **CONTEXT)


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
    draw = lambda n, *shape: jax.random.normal(jax.random.key(n), (2, 12, *shape))
    q, k, v, x = draw(0, 4, 8), draw(1, 2, 8), draw(2, 2, 8), draw(3, 32)
    mixture = mixed(first, second)
    moved(mixture)
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
    promises = lambda *sides: mixed(*sides).card.promises
    assert promises('rope()', 'alibi()').sweep_free
    assert not promises('rope()', 'cope()').sweep_free
    assert promises('fire()', 'rope()').needs_training
    assert not promises('fire()', 'rope()').relative
    assert (
        mixed('cope()', 'nope()').card.causal_only == pj.make('cope()', **CONTEXT).card.causal_only
    )


@pytest.mark.full
def test_it_nests_and_a_model_with_it_decodes_as_it_reads():
    pair = 'per_head(first=alibi(), second=cable(), heads_of_first=3)'
    model = model_of(f'per_head(first=cable(), second={pair}, heads_of_first=2)', width=32, heads=4)
    prompt = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)
    out = generate(model, prompt, max_new_tokens=4, temperature=0.0)
    np.testing.assert_array_equal(out[:, :5], prompt)
    np.testing.assert_array_equal(out[:, 5:], read(model, out).argmax(-1)[:, 4:-1])
