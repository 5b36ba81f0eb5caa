"""NaViT's tables: vectors by hand, what a sum of two tables cannot be, shares of images of any
size, and packed images.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.navit_factorized import navit_factorized_rows, navit_factorized_vectors
from tests.golden_files import golden_suite
from tests.methods.pairs import grid
from tests.refusals import refused

WIDTH = 6


def make(arguments, width=WIDTH):
    return pj.make(f'navit_factorized({arguments})', model_dim=width, rngs=nnx.Rngs(0))


@jax.jit
def table(part, positions, segment=None):
    return part.table(pj.Tokens.of(positions=positions, segment=segment), WIDTH)[0]


def of_tables(golden, places, combine):
    rows, columns = (jnp.array(golden[name]) for name in ('rows', 'columns'))
    return navit_factorized_vectors(rows, columns, places, combine)[0, 0]


def places_of_shares():
    return navit_factorized_rows(jnp.array([[[1, 2]]]), (4, 4), (3, 2))


def combined(name):
    return lambda golden: of_tables(golden, jnp.array([[[2, 1]]]), name)


test_golden = golden_suite('navit_factorized', rtol=1e-6) | {
    **{name: combined(name) for name in ('sum', 'product', 'stack')},
    'places': lambda: places_of_shares()[0, 0],
    'fractional': lambda golden: of_tables(golden, places_of_shares(), 'sum'),
}


@pytest.mark.parametrize('combine', ['sum', 'product', 'stack'])
def test_every_patch_by_definition(combine):
    part = make(f'4, 5, combine="{combine}"')
    rows, columns = (np.asarray(param[...]) for param in (part.rows, part.columns))
    found = table(part, grid(3, 5))
    np.testing.assert_array_equal(found[0], 0)
    for number, (r, c) in enumerate(np.ndindex(3, 5)):
        pair = rows[r], columns[c]
        join = {'sum': np.add, 'product': np.multiply}.get(combine)
        expected = np.concatenate(pair) if join is None else join(*pair)
        np.testing.assert_allclose(found[1 + number], expected, rtol=1e-6)


def test_a_sum_of_tables_has_few_dimensions():
    part = make('8, 8')
    code = np.asarray(table(part, grid(3, 4, 0)), np.float64)
    centred = code - code.mean(0)
    assert np.linalg.matrix_rank(centred, tol=1e-6) <= (3 - 1) + (4 - 1)
    code = code.reshape(3, 4, WIDTH)
    steps = code[:, 1:] - code[:, :-1]
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-7)


def test_equal_tables_do_not_tell_rows_from_columns():
    part = make('4, 4')
    part.columns[...] = part.rows[...]
    cells = grid(4, 4)
    np.testing.assert_array_equal(table(part, cells), table(part, cells[..., ::-1].copy()))


def test_shares_do_not_depend_on_the_size():
    """Patch (r, c) of an image is patch (2 r, 2 c) of one of twice the size; the last row of the
    table is never reached, and a look-up between two rows is their mean by distance.
    """
    part = make('5, 5, mode="fractional"')
    small, large = (np.asarray(table(part, grid(*size, 0))) for size in ((2, 4), (4, 8)))
    large = large.reshape(4, 8, WIDTH)[::2, ::2].reshape(-1, WIDTH)
    np.testing.assert_allclose(small, large, atol=1e-7)
    rows, columns = (np.float64(param[...]) for param in (part.rows, part.columns))
    for number, (r, c) in enumerate(np.ndindex(2, 4)):
        expected = [np.interp(r / 2 * 4, range(5), rows[:, f]) for f in range(WIDTH)]
        expected = np.add(
            expected, [np.interp(c / 4 * 4, range(5), columns[:, f]) for f in range(WIDTH)]
        )
        np.testing.assert_allclose(small[number], expected, atol=1e-7)
    given = make('5, 5, mode="fractional", size=(2, 4)')
    np.testing.assert_allclose(table(given, grid(2, 4, 0)), small, atol=1e-7)
    assert part.traits == {'moves_positions'} and not given.traits and not make('5, 5').traits


def test_padding_and_class_tokens_keep_their_vectors():
    part = make('2, 2, std=1.0')
    tok = pj.Tokens.of(positions=grid(2, 2), valid=[[True, True, True, False, False]])
    x = jnp.ones((1, 5, WIDTH))
    added = np.asarray(part.embed(x, tok) - x)[0]
    np.testing.assert_array_equal(added[[0, 3, 4]], 0)
    assert np.abs(added[1:3]).min() > 0


@pytest.mark.parametrize('mode', ['mode="fractional", size=(2, 2)', 'combine="product"'])
def test_padding_may_be_anywhere(mode):
    """Also beyond the tables and the size: no gradient is lost to it."""
    part, valid = make(f'2, 2, std=1.0, {mode}'), np.arange(5)[None] < 3

    def total(rows, positions):
        changed = nnx.clone(part)
        changed.rows[...] = rows
        tok = pj.Tokens.of(positions=positions, valid=valid)
        return changed.embed(jnp.zeros((1, 5, WIDTH)), tok).sum()

    slope = jax.jit(jax.grad(total))
    positions = grid(2, 2)
    expected = slope(part.rows[...], positions)
    found = slope(part.rows[...], np.where(valid[..., None], positions, 90))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_a_place_beyond_the_tables_is_nan_where_it_is_traced():
    for arguments in ('2, 3', '4, 4, mode="fractional", size=(2, 3)'):
        found = np.isnan(table(make(arguments), grid(3, 4)))
        inside = (grid(3, 4)[0] < (2, 3)).all(-1)
        np.testing.assert_array_equal(found, ~inside[:, None].repeat(WIDTH, 1))


def read_at(arguments, positions, width=WIDTH):
    return lambda: make(arguments).table(pj.Tokens.of(positions=positions), width)


test_wrong_calls = refused() | {
    'navit_factorized: row 3 is not in 0 .. 2': read_at('3, 5', grid(4, 5)),
    'column 4 is not in 0 .. 3': read_at('9, 9, mode="fractional", size=(4, 4)', grid(4, 5)),
    'row -2 is not in': read_at('3, 5', [[[-2, 3]]]),
    'integer positions': read_at('3, 5', grid(3, 5) / 2),
    'built for token vectors of width 6, got 8': read_at('3, 5', grid(3, 5), 8),
    'needs an even width, got 5': lambda: make('3, 3, combine="stack"', 5),
    r'size=\(2, 2\) is of mode=': lambda: make('3, 3, size=(2, 2)'),
    "'addition' is not|combine is 'addition'": lambda: make('3, 3, combine="addition"'),
}
