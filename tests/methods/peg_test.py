"""PEG: the convolution against another library, its symmetries, its place in a model and in a
pyramid, what training does with it, and refused arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.convolution import depthwise
from posenc_jax.lab.model.parameters import decays
from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.methods.peg import Peg, peg
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden, golden_suite
from tests.methods.models import read, turned_off
from tests.refusals import refused
from tests.small_models import small_model

GOLDEN = golden('peg')
SIZES = dict(vocab_size=0, train_len=6, layers=2, width=8, heads=2, kind='encoder', output_size=3)
SIZES |= dict(channels=1, patch=2, pool='mean')
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 12, 1))


def model_of(encoding, **fields):
    return small_model(**{**SIZES, 'encoding': encoding, **fields})


def make(arguments='', width=2):
    return pj.make(f'peg({arguments})', model_dim=width, rngs=nnx.Rngs(0))


def convolved(padding):
    def row(values):
        part = make(f'padding={padding!r}')
        part.kernel[...], part.bias[...] = jnp.array(values['kernel']), jnp.array(values['bias'])
        return part.embed(jnp.array(values['x'])[None], Tokens.on_grid(2, 3, extra=1))[0]

    return row


ONES = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)), jnp.zeros(1)
test_golden = golden_suite('peg') | {
    **{padding: (convolved(padding), {'atol': 1e-5}) for padding in ('zeros', 'circular')},
    'counts': lambda _: peg(*ONES)[0, :, :, 0],  # of the cells that a kernel of ones meets
}


def test_on_a_torus_every_cell_meets_all():
    assert (peg(*ONES, circular=True) == 10).all()


def test_what_shifts_do():
    """Inside the grid a shift moves the result along; with circular padding, everywhere. Zeros at
    the border do not.
    """
    x = jax.random.normal(jax.random.key(1), (1, 6, 7, 3))
    kernel = jax.random.normal(jax.random.key(2), (5, 5, 3))
    moved = jnp.roll(x, (1, 2), (1, 2))
    for circular in (False, True):
        f = lambda x: np.asarray(depthwise(x, kernel, circular=circular))
        apart = np.abs(f(moved) - np.roll(f(x), (1, 2), (1, 2)))[0]
        # Rows 3.. and columns 4.. of the moved grid see the same cells as before.
        assert apart[3:4, 4:5].max() < 1e-5
        assert (apart.max() < 1e-5) == circular


def test_a_kernel_larger_than_the_torus_goes_around_it():
    kernel = jax.random.normal(jax.random.key(3), (7, 7, 1))
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    out = depthwise(x, kernel, circular=True)[0, :, :, 0]
    k, a = np.asarray(kernel)[..., 0], np.asarray(x)[0, :, :, 0]
    expected = sum(k[i, j] * np.roll(a, (3 - i, 3 - j), (0, 1)) for i in range(7) for j in range(7))
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_nothing_is_added_by_zeros_and_the_weights_start_as_in_the_paper():
    part = make('kernel=3', width=20_000)
    assert float(np.std(part.kernel[...])) == pytest.approx(GOLDEN['std_3'], rel=0.01)
    assert not np.asarray(part.bias[...]).any() and part.depth == 1
    small = make()
    turned_off(small.kernel)
    x = jax.random.normal(jax.random.key(4), (1, 5, 2))
    np.testing.assert_array_equal(small.embed(x, Tokens.on_grid(2, 2, extra=1)), x)


def test_padding_is_read_as_zeros_and_stays():
    part, x = make(), jax.random.normal(jax.random.key(5), (1, 4, 2))
    tok = Tokens.on_grid(2, 2)
    valid = jnp.array([[True, True, False, True]])
    known = Tokens(**{**vars(tok), 'valid': valid})
    out = part.embed(x, known)
    expected = part.embed(x.at[:, 2].set(0), tok)
    np.testing.assert_allclose(out[valid], expected[valid], atol=1e-6)
    np.testing.assert_array_equal(out[:, 2], x[:, 2])


@pytest.mark.full
def test_a_model_applies_it_behind_its_first_layer():
    model = model_of('peg()', pool='token')
    tok, part = model.tokens_of(IMAGES), next(p for p in model.shared if isinstance(p, Peg))
    x = model.vectors(IMAGES, tok)
    for number, (layer_type, block) in enumerate(model.layers()):
        x = part.embed(x, tok) if number == 1 else x
        x = block(x, tok, model.encoding(layer_type, block))
    np.testing.assert_allclose(model.hidden(IMAGES), model.norm(x)[:, :1], atol=1e-5)
    assert tok.grid == (4, 6) and tok.length == 25


def test_positions_come_from_the_border_alone():
    """Without PEG a model of patches does not see their order; with zeros at the border it does."""
    patches = IMAGES.reshape(4, 4, 2, 6, 2, 1)
    moved = patches[:, ::-1, :, ::-1].reshape(IMAGES.shape)
    shifted = jnp.roll(IMAGES, (2, 4), (1, 2))
    for spec, sees_order, sees_shift in (
        ('nope()', False, False),
        ('peg()', True, True),
        ("peg(padding='circular')", True, False),
    ):
        model = model_of(spec)
        gap = lambda a: float(np.abs(read(model, a) - read(model, IMAGES)).max())
        for found, expected in ((gap(moved), sees_order), (gap(shifted), sees_shift)):
            assert found > 1e-3 if expected else found < 2e-5, (spec, found)


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_recomputed_layers_bfloat16_and_a_mesh_change_nothing():
    chain = dict(encoding='peg(depth=1) | peg(depth=2)', layers=3, pool='token')
    model = model_of(**chain)
    run = jax.jit(jax.value_and_grad(lambda model, images: (read(model, images) ** 2).sum()))
    expected, gradient = run(model, IMAGES)
    kernels = [part.kernel for part in gradient.shared if isinstance(part, Peg)]
    assert len(kernels) == 2 and all(np.abs(kernel[...]).max() > 1e-6 for kernel in kernels)
    again, other = run(model_of(**chain, remat='full'), IMAGES)
    assert float(again) == pytest.approx(float(expected), rel=1e-5)
    same(other, gradient)
    low = read(model_of(**chain, dtype='bfloat16'), IMAGES)
    assert low.dtype == jnp.float32 and np.abs(low - read(model, IMAGES)).max() < 0.2
    if len(jax.devices()) < 8:
        pytest.skip('needs eight emulated devices')
    mesh = make_mesh(2, 2, 2, 1, devices=jax.devices()[:8])
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        here = nnx.merge(graphdef, place(params), place(rest))
        cut, other = run(here, IMAGES)
    assert len(here.shared[0].kernel[...].sharding.device_set) == 8
    assert float(cut) == pytest.approx(float(expected), rel=1e-5)
    same(other, gradient)


@pytest.mark.full
def test_a_pyramid_has_one_in_every_stage():
    lower = ((2, 4, 1, 2, 'peg()'),)
    model = model_of('peg()', lower=lower, patch=2)
    found = [[p for p in stack.shared if isinstance(p, Peg)] for stack in model.stacks]
    assert [[p.kernel.shape for p in parts] for parts in found] == [[(3, 3, 8)], [(3, 3, 4)]]
    assert jax.eval_shape(model, IMAGES).shape == (4, 1, 3)
    with pytest.raises(SpecError, match=r'peg acts before layer 1, but the layers are 0 \.\. 0'):
        model_of('peg()', lower=((1, 4, 1, 2, 'peg()'),))


def test_weight_decay_leaves_it_alone():
    model = model_of('peg()', layers=2)
    rules = nnx.traversals.flatten_mapping(decays(model))
    flat = {'/'.join(map(str, path)): rule for path, rule in rules.items()}
    kernels = {name: rule for name, rule in flat.items() if name.startswith('shared')}
    assert kernels and not any(kernels.values()) and any(flat.values())


def cached():
    pj.Attention('peg() | full()', width=8, heads=2, rngs=nnx.Rngs(0)).start(batch=1, capacity=4)


test_wrong_places = refused() | {
    'peg convolves over a grid of tokens, and these lie on': (
        lambda: make().embed(jnp.ones((1, 6, 2)), Tokens.of(length=6))
    ),
    'peg was built for vectors of width 2, got 3': (
        lambda: make().embed(jnp.ones((1, 6, 3)), Tokens.on_grid(2, 3))
    ),
    'peg gives every token another position when one is added': cached,
}
