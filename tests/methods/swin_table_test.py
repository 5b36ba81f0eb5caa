"""Swin's bias table: ids by hand, attention pair by pair in float64, windows, and the bicubic
resize by definition and against torch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods import swin_table as module
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.methods.resizing import resized
from tests.refusals import refused
from tests.small_models import small_model

GOLDEN = golden('swin_table')['values']
N, ROWS, COLUMNS = 2, 3, 4
CELLS = grid(ROWS, COLUMNS, 0)
TOK, INPUTS = pj.Tokens.of(positions=CELLS), qkv(12, N)


def make(arguments='3, 4', heads=N, std=1.0):
    return pj.make(f'swin_table({arguments}, std={std})', heads=heads, rngs=nnx.Rngs(0))


def checked(part, tok):
    """Calls the door that sees all positions."""
    return part.project(None, None, None, tok, tok)[3]


def ids_of(rows, columns, cell=slice(None)):
    cells = jnp.asarray(grid(rows, columns, 0))
    return module.swin_table_ids(cells, cells, rows, columns)[0, cell]


def resized_row():
    cells = jnp.array(GOLDEN['cells'])[:, None]
    return module.swin_table_resized(cells, (1, 2), (1, 3))[:, 0]


test_golden = golden_suite('swin_table') | {
    'of_first_cell': lambda: ids_of(2, 2, 0),
    'of_last_cell': lambda: ids_of(2, 2, 3),
    'of_itself': lambda: jnp.diagonal(ids_of(2, 2)),
    'in_2_x_3': lambda: ids_of(2, 3, 0),
    'resized': (resized_row, {'atol': 1e-6}),
}


def softmax(s):
    w = np.exp(s - s.max(-1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def reference(table, positions, window, seen=lambda a, b: True):
    """Attention pair by pair, float64; the rows of the table are counted by two loops."""
    q, k, v = (np.float64(a[0]) for a in INPUTS)
    rows, columns = window
    number = {}
    for down in range(1 - rows, rows):
        for right in range(1 - columns, columns):
            number[down, right] = len(number)
    s = np.full((N, len(q), len(q)), -np.inf)
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            if seen(a, b):
                bias = np.float64(table)[number[a[0] - b[0], a[1] - b[1]]]
                s[:, i, j] = (q[i] * k[j]).sum(-1) / q.shape[-1] ** 0.5 + bias
    return np.einsum('nts,snh->tnh', softmax(s), v)


def test_attention_pair_by_pair():
    part = make()
    expected = reference(part.offsets[...], CELLS[0], (ROWS, COLUMNS))
    for block in (None, (5, 7)):
        np.testing.assert_allclose(attend(part, *INPUTS, TOK, block=block)[0], expected, atol=1e-5)
    # A window anywhere on a grid, and a larger table for it.
    there = pj.Tokens.of(positions=CELLS + np.array([40, 7]))
    np.testing.assert_allclose(attend(part, *INPUTS, there)[0], expected, atol=1e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('shift', [1, 0])
def test_a_query_sees_its_own_window_alone(shift):
    part = make(f'2, 2, windows=True, shift={shift}')
    window = lambda cell: tuple((np.array(cell) - shift) // 2)
    same = lambda a, b: window(a) == window(b)
    expected = reference(part.offsets[...], CELLS[0], (2, 2), same)
    for block in (None, (5, 7)):
        found = attend(part, *INPUTS, TOK, block=block)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_shifted_windows_are_those_of_the_rolled_grid():
    """As the code makes them: roll the grid by -shift, cut it, and tell apart in every window what
    the roll has brought together.
    """
    size, shift, side = 4, 2, 8
    slices = slice(0, -size), slice(-size, -shift), slice(-shift, None)
    regions = np.zeros((side, side), int)
    for row, rows in enumerate(slices):
        for column, columns in enumerate(slices):
            regions[rows, columns] = 3 * row + column
    cut = np.arange(side) // size
    windows = cut[:, None] * side + cut
    key = np.roll(regions * side**2 + windows, (shift, shift), (0, 1)).ravel()
    tok = pj.Tokens.of(positions=grid(side, side, 0))
    mask = make(f'{size}, {size}, windows=True, shift={shift}').mask(tok, tok)[0, 0]
    np.testing.assert_array_equal(mask, key[:, None] == key)


def test_rows_and_columns_are_told_apart():
    """The offset is query minus key; rows come first."""
    table = jnp.arange(15.0)[:, None]  # a window of 2 x 3
    bias = module.swin_table_bias(table, ids_of(2, 3)[None])[0, 0].reshape(2, 3, 2, 3)
    assert bias[1, 0, 0, 0] == 12 and bias[0, 0, 1, 0] == 2
    assert bias[0, 1, 0, 0] == 8 and bias[0, 0, 0, 1] == 6


def test_pairs_with_a_token_beside_the_grid_get_nothing():
    pos = jnp.asarray(grid(2, 2))
    bias = make('2, 2').bias(pos, pos)[0]
    np.testing.assert_array_equal(bias[:, 0], 0)
    np.testing.assert_array_equal(bias[:, :, 0], 0)
    assert np.abs(bias[:, 1:, 1:]).min() > 0
    masked = make('1, 1, windows=True').mask(*[pj.Tokens.of(positions=grid(2, 2))] * 2)[0, 0]
    expected = np.eye(5, dtype=bool)
    expected[0] = expected[:, 0] = True
    np.testing.assert_array_equal(masked, expected)


# Made smaller along one side, and enlarged: nothing is filtered.
@pytest.mark.full_but_one
@pytest.mark.parametrize('size', [(2, 7), (6, 5)])
def test_the_table_is_resized_as_a_picture(size):
    part, larger = make(), make(f'3, 4, size={size}')
    image = np.asarray(part.offsets[...]).reshape(5, 7, N)
    new = tuple(2 * side - 1 for side in size)
    expected = resized(image, new).reshape(-1, N)
    found = module.swin_table_resized(part.offsets[...], (3, 4), size)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    cells = jnp.asarray(grid(*size, 0))
    ids = module.swin_table_ids(cells, cells, *size)
    bias = np.moveaxis(expected[np.asarray(ids)[0]], -1, 0)
    np.testing.assert_allclose(larger.bias(cells, cells)[0], bias, atol=1e-5)


@pytest.mark.full
def test_the_resize_of_torch():
    torch = pytest.importorskip('torch')
    table = draw(0, 35, N)
    image = torch.tensor(table.T.reshape(1, N, 5, 7))
    for size in ((6, 5), (2, 7)):
        new = tuple(2 * side - 1 for side in size)
        options = dict(mode='bicubic', align_corners=False, antialias=False)
        expected = torch.nn.functional.interpolate(image, size=new, **options)[0].numpy()
        found = module.swin_table_resized(jnp.asarray(table), (3, 4), size)
        np.testing.assert_allclose(found.T.reshape(N, *new), expected, atol=1e-5)


def test_windows_of_documents_have_places_of_their_own():
    """The window of every document counts, not the whole of a packed row; padding does not."""
    pos = np.concatenate([grid(2, 3, 1), grid(4, 2, 0) + 50], axis=1)
    segment = np.repeat([[0, 1]], [7, 8], axis=1)
    assert module.extent(pj.Tokens.of(positions=pos, segment=segment)) == (4, 3)
    valid = np.arange(15)[None] < 11
    assert module.extent(pj.Tokens.of(positions=pos, segment=segment, valid=valid)) == (2, 3)
    assert module.extent(pj.Tokens.on_grid(5, 9, extra=2)) == (5, 9)
    assert checked(make('4, 3'), pj.Tokens.of(positions=pos, segment=segment)).length == 15


def test_an_offset_beyond_the_table_is_nan_where_it_is_traced():
    part = make('2, 4')

    @jax.jit
    def traced(pos):
        tok = checked(part, pj.Tokens.of(positions=pos))
        return part.bias(tok.pos, tok.pos)

    bias = traced(jnp.asarray(CELLS))
    beyond = np.abs(CELLS[0, :, None, 0] - CELLS[0, :, 0]) > 1
    np.testing.assert_array_equal(np.isnan(bias[0, 0]), beyond)


def test_padding_may_be_anywhere():
    """Also beyond the window: no gradient is lost to it."""
    part, valid = make(), np.arange(12)[None] < 8

    def total(table, pos):
        changed = nnx.clone(part)
        changed.offsets[...] = table
        tok = pj.Tokens.of(positions=pos, valid=valid)
        out = pj.attend(
            changed,
            *INPUTS,
            *changed.project(*INPUTS, tok, tok)[3:],
            block=5,
            applied=pj.TOKEN_STAGE,
        )
        return jnp.where(valid[..., None, None], out, 0).sum()

    slope = jax.jit(jax.grad(total))
    there = CELLS + 40
    expected = slope(part.offsets[...], jnp.asarray(there))
    found = slope(part.offsets[...], jnp.asarray(np.where(valid[..., None], there, 0)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def slopes(spec, tok, inputs, counted=True):
    """Of the squared sum of attention where it counts, by all parameters, q, k and v."""
    part = pj.make(spec, heads=N, head_dim=8, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(part, nnx.Param, ...)

    def total(params, *inputs):
        out = attend(nnx.merge(graph, params, rest), *inputs, tok)
        return (jnp.where(counted, out, 0) ** 2).sum()

    return jax.grad(total, argnums=(0, 1, 2, 3))(params, *map(jnp.asarray, inputs))


@pytest.mark.parametrize(
    'spec',
    [
        'swin_table(2, 2, windows=True) | soft_cap(5.0)',
        'document() | swin_table(2, 2) | soft_cap(5.0)',
        'document() | beit_table(2, 2) | soft_cap(5.0)',
        'document() | swin_v2_cpb(2, 2, hidden=4) | soft_cap(5.0)',
        'document() | dape(encoding=swin_table(2, 2), width=4)',
    ],
)
def test_gradients_are_those_of_windows_by_themselves(spec):
    """What follows in a chain reads pairs that are not seen too, whose offsets the table lacks."""
    windows = grid(2, 2, 0) + np.array([0, 50])[:, None, None]
    inputs = qkv(4, N, rows=2)
    apart = slopes(spec, pj.Tokens.of(positions=windows, segment=np.zeros((2, 4), int)), inputs)
    packed = pj.Tokens.of(positions=windows.reshape(1, 8, 2), segment=np.repeat([[0, 1]], 4, 1))
    found = slopes(spec, packed, [a.reshape(1, 8, N, 8) for a in inputs])
    for own, expected in zip(jax.tree.leaves(found), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(own, expected.reshape(own.shape), atol=2e-5)


def test_padding_may_be_beyond_the_table_that_dape_reads():
    spec = 'dape(encoding=swin_table(2, 2), width=4)'
    pos = np.concatenate([grid(2, 2, 0), grid(2, 2, 0) + 50], axis=1)
    valid, inputs = np.arange(8)[None] < 4, qkv(8, N)
    tok = pj.Tokens.of(positions=pos, valid=valid)
    found = slopes(spec, tok, inputs, valid[..., None, None])
    alone = slopes(spec, pj.Tokens.of(positions=pos[:, :4]), [a[:, :4] for a in inputs])
    for own, expected in zip(jax.tree.leaves(found[0]), jax.tree.leaves(alone[0]), strict=True):
        np.testing.assert_allclose(own, expected, atol=2e-5)


def test_every_layer_of_a_model_has_a_table_of_its_own():
    """And the grid of an image is known where the model is compiled."""
    model = small_model(
        vocab_size=0, channels=1, patch=2, kind='encoder', pool='mean', output_size=3, layers=2,
        width=8, heads=N, train_len=12, encoding='swin_table(3, 4, std=1.0)',
    )  # fmt: skip
    (part,) = model.blocks[0].encodings
    assert part.offsets.shape == (2, 35, N) and len(np.unique(part.offsets[:, :, 0])) == 70
    run = jax.jit(lambda model, image: model(image))
    assert run(model, jnp.ones((1, 6, 8, 1))).shape == (1, 1, 3)
    with pytest.raises(ValueError, match=r'window of 4 x 4 cells.*use size=\(4, 4\)'):
        run(model, jnp.ones((1, 8, 8, 1)))


smaller = 'window of 3 x 4 cells, and the table is for one of {}, which is smaller; use size='
test_wrong_calls = refused() | {
    smaller.format('2 x 4') + r'\(3, 4\)': lambda: checked(make('2, 4'), TOK),
    smaller.format('3 x 3'): lambda: checked(make('9, 9, size=(3, 3)'), TOK),
    'window of 3 x 5 cells': lambda: checked(make(), pj.Tokens.on_grid(3, 5)),
    r'positions \[B, L, 2\]': lambda: checked(make(), pj.Tokens.of(length=4)),
    'integer positions': lambda: checked(make(), pj.Tokens.of(positions=CELLS / 2)),
    'built for 2 heads, the queries have 4': lambda: attend(make(), *qkv(12, 4), TOK),
    'shift=1 moves windows': lambda: make('2, 2, shift=1'),
    'rows must be at least 1 and at most 256, got 0': lambda: make('0, 2'),
    'at most 256, got 300': lambda: make('2, 2, size=(2, 300)'),
}
