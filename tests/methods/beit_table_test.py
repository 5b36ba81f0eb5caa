"""BEiT's bias table: ids by hand and by two loops, its three entries for a class token, and what a
resize keeps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.swin_table import swin_table_resized
from tests.golden_files import golden_suite
from tests.methods.pairs import draw, grid
from tests.refusals import refused
from tests.small_models import small_model

N = 2


def make(arguments, heads=N):
    """With random entries, which are zero at first."""
    part = pj.make(f'beit_table({arguments})', heads=heads, rngs=nnx.Rngs(0))
    part.offsets[...] = jnp.asarray(draw(5, *part.offsets.shape))
    return part


def bias_of(part, rows, columns):
    pos = jnp.asarray(grid(rows, columns))
    return part.bias(pos, pos)[0]


def numbered():
    """The bias of a table whose entries are their own numbers."""
    part = make('1, 2', heads=1)
    part.offsets[...] = jnp.arange(6.0)[:, None]
    return bias_of(part, 1, 2)[0]


test_golden = golden_suite('beit_table') | {
    'entries': lambda: make('1, 2').offsets.shape[0],
    'ids': numbered,
}


def test_every_pair_has_its_entry():
    """The numbering by loops over the offsets, and the class token, pair by pair."""
    part, rows, columns = make('3, 2'), 3, 2
    table = np.asarray(part.offsets[...])
    number = {}
    for down in range(1 - rows, rows):
        for right in range(1 - columns, columns):
            number[down, right] = len(number)
    count, cells = len(number), [(r, c) for r in range(rows) for c in range(columns)]
    expected = np.zeros((N, 7, 7))
    expected[:, 0, 0], expected[:, 0, 1:] = table[count + 2], table[count][:, None]
    expected[:, 1:, 0] = table[count + 1][:, None]
    for i, (r, c) in enumerate(cells):
        for j, (row, column) in enumerate(cells):
            expected[:, i + 1, j + 1] = table[number[r - row, c - column]]
    np.testing.assert_array_equal(bias_of(part, rows, columns), expected)


def test_all_layers_may_have_one_table():
    """An option of the paper's code; without it each layer has its own."""
    sizes = dict(vocab_size=5, layers=2, width=8, heads=N, train_len=4, kind='encoder')
    for share, shape in (('model', (9 + 3, N)), ('auto', (2, 9 + 3, N))):
        model = small_model(**sizes, share=share, encoding='beit_table(2, 2)')
        params = jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
        tables = [a.shape for path, a in params if 'offsets' in jax.tree_util.keystr(path)]
        assert tables == [shape]


def test_a_resize_keeps_the_entries_of_the_class_token():
    part, larger = make('3, 2'), make('3, 2, size=(4, 5)')
    larger.offsets[...] = part.offsets[...]
    small, large = np.asarray(bias_of(part, 3, 2)), np.asarray(bias_of(larger, 4, 5))
    np.testing.assert_array_equal(large[:, 0, :2], small[:, 0, :2])
    np.testing.assert_array_equal(large[:, 1:, 0], small[:, 1:2, 0].repeat(20, 1))
    cells = swin_table_resized(part.offsets[:-3], (3, 2), (4, 5))
    # The offset 0 is in the middle, and of the first cell to the second one it is one to the left.
    np.testing.assert_allclose(large[:, 1, 1:3], cells[jnp.array([31, 30])].T, atol=1e-6)


test_wrong_calls = refused() | {
    r'beit_table: the tokens stand in a window of 2 x 3 cells, and the table is for one of '
    r'2 x 2, which is smaller; use size=\(2, 3\)': lambda: make('2, 2').project(
        None, None, None, *[pj.Tokens.of(positions=grid(2, 3))] * 2
    ),
    'columns must be at least 1': lambda: make('2, 0'),
}
