"""Position coupling: random starts, the table, ids with components, and the ids the addition task
hands over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from configs import default
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.tasks.coupling import coupled_addition_ids, plain_ids
from posenc_jax.methods.position_coupling import position_coupling_start
from posenc_jax.protocol.tables import NOWHERE
from tests.golden_files import golden
from tests.refusals import refused

GOLDEN = golden('position_coupling')['values']
D = 6
IDS = np.array(GOLDEN['ids'])


def make(arguments):
    return pj.make(f'position_coupling({arguments})', model_dim=D, rngs=nnx.Rngs(0))


def placed(encoding, ids=IDS[None], key=None, valid=None):
    tok = pj.Tokens.of(positions=ids, valid=valid)
    return encoding.place(tok, key=None if key is None else jax.random.key(key))


def added(encoding, tok):
    return encoding.embed(jnp.zeros((*tok.pos.shape[:2], D)), tok)


@pytest.mark.parametrize('key', [None, 0])
def test_evaluation_and_a_full_table_start_at_one(key):
    """The ids are those of the task, also where a key would draw the start."""
    np.testing.assert_array_equal(coupled_addition_ids(4, 4, 5), IDS)
    np.testing.assert_array_equal(placed(make('max_position=6'), key=key).pos[0], IDS)


def test_starts_are_uniform_and_the_largest_id_stays_in_the_table():
    limit, rows = 10, 20_000
    ids = np.asarray(
        position_coupling_start(jax.random.key(0), jnp.asarray(np.tile(IDS, (rows, 1))), limit)
    )
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
    first, again = (np.asarray(placed(make('max_position=12'), ids, 7).pos) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[:20].max() <= 12 and first[20:].max() <= 12 and (first[20:, 10] > 7).any()
    assert len(set(first[:20, 10])) > 3


@pytest.mark.full
def test_vectors_are_rows_of_a_standard_normal_table():
    encoding = make('max_position=6')
    assert encoding.tables.shape == (1, 7, D)
    np.testing.assert_array_equal(added(encoding, placed(encoding))[0], encoding.tables[0][IDS])
    wide = pj.make('position_coupling(max_position=400)', model_dim=100)
    assert np.asarray(wide.tables[...]).std() == pytest.approx(1, rel=0.02)


def test_coupled_tokens_get_one_vector_whatever_the_start():
    """The claim behind the method: digits of equal significance are told apart from others, not
    from each other.
    """
    encoding = make('max_position=30')
    out = np.asarray(added(encoding, placed(encoding, key=1)))[0]
    same = np.array([[np.array_equal(a, b) for a in out] for b in out])
    np.testing.assert_array_equal(same, IDS[:, None] == IDS)


@pytest.mark.full
def test_components_have_tables_and_starts_of_their_own():
    encoding = make('max_position=9, components=2')
    board = np.stack(np.meshgrid(np.arange(1, 4), np.arange(1, 3)), -1).reshape(1, 6, 2)
    tok = placed(encoding, np.tile(board, (64, 1, 1)), key=0)
    tables, pos = np.asarray(encoding.tables[...]), np.asarray(tok.pos)
    offset = pos - board
    assert (offset == offset[:, :1]).all() and len({tuple(o) for o in offset[:, 0]}) > 20
    np.testing.assert_allclose(
        added(encoding, tok), tables[0][pos[..., 0]] + tables[1][pos[..., 1]], atol=1e-6
    )


@pytest.mark.full
def test_components_may_share_a_table():
    encoding = make('max_position=4, components=2, shared=True')
    assert encoding.tables.shape == (1, 5, D)
    out = added(encoding, placed(encoding, [[[3, 2]]]))[0, 0]
    np.testing.assert_allclose(out, encoding.tables[0, 3] + encoding.tables[0, 2], atol=1e-6)


@pytest.mark.full
def test_plain_ids_give_the_baseline_with_a_random_start():
    """Consecutive ids from a start that is uniform over all that keep the last one in the table;
    `$` stays at 0.
    """
    plain = plain_ids(np.full(4000, 5), width=9)
    ids = np.asarray(placed(make('max_position=8'), plain, key=0).pos)
    assert not ids[:, [0, 6, 7, 8]].any()
    np.testing.assert_array_equal(np.diff(ids[:, 1:6], axis=1), 1)
    share = np.bincount(ids[:, 1], minlength=5)[1:] / 4000
    np.testing.assert_allclose(share, 0.25, atol=5 * (0.1875 / 4000) ** 0.5)


def config_of(task, arguments, length, lengths):
    config = default.get_config()
    config.task, config.encoding = task, f'position_coupling({arguments})'
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=length, batch=8)
    config.eval.lengths = lengths
    return config


REVERSED = 'reverse_output=True, ids="coupled"'
TASKS = {  # task -> arguments of the encoding, and the length
    f'multiplication(second=2, pad_product=True, {REVERSED})': ('max_position=12', 4),
    'sums(operands=3, ids="coupled")': ('max_position=12', 3),
    f'addition(reverse_operands=True, {REVERSED})': ('max_position=12', 4),
    'copy(ids="coupled")': ('max_position=12', 4),
    'minesweeper(ids="coupled")': ('max_position=12, components=2', 3),
    'addition(ids="plain")': ('max_position=60', 4),
}


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.full
def test_every_task_with_ids_trains_from_a_config(task):
    """Everything that `validate` checks, on shapes, and the evaluation at twice the length; beyond
    the table is an error.
    """
    arguments, length = TASKS[task]
    assert validate(config_of(task, arguments, length, (length, 2 * length))).name
    with pytest.raises(ValueError, match='position .* is not in 0 ..'):
        validate(config_of(task, arguments, length, (8 * length,)))


def test_coupled_parity_reaches_any_length():
    """All bits share an id, so that two ids are enough; one is too few, and plain ids end with the
    table.
    """
    assert validate(config_of('parity(ids="coupled")', 'max_position=2', 4, (4, 100))).name
    for task, arguments, wrong in (
        ('parity(ids="coupled")', 'max_position=1', 'position 2 is not in 0 .. 1'),
        ('parity(ids="plain")', 'max_position=50', 'at length 100: .* is not in 0 .. 50'),
    ):
        with pytest.raises(ValueError, match=wrong):
            validate(config_of(task, arguments, 4, (4, 100)))


@pytest.mark.full
def test_without_a_table_the_ids_go_to_another_encoding():
    encoding = make('max_position=20, table=False')
    assert not jax.tree.leaves(nnx.state(encoding))
    x = jnp.ones((1, len(IDS), D))
    np.testing.assert_array_equal(encoding.embed(x, placed(encoding)), x)
    chained = pj.make('position_coupling(max_position=20, table=False) | sinusoidal()', model_dim=D)
    tok = placed(chained, key=3)
    np.testing.assert_array_equal(chained.embed(x, tok), pj.make('sinusoidal()').embed(x, tok))


@pytest.mark.full
def test_padding_is_left_alone():
    encoding = make('max_position=4')
    tok = placed(encoding, [[0, 2, 1, 0]], valid=[[True, True, True, False]])
    out = added(encoding, tok)
    assert np.abs(out[0, :3]).min() > 0 and not np.asarray(out[0, 3]).any()


@pytest.mark.parametrize('table', [True, False])
def test_ids_beyond_the_table(table):
    """Their vectors are NaN; without a table, they become an id that no other table has."""
    encoding = make(f'max_position=5, table={table}')
    with pytest.raises(ValueError, match='position 6 is not in 0 .. 5'):
        placed(encoding)

    @jax.jit
    def traced(ids):
        tok = placed(encoding, ids)
        return tok.pos, added(encoding, tok)

    pos, out = traced(jnp.asarray(IDS)[None])
    if table:
        np.testing.assert_array_equal(np.isnan(out[0]).all(-1), IDS > 5)
    else:
        np.testing.assert_array_equal(pos[0], np.where(IDS > 5, NOWHERE, IDS))


def test_ids_of_padding_do_not_choose_the_start():
    encoding, valid = make('max_position=4'), [[True, True, True, False]]
    starts = {int(placed(encoding, [[0, 1, 2, 99]], n, valid).pos[0, 1]) for n in range(20)}
    assert starts == {1, 2, 3}


def start_of(ids):
    return position_coupling_start(jax.random.key(0), jnp.array([ids]), 5)


test_wrong_ids = refused() | {
    r'position_coupling_start: ids lie in 0 \.\. 5, got 9': lambda: start_of([0, 9, 1]),
    r'position_coupling_start: ids lie in 0 \.\. 5, got -2': lambda: start_of([0, -2, 1]),
    r'integer ids \[B, L, 2\], got int32 \(1, 17\)': (
        lambda: placed(make('max_position=9, components=2'))
    ),
    r'integer ids \[B, L\], got float32': lambda: placed(make('max_position=9'), IDS[None] * 0.5),
}
