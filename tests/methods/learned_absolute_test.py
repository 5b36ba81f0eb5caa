"""Learned absolute table: ids, initial values, and the four answers to a sequence that is too
long.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.learned_absolute import learned_absolute_ids, learned_absolute_positions
from tests.golden_files import golden, golden_suite

GOLDEN = golden('learned_absolute')['values']
D = 6


def make(arguments):
    return pj.make(f'learned_absolute({arguments})', model_dim=D, rngs=nnx.Rngs(0))


def vectors(encoding, tok):
    return encoding.embed(jnp.zeros((tok.pos.shape[0], tok.length, D)), encoding.place(tok))


def ids_of_fairseq(golden):
    tok = pj.Tokens.of(valid=jnp.array(golden['tokens']) != golden['padding_idx'])
    return learned_absolute_ids(tok.pos, tok.valid, golden['padding_idx'])


test_golden = golden_suite('learned_absolute', rtol=1e-7) | {
    'ids': ids_of_fairseq,
    'interpolate.positions': lambda golden: learned_absolute_positions(
        jnp.arange(golden['length']), golden['max_len'], golden['length']
    ),
}


def test_fairseq_reads_those_rows_and_padding_stays_zero_and_untrained():
    encoding = make("max_len=8, ids='fairseq'")
    assert encoding.vectors.shape == (8 + 2, D)
    tok = pj.Tokens.of(valid=jnp.array(GOLDEN['tokens']) != 1)
    table = np.asarray(encoding.vectors[...])
    np.testing.assert_array_equal(vectors(encoding, tok), table[np.array(GOLDEN['ids'])])
    np.testing.assert_array_equal(table[1], 0)
    gradient = jax.grad(lambda e: vectors(e, tok).sum())(encoding).vectors[...]
    np.testing.assert_array_equal(gradient[:, 0], [0, 0, 2, 2, 2, 2, 0, 0, 0, 0])


def test_initial_spread():
    wide = lambda arguments: np.asarray(
        pj.make(f'learned_absolute({arguments})', model_dim=256).vectors[...]
    )
    assert wide('max_len=400').std() == pytest.approx(0.02, rel=0.02)
    assert wide("max_len=400, ids='fairseq'").std() == pytest.approx(256**-0.5, rel=0.02)
    assert not wide('max_len=4, std=0.0').any()


def test_too_long_is_an_error_that_names_the_policies():
    encoding, tok = make('max_len=8'), pj.Tokens.of(length=9)
    message = (
        "position 8,? (which )?is not in 0 .. 7; use a larger table or overflow='clamp', "
        "'mod' or 'interpolate'"
    )
    for door in (encoding.place, lambda t: encoding.embed(jnp.zeros((1, 9, D)), t)):
        for call in (door, jax.jit(door)):  # positions are traced, the length is not
            with pytest.raises(ValueError, match=message):
                call(tok)
    encoding.place(pj.Tokens.of(valid=[[False] * 4 + [True] * 8]))  # twelve slots, eight positions


def test_a_traced_position_beyond_the_table_is_nan_not_the_last_row():
    encoding = make('max_len=8')
    run = jax.jit(lambda pos: encoding.embed(jnp.zeros((1, 3, D)), pj.Tokens.of(positions=pos)))
    out = run(jnp.array([[7, 8, -1]]))
    assert np.isfinite(out[0, 0]).all() and np.isnan(out[0, 1:]).all()


def test_plain_clamp_and_mod():
    for overflow, pos, rows in (
        ('error', [3, 3, 0], [3, 3, 0]),
        ('clamp', np.arange(20), np.minimum(np.arange(20), 7)),
        ('mod', np.arange(20), np.arange(20) % 8),
    ):
        encoding = make(f"max_len=8, overflow='{overflow}'")
        found = vectors(encoding, pj.Tokens.of(positions=np.asarray(pos)[None]))[0]
        np.testing.assert_array_equal(found, encoding.vectors[...][np.asarray(rows)])


@pytest.mark.full
def test_interpolate_equals_linear_resizing_and_leaves_short_inputs_alone():
    encoding = make("max_len=8, overflow='interpolate'")
    table = encoding.vectors[...]
    np.testing.assert_array_equal(vectors(encoding, pj.Tokens.of(length=8))[0], table)
    resized = jax.image.resize(table, (20, D), 'linear')
    np.testing.assert_allclose(vectors(encoding, pj.Tokens.of(length=20))[0], resized, atol=1e-6)


@pytest.mark.full
def test_interpolate_stretches_every_document_by_itself():
    encoding = make("max_len=8, overflow='interpolate'")
    alone = vectors(encoding, pj.Tokens.of(length=10))[0]
    packed = vectors(encoding, pj.Tokens.of(segment=[[0] * 10 + [1] * 10]))[0]
    padded = vectors(encoding, pj.Tokens.of(valid=[[False] * 10 + [True] * 10]))[0]
    for copy in (packed[:10], packed[10:], padded[10:]):
        np.testing.assert_allclose(copy, alone, atol=1e-6)


@pytest.mark.parametrize('overflow', ['clamp', 'mod', 'interpolate'])
def test_one_token_at_a_time_equals_the_whole(overflow):
    """Decoding places the whole capacity once and embeds slices of it."""
    encoding = make(f"max_len=8, overflow='{overflow}'")
    placed = encoding.place(pj.Tokens.of(length=20))
    step = lambda t: encoding.embed(jnp.zeros((1, 1, D)), placed.slice(t, 1))
    steps = jnp.concatenate([step(t) for t in range(20)], axis=1)
    np.testing.assert_allclose(steps, vectors(encoding, pj.Tokens.of(length=20)), atol=1e-7)


@pytest.mark.parametrize('positions', [[[0.5]], [[[0, 1]]]])
def test_other_positions_are_refused(positions):
    with pytest.raises(ValueError, match='needs integer positions'):
        make('max_len=4').place(pj.Tokens.of(positions=jnp.array(positions)))
