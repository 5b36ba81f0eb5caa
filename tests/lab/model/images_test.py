"""Models that read images or vectors in the place of token ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.model.config import TransformerConfig, pixels_per_patch
from posenc_jax.lab.model.input_layer import PatchInput
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.testing.jaxprs import largest_array
from tests.refusals import check_refused

SIZES = dict(
    vocab_size=0, train_len=6, layers=2, width=8, heads=2, kind='encoder', output_size=3, channels=2
)
IMAGE = jax.random.normal(jax.random.key(0), (2, 4, 6, 2))


def model_of(**fields):
    cfg = TransformerConfig(**{**SIZES, 'encoding': 'nope()', 'patch': 2, 'pool': 'mean', **fields})
    return Transformer(cfg, rngs=nnx.Rngs(0))


def test_patches_are_a_product_with_their_pixels():
    layer = PatchInput(2, 5, 2, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    x = np.asarray(layer(IMAGE))
    assert x.shape == (2, 6, 5)  # 2 x 3 patches, row by row
    kernel = np.asarray(layer.kernel[...], np.float64).reshape(8, 5)
    for number, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        pixels = np.asarray(IMAGE)[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = pixels.reshape(2, 8) @ kernel + np.arange(5.0)
        np.testing.assert_allclose(x[:, number], expected, atol=1e-5)


@pytest.mark.parametrize('circular', [False, True])
def test_patches_that_overlap_reach_up_and_to_the_left(circular):
    layer = PatchInput(1, 1, 2, overlap=True, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.ones((3, 3, 1, 1))
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    table = np.pad(
        np.arange(16.0).reshape(4, 4), ((1, 0), (1, 0)), 'wrap' if circular else 'constant'
    )
    expected = [table[r : r + 3, c : c + 3].sum() for r in (0, 2) for c in (0, 2)]
    np.testing.assert_allclose(layer(image, circular=circular)[0, :, 0], expected)


def test_tokens_of_an_image_are_the_class_token_and_the_grid():
    model = model_of(pool='token')
    tok = model.tokens_of(IMAGE)
    assert tok.grid == (2, 3) and tok.length == 7
    assert tok.pos[0, :3].tolist() == [[-1, -1], [0, 0], [0, 1]]
    assert tok.slice(0, 2).grid is None
    assert model(IMAGE).shape == (2, 1, 3)
    # The class token is what is read: without attention it does not see the image.
    assert model.hidden(IMAGE).shape == (2, 1, 8)
    with pytest.raises(ValueError, match='leave tok out'):
        model(IMAGE, tok)


def test_a_mean_without_positions_does_not_see_the_order_of_patches():
    model = model_of()
    patches = IMAGE.reshape(2, 2, 2, 3, 2, 2)
    moved = patches[:, ::-1, :, ::-1].reshape(IMAGE.shape)
    np.testing.assert_allclose(model(moved), model(IMAGE), atol=1e-5)
    mixed = model_of(mlp='mix_ffn')
    changed = np.abs(np.asarray(mixed(moved) - mixed(IMAGE))).max()
    assert changed > 1e-6


def test_vectors_are_read_with_what_is_known_about_them():
    model = model_of(patch=0, channels=4)
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    valid = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    out = model(x, Tokens.of(valid=valid))
    short = model(x[1:, :3])
    np.testing.assert_allclose(out[1], short[0], atol=1e-5)
    with pytest.raises(ValueError, match=r'reads vectors \[B, T, 4\], got \(2, 5, 3\)'):
        model(x[..., :3])


@pytest.mark.full
def test_a_pyramid_is_its_stages_one_after_the_other():
    lower = ((1, 4, 1, 2, 'nope()'), (1, 6, 2, 1, 'nope()'))
    model = model_of(lower=lower, patch=2, mlp='mix_ffn')
    image = jax.random.normal(jax.random.key(2), (2, 8, 4, 2))
    first, second = model.lower
    grid = first.hidden(image).reshape(2, 4, 2, 4)
    grid = second.hidden(grid).reshape(2, 4, 2, 6)
    assert model.tokens_of(grid).grid == (2, 1)
    assert model(image).shape == (2, 1, 3)
    assert pixels_per_patch(model.cfg.patch, model.cfg.lower) == 4
    assert [stack.cfg.width for stack in model.stacks] == [8, 4, 6]
    gradient = nnx.grad(lambda model: model(image).sum())(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    'message, fields',
    {
        "pool='token' is for models that cut images": {'patch': 0, 'pool': 'token'},
        "mlp='mix_ffn' is for models that cut images": {'patch': 0, 'mlp': 'mix_ffn'},
        'patch is for models that cut images': {'channels': 0, 'vocab_size': 5, 'output_size': 0},
        'a stage in lower is .* stage 0 is': {'lower': ((1, 4, 1, 2),)},
        'has vocab_size=0': {'vocab_size': 7},
        'tie=False': {'tie': True},
    }.items(),
)
def test_fields_that_do_not_fit_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        model_of(**fields)


@pytest.mark.full
@pytest.mark.parametrize(
    'fields',
    [
        {'encoding': 'peg() | full()'},
        {'encoding': 'polyphase_anchor() | full()'},
        {'encoding': 'nope()', 'mlp': 'mix_ffn', 'overlap': True},
        {'encoding': '', 'pattern': ('spatial_reduction(2)',), 'mlp': 'mix_ffn'},
        {'encoding': '', 'pattern': ('pcm_layer(gru(), order="xyz")',), 'patch': 0, 'channels': 3},
    ],
)
def test_memory_is_linear_in_the_tokens(fields):
    """A step of training makes no array whose size is that of pairs of tokens, nor of tokens and
    reduced ones.
    """
    model = model_of(**{'patch': 1, 'heads': 1, **fields})
    graphdef, state = nnx.split(model)
    loss = lambda state, x, tok: nnx.merge(graphdef, state)(x, tok).sum()

    def largest(side):
        x, tok = jax.ShapeDtypeStruct((1, side, side, 2), jnp.float32), None
        if not model.cfg.patch:
            x = jax.ShapeDtypeStruct((1, side**2, 3), jnp.float32)
            tok = Tokens.of(positions=np.random.default_rng(0).random(x.shape))
        return largest_array(jax.jit(jax.grad(loss)).trace(state, x, tok))

    assert largest(128) <= 4 * largest(64)


def test_images_that_do_not_fit_are_errors():
    model = model_of()
    with pytest.raises(ValueError, match='4 x 5 pixels .* 2 x 2; nearest size: 4 x 4'):
        model(IMAGE[:, :, :5])
    pyramid = model_of(lower=((1, 4, 1, 4, 'nope()'),), patch=2)
    cut = '12 x 16 pixels .* 4 x 4, then 2 x 2: stage 1 .* 3 x 4; nearest size: 16 x 16'
    calls = {
        cut: lambda: pyramid(jnp.zeros((1, 12, 16, 2))),
        r'reads images \[B, rows, columns, 2\], got': lambda: model(IMAGE[..., :1]),
        'vectors or images|tokens must be|reads images': lambda: model(
            jnp.zeros((2, 6), jnp.int32)
        ),
        'a grid has at least one row': lambda: Tokens.on_grid(0, 3),
    }
    check_refused(calls)


def test_an_encoding_acts_before_the_layer_that_it_names():
    from posenc_jax.lab.model.assemble import check_depths
    from posenc_jax.protocol.encoding import Encoding

    class Shift(Encoding):
        depth = 1

        def embed(self, x, tok):
            return x + 1.0

    model = model_of()
    outs = {}
    for depth in (0, 1, 'every'):
        part = Shift()
        part.depth = depth
        shifted = nnx.clone(model)
        shifted.shared = nnx.List([*model.shared, part])
        shifted.links = tuple(
            (*links, type(links[0])(True, len(model.shared))) for links in model.links
        )
        outs[depth] = shifted.hidden(IMAGE)
        tok = model.tokens_of(IMAGE)
        x = model.vectors(IMAGE, tok)
        for number, (layer_type, block) in enumerate(model.layers()):
            if depth in (number, 'every'):
                x = x + 1.0
            x = block(x, tok, model.encoding(layer_type, block))
        expected = model.norm(x).mean(axis=1, keepdims=True)
        np.testing.assert_allclose(outs[depth], expected, atol=1e-5)
        if depth:
            with pytest.raises(ValueError, match='before later layers'):
                shifted.embed(IMAGE, (tok,))
    late = Shift()
    late.depth = 2
    with pytest.raises(SpecError, match=r'before layer 2, but the layers are 0 \.\. 1'):
        check_depths(model.cfg, [late])
