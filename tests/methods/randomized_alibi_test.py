"""Randomized ALiBi: the distribution of the magnitudes, a bias of the distance alone, the plain
baseline, draws by layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.random_offsets import random_magnitudes
from posenc_jax.methods.randomized_alibi import randomized_alibi_bias
from tests.golden_files import golden
from tests.methods.models import model_of, read, token_by_token
from tests.methods.random_positions import refused_beyond
from tests.refusals import refused

GOLDEN = golden('randomized_alibi')['values']
N, M = GOLDEN['count'], GOLDEN['max_len']


def make(arguments, heads=8):
    return pj.make(f'randomized_alibi({arguments})', heads=heads)


scored = jax.jit(lambda encoding, s, tok: encoding.logits(s, None, None, tok, tok, None, ())[0])


def bias_of(encoding, tok, key=None, rows=1):
    tok = encoding.place(tok, key=None if key is None else jax.random.key(key))
    zero = np.zeros((rows, 8, tok.length, tok.length), np.float32)
    return np.asarray(scored(encoding, zero, tok))


def test_golden_bias_of_the_plain_symmetric_form():
    """Earlier keys are half a step nearer; that is not the 'offset' of alibi, which is on later
    keys.
    """
    plain, tok = make('max_len=64, random=False'), pj.Tokens.of(length=3)
    bias = bias_of(plain, tok)[0]
    np.testing.assert_allclose(bias[:2], [GOLDEN['head_0'], GOLDEN['head_1']], atol=1e-7)
    np.testing.assert_array_equal(bias, bias_of(plain, tok, key=3)[0])
    offset = np.asarray(pj.make('alibi(variant="offset")', heads=8).bias(tok.pos, tok.pos))[0]
    np.testing.assert_allclose(offset.swapaxes(1, 2), bias, atol=1e-7)


@pytest.mark.full
def test_a_full_range_is_no_randomisation():
    tok = pj.Tokens.of(length=12)
    plain = bias_of(make('max_len=12, random=False'), tok)
    for key in (None, 5):
        np.testing.assert_array_equal(bias_of(make('max_len=12'), tok, key), plain)


def test_magnitudes_are_sorted_distinct_and_have_the_moments_of_the_draw():
    seeds = jax.random.bits(jax.random.key(0), (20_000, 2), jnp.uint32)
    draw = jax.jit(jax.vmap(lambda seed: random_magnitudes(seed, jnp.array([N]), M)[0]))
    drawn = np.asarray(draw(seeds))
    assert (drawn[:, 0] == 0).all() and (np.diff(drawn[:, :N]) > 0).all()
    assert drawn[:, 1].min() == 1 and drawn[:, N - 1].max() == M - 1 and (drawn[:, N:] == M).all()
    # The variance of either end is (9 * 64 * 54) / (100 * 11) less the correction, below 34.
    error = 4 * (34 / 20_000) ** 0.5
    assert drawn[:, 1].mean() == pytest.approx(GOLDEN['mean_first'], abs=error)
    assert drawn[:, N - 1].mean() == pytest.approx(GOLDEN['mean_last'], abs=error)


@pytest.mark.full
def test_the_bias_depends_on_the_distance_alone():
    """Toeplitz, unlike that of `randomized_pe | alibi`, and the same magnitude on both sides."""
    bias = bias_of(make('max_len=256'), pj.Tokens.of(length=N), key=1)[0, 0]
    for shift in range(1, N):
        for side in (bias, bias.T):
            assert np.ptp(np.diagonal(side, shift)) == 0
        assert bias[shift, 0] == bias[0, shift] + 0.25  # slope 1/2, half a step
    ids = pj.make('randomized_pe(max_len=256) | alibi()', heads=8)
    tok = ids.place(pj.Tokens.of(length=N), key=jax.random.key(1))
    assert np.ptp(np.diagonal(np.asarray(ids.parts[1].bias(tok.pos, tok.pos))[0, 0], 1)) > 0


@pytest.mark.full
def test_both_sides_have_a_draw_each():
    """The earlier keys keep the draw that they have without; the later ones have another,
    distributed alike and independent.
    """
    tok = pj.Tokens.of(length=N)
    encoding = make(f'max_len={M}, both_sides=True')
    one, both = (bias_of(own, tok, 1)[0, 0] for own in (make(f'max_len={M}'), encoding))
    np.testing.assert_array_equal(np.tril(both), np.tril(one))
    later, earlier = both[0, 1:], both[1:, 0] - 0.25  # slope 1/2, half a step
    assert (later != earlier).any() and (np.diff(later) < 0).all() and (np.diff(earlier) < 0).all()
    for shift in range(1, N):
        assert np.ptp(np.diagonal(both, shift)) == 0 == np.ptp(np.diagonal(both, -shift))

    def offsets(key):
        placed = encoding.place(tok, key=key)
        return encoding.offsets(placed, placed)[0]

    sides = np.asarray(jax.jit(jax.vmap(offsets))(jax.random.split(jax.random.key(0), 5_000)))
    later, earlier = sides[:, 0, 1], -sides[:, 1, 0]
    error = 4 * (34 / 5_000) ** 0.5
    for found in (later, earlier):
        assert found.mean() == pytest.approx(GOLDEN['mean_first'], abs=error)
    assert abs(np.corrcoef(later, earlier)[0, 1]) < 4 / 5_000**0.5


def test_one_draw_a_pass_and_the_same_without_a_key():
    encoding, tok = make('max_len=256'), pj.Tokens.of(length=N)
    np.testing.assert_array_equal(bias_of(encoding, tok, 1), bias_of(encoding, tok, 1))
    assert (bias_of(encoding, tok, 1) != bias_of(encoding, tok, 2)).any()
    np.testing.assert_array_equal(bias_of(encoding, tok), bias_of(encoding, tok))
    assert (bias_of(encoding, tok) != bias_of(make('max_len=256, draw=1'), tok)).any()


@pytest.mark.full_but_one
@pytest.mark.parametrize('key', [None, 5])
@pytest.mark.parametrize('more', ['', ', both_sides=True'])
def test_padding_on_either_side_changes_nothing(key, more):
    encoding = make(f'max_len=100{more}')
    alone = bias_of(encoding, pj.Tokens.of(length=5), key)[0]
    valid = np.array([[False] * 3 + [True] * 5, [True] * 5 + [False] * 3])
    padded = bias_of(encoding, pj.Tokens.of(valid=valid), key, rows=2)
    np.testing.assert_array_equal(padded[0, :, 3:, 3:], alone)
    np.testing.assert_array_equal(padded[1, :, :5, :5], alone)


@pytest.mark.full_but_one
@pytest.mark.parametrize('more', ['', ', both_sides=True'])
def test_with_eval_len_a_prefix_does_not_depend_on_what_follows(more):
    encoding = make(f'max_len=100, eval_len=40{more}')
    whole = bias_of(encoding, pj.Tokens.of(length=20))
    np.testing.assert_array_equal(bias_of(encoding, pj.Tokens.of(length=9)), whole[..., :9, :9])


@pytest.mark.full
def test_a_pattern_draws_anew_in_every_layer_and_decodes():
    """The paper's redraw: layers differ; step by step equals the whole, with ids for the whole
    capacity.
    """
    spec = 'randomized_alibi(max_len=64, both_sides={}, draw={})'
    pattern = spec.format(False, 0), spec.format(True, 1)
    model = model_of('', pattern=pattern, heads=8)
    parts = [model.encoding(*at).parts[0] for at in model.layers()]
    for key in (None, jax.random.key(0)):
        placed = model.place(pj.Tokens.of(length=8), key=key)
        first, second = (part.offsets(tok, tok) for part, tok in zip(parts, placed, strict=True))
        assert (first != second).any()
    tokens, tok = np.array([[0, 3, 1, 2, 5, 6]]), pj.Tokens.of(length=6)
    found, _ = token_by_token(model, tokens, tok)
    np.testing.assert_allclose(found, read(model, tokens, tok), atol=2e-5)


def test_the_pure_function_is_not_divided_by_anything():
    bias = randomized_alibi_bias(jnp.array([0.5, 0.25]), jnp.array([[[-7, 0, 4]]]))
    np.testing.assert_array_equal(bias[0, :, 0], [[-3.25, 0.0, -2.0], [-1.625, 0.0, -1.0]])


def placed(positions):
    return make('max_len=8, eval_len=6').place(pj.Tokens.of(positions=positions))


def scored_with_two_heads():
    tok = placed([[0, 1]])
    scored(make('max_len=8'), np.zeros((1, 2, 2, 2)), tok)


test_wrong_input = refused() | {
    'needs integer positions': lambda: placed([[0.5]]),
    'one component': lambda: placed([[[0, 1]]]),
    'parameters of 8 heads, the queries have 2': scored_with_two_heads,
}


@pytest.mark.full
def test_positions_beyond_the_range():
    encoding, short = make('max_len=8, eval_len=6'), make('max_len=4')
    refused_beyond(encoding, 9, 7, key=1)
    refused_beyond(encoding, 7, 5, key=None)
    tok = jax.jit(lambda pos: short.place(pj.Tokens.of(positions=pos)))(jnp.array([[0, 9]]))
    assert np.isnan(short.offsets(tok, tok)).tolist() == [[[False, True], [True, False]]]


@pytest.mark.parametrize('key', ['randomized_alibi', 'randomized_transformer_xl'])
def test_a_magnitude_belongs_to_a_whole_distance(key):
    encoding = pj.make(f'{key}(max_len=32)', heads=2, head_dim=8, model_dim=16)
    tok = encoding.place(pj.Tokens.of(length=4))
    moved = dataclasses.replace(tok, pos=tok.pos * 0.5)
    said = f'{key} needs integer positions, got float32; it draws one magnitude for each whole'
    with pytest.raises(ValueError, match=said):
        encoding.offsets(moved, moved)
