"""Position coupling: random starts, the table, ids with components, and the ids the addition task
hands over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.tasks.coupling import coupled_addition_ids, plain_ids
from posenc_jax.methods.position_coupling import random_start
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tables import NOWHERE
from tests.golden_files import golden

GOLDEN = golden('position_coupling')['values']
D = 6
IDS = np.array(GOLDEN['ids'])


def make(arguments):
    return pj.make(f'position_coupling({arguments})', model_dim=D, rngs=nnx.Rngs(0))


def test_the_task_and_the_encoding_agree_on_the_ids():
    np.testing.assert_array_equal(coupled_addition_ids(4, 4, 5), IDS)
    tok = pj.Tokens.of(positions=IDS[None])
    np.testing.assert_array_equal(
        make('max_position=6').place(tok).pos[0], IDS
    )  # evaluation: start 1


def test_starts_are_uniform_and_the_largest_id_stays_in_the_table():
    limit, rows = 10, 20_000
    ids = np.asarray(random_start(jax.random.key(0), jnp.asarray(np.tile(IDS, (rows, 1))), limit))
    offset = ids[:, 10] - 1  # of '=', whose id is the start
    np.testing.assert_array_equal(ids, np.where(IDS > 0, IDS + offset[:, None], 0))
    choices = limit - GOLDEN['largest'] + 1
    counts = np.bincount(offset, minlength=choices)
    assert len(counts) == choices and ids.max() == limit
    np.testing.assert_allclose(counts / rows, 1 / choices, atol=0.012)  # four standard errors


@pytest.mark.full
def test_starts_follow_the_row_and_the_key():
    ids = np.tile(IDS, (40, 1))
    ids[20:] = np.where(ids[20:] > 3, 0, ids[20:])  # shorter problems: a larger range of starts
    encoding = make('max_position=12')
    tok = pj.Tokens.of(positions=ids)
    first, again = (np.asarray(encoding.place(tok, key=jax.random.key(7)).pos) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[:20].max() <= 12 and first[20:].max() <= 12 and (first[20:, 10] > 7).any()
    assert len(set(first[:20, 10])) > 3


def test_a_full_table_leaves_no_choice():
    tok = pj.Tokens.of(positions=IDS[None])
    np.testing.assert_array_equal(
        make('max_position=6').place(tok, key=jax.random.key(0)).pos[0], IDS
    )


@pytest.mark.full
def test_vectors_are_rows_of_a_standard_normal_table():
    encoding = make('max_position=6')
    assert encoding.tables.shape == (1, 7, D)
    out = encoding.embed(jnp.zeros((1, len(IDS), D)), pj.Tokens.of(positions=IDS[None]))
    np.testing.assert_array_equal(out[0], encoding.tables[0][IDS])
    wide = pj.make('position_coupling(max_position=400)', model_dim=100)
    assert np.asarray(wide.tables[...]).std() == pytest.approx(1, rel=0.02)


def test_coupled_tokens_get_one_vector_whatever_the_start():
    """The claim behind the method: digits of equal significance are told apart from others, not
    from each other.
    """
    encoding = make('max_position=30')
    tok = encoding.place(pj.Tokens.of(positions=IDS[None]), key=jax.random.key(1))
    out = np.asarray(encoding.embed(jnp.zeros((1, len(IDS), D)), tok))[0]
    same = np.array([[np.array_equal(a, b) for a in out] for b in out])
    np.testing.assert_array_equal(same, IDS[:, None] == IDS)


@pytest.mark.full
def test_components_have_tables_and_starts_of_their_own():
    encoding = make('max_position=9, components=2')
    board = np.stack(np.meshgrid(np.arange(1, 4), np.arange(1, 3)), -1).reshape(1, 6, 2)
    tok = pj.Tokens.of(positions=np.tile(board, (64, 1, 1)))
    placed = encoding.place(tok, key=jax.random.key(0))
    offset = np.asarray(placed.pos - tok.pos)
    assert (offset == offset[:, :1]).all() and len({tuple(o) for o in offset[:, 0]}) > 20
    out = encoding.embed(jnp.zeros((64, 6, D)), placed)
    tables, pos = np.asarray(encoding.tables[...]), np.asarray(placed.pos)
    np.testing.assert_allclose(out, tables[0][pos[..., 0]] + tables[1][pos[..., 1]], atol=1e-6)


@pytest.mark.full
def test_components_may_share_a_table():
    encoding = make('max_position=4, components=2, shared=True')
    assert encoding.tables.shape == (1, 5, D)
    out = encoding.embed(jnp.zeros((1, 1, D)), pj.Tokens.of(positions=[[[3, 2]]]))
    np.testing.assert_allclose(out[0, 0], encoding.tables[0, 3] + encoding.tables[0, 2], atol=1e-6)


@pytest.mark.full
def test_plain_ids_give_the_baseline_with_a_random_start():
    """Consecutive ids from a start that is uniform over all that keep the last one in the table;
    `$` stays at 0.
    """
    tok = pj.Tokens.of(positions=plain_ids(np.full(4000, 5), width=9))
    ids = np.asarray(make('max_position=8').place(tok, key=jax.random.key(0)).pos)
    assert not ids[:, [0, 6, 7, 8]].any()
    np.testing.assert_array_equal(np.diff(ids[:, 1:6], axis=1), 1)
    share = np.bincount(ids[:, 1], minlength=5)[1:] / 4000
    np.testing.assert_allclose(share, 0.25, atol=5 * (0.1875 / 4000) ** 0.5)


@pytest.mark.parametrize(
    'task, encoding, length',
    [
        (
            'multiplication(second=2, pad_product=True, reverse_output=True, ids="coupled")',
            'position_coupling(max_position=12)',
            4,
        ),
        ('sums(operands=3, ids="coupled")', 'position_coupling(max_position=12)', 3),
        (
            'addition(reverse_operands=True, reverse_output=True, ids="coupled")',
            'position_coupling(max_position=12)',
            4,
        ),
        ('copy(ids="coupled")', 'position_coupling(max_position=12)', 4),
        ('minesweeper(ids="coupled")', 'position_coupling(max_position=12, components=2)', 3),
        ('addition(ids="plain")', 'position_coupling(max_position=60)', 4),
    ],
)
@pytest.mark.full
def test_every_task_with_ids_trains_from_a_config(task, encoding, length):
    """Everything that `validate` checks, on shapes, and the evaluation at twice the length; beyond
    the table is an error.
    """
    from configs import default
    from posenc_jax.lab.runs.run import validate

    config = default.get_config()
    config.task, config.encoding = task, encoding
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=length, batch=8)
    config.eval.lengths = (length, 2 * length)
    assert validate(config).name
    config.unlock()
    config.eval.lengths = (8 * length,)
    with pytest.raises(ValueError, match='position .* is not in 0 ..'):
        validate(config)


def test_coupled_parity_reaches_any_length():
    """All bits share an id, so that two ids are enough; one is too few, and plain ids end with the
    table.
    """
    from configs import default
    from posenc_jax.lab.runs.run import validate

    config = default.get_config()
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=4, batch=8)
    config.eval.lengths = (4, 100)
    config.task, config.encoding = 'parity(ids="coupled")', 'position_coupling(max_position=2)'
    assert validate(config).name
    for task, encoding, wrong in (
        (
            'parity(ids="coupled")',
            'position_coupling(max_position=1)',
            'position 2 is not in 0 .. 1',
        ),
        (
            'parity(ids="plain")',
            'position_coupling(max_position=50)',
            'at length 100: .* is not in 0 .. 50',
        ),
    ):
        config.task, config.encoding = task, encoding
        with pytest.raises(ValueError, match=wrong):
            validate(config)


@pytest.mark.full
def test_without_a_table_the_ids_go_to_another_encoding():
    encoding = make('max_position=20, table=False')
    assert not jax.tree.leaves(nnx.state(encoding))
    x = jnp.ones((1, len(IDS), D))
    np.testing.assert_array_equal(encoding.embed(x, pj.Tokens.of(positions=IDS[None])), x)
    chained = pj.make('position_coupling(max_position=20, table=False) | sinusoidal()', model_dim=D)
    placed = chained.place(pj.Tokens.of(positions=IDS[None]), key=jax.random.key(3))
    np.testing.assert_array_equal(
        chained.embed(x, placed), pj.make('sinusoidal()').embed(x, placed)
    )


@pytest.mark.full
def test_padding_is_left_alone():
    tok = pj.Tokens.of(positions=[[0, 2, 1, 0]], valid=[[True, True, True, False]])
    out = make('max_position=4').embed(jnp.zeros((1, 4, D)), tok)
    assert np.abs(out[0, :3]).min() > 0 and not np.asarray(out[0, 3]).any()


def test_ids_beyond_the_table():
    encoding = make('max_position=5')
    with pytest.raises(ValueError, match='position 6 is not in 0 .. 5'):
        encoding.place(pj.Tokens.of(positions=IDS[None]))
    run = jax.jit(
        lambda pos: encoding.embed(
            jnp.zeros((1, 17, D)), encoding.place(pj.Tokens.of(positions=pos))
        )
    )
    np.testing.assert_array_equal(np.isnan(run(jnp.asarray(IDS)[None])[0]).all(-1), IDS > 5)


def test_without_a_table_they_reach_no_other_one():
    encoding = make('max_position=5, table=False')
    with pytest.raises(ValueError, match='position 6 is not in 0 .. 5'):
        encoding.place(pj.Tokens.of(positions=IDS[None]))
    placed = jax.jit(lambda pos: encoding.place(pj.Tokens.of(positions=pos)).pos)(
        jnp.asarray(IDS)[None]
    )[0]
    np.testing.assert_array_equal(placed, np.where(IDS > 5, NOWHERE, IDS))
    with pytest.raises(
        SpecError, match=r'position_coupling draws positions 0 .. 64, learned_absolute has 20'
    ):
        pj.make(
            'position_coupling(max_position=64, table=False) | learned_absolute(max_len=20)',
            model_dim=D,
            rngs=nnx.Rngs(0),
        )


def test_ids_of_padding_do_not_choose_the_start():
    tok = pj.Tokens.of(positions=[[0, 1, 2, 99]], valid=[[True, True, True, False]])
    encoding = make('max_position=4')
    assert {int(encoding.place(tok, key=jax.random.key(n)).pos[0, 1]) for n in range(20)} == {
        1,
        2,
        3,
    }


def test_wrong_input_says_what_is_wrong():
    with pytest.raises(ValueError, match='max_position must be at least 1, got 0'):
        make('max_position=0')
    for ids, wrong in ([[0, 9, 1]], 9), ([[0, -2, 1]], -2):
        with pytest.raises(ValueError, match=rf'random_start: ids lie in 0 \.\. 5, got {wrong}'):
            random_start(jax.random.key(0), jnp.array(ids), 5)
    with pytest.raises(ValueError, match='components must be at least 1, got 0'):
        make('max_position=4, components=0')
    with pytest.raises(ValueError, match=r'integer ids \[B, L, 2\], got int32 \(1, 17\)'):
        make('max_position=9, components=2').place(pj.Tokens.of(positions=IDS[None]))
    with pytest.raises(ValueError, match=r'integer ids \[B, L\], got float32'):
        make('max_position=9').place(pj.Tokens.of(positions=IDS[None] * 0.5))
