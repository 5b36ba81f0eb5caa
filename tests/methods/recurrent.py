"""What every mixer with a state must do: tests call these functions with a spec string."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer

MODEL, HEADS, WIDTH = 8, 2, 4
CONTEXT = dict(
    model_dim=MODEL, heads=HEADS, kv_heads=HEADS, head_dim=WIDTH, train_len=8, layers=2
)  # fmt: skip


def make(spec, seed=0, **context):
    """The mixer of a spec string, with all variables away from their initial values."""
    (node,) = parse_layer(spec).nodes
    mixer = spec_language.build(node, {**CONTEXT, **context, 'rngs': nnx.Rngs(seed)})
    for number, leaf in enumerate(
        jax.tree.leaves(nnx.state(mixer, nnx.Param), is_leaf=lambda a: isinstance(a, nnx.Variable))
    ):
        leaf[...] = leaf[...] + 0.3 * draw(100 + number, *leaf.shape)
    return mixer


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


whole = jax.jit(lambda mixer, x, tok: mixer.whole(x, tok))
step = jax.jit(lambda mixer, x, tok, state, cursor: mixer.step(x, tok, state, cursor))
fill = jax.jit(lambda mixer, x, tok: mixer.fill(x, tok, tok.length))


def check_cuts(mixer, length, *cuts, tok=None):
    """Steps of these lengths give what one pass gives, with a state of one size."""
    x = draw(0, 2, length, MODEL)
    tok = pj.Tokens.of(length=length) if tok is None else tok
    expected = whole(mixer, x, tok)
    for cut in cuts:
        assert sum(cut) == length
        state, cursor, out = mixer.start(2, tok), 0, []
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
        for count in cut:
            y, state = step(mixer, x[:, cursor : cursor + count], tok, state, cursor)
            cursor += count
            out.append(y)
            assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
        valid = np.ones((2, length), bool) if tok.valid is None else np.asarray(tok.valid)
        out = np.concatenate(out, axis=1)
        np.testing.assert_allclose(out[valid], np.asarray(expected)[valid], atol=3e-5)


def check_padding_and_packing(mixer, length):
    """Padding on either side changes nothing, and a packed document sees no other."""
    x, left = draw(1, 2, length, MODEL), length // 3
    expected = np.asarray(whole(mixer, x, pj.Tokens.of(length=length)))
    total, behind = left + length + 2, draw(3, 2, 2, MODEL)
    place = np.arange(total)[None].repeat(2, axis=0)
    valid = (place >= left) & (place < left + length)
    pieces = [left - 1, 2, total - left - 1]

    # One segment, as the state would start anew behind padding of another. Padded and packed rows
    # have the same optional arrays, so they use the same compiled functions.
    tok = pj.Tokens.of(valid=valid, segment=np.zeros_like(place))
    padded = np.concatenate([draw(2, 2, left, MODEL), x, behind], axis=1)
    out = np.asarray(whole(mixer, padded, tok))
    np.testing.assert_allclose(out[:, left:-2], expected, atol=3e-5)
    check_cuts(mixer, total, pieces, tok=tok)

    # The first document is the beginning of the second, and the third has two tokens.
    segment = 1 * (place >= left) + (place >= total - 2)
    tok = pj.Tokens.of(valid=np.ones_like(valid), segment=segment)
    out = np.asarray(whole(mixer, np.concatenate([x[:, :left], x, behind], axis=1), tok))
    np.testing.assert_allclose(out[:, left:-2], expected, atol=3e-5)
    np.testing.assert_allclose(out[:, :left], expected[:, :left], atol=3e-5)
    check_cuts(mixer, total, pieces, [left - 1, 1, 1, total - left - 1], tok=tok)


def check_causality(mixer, length):
    """Not a bit of a result depends on later tokens."""
    x, tok = draw(5, 2, length, MODEL), pj.Tokens.of(length=length)
    changed = x.copy()
    changed[:, length // 2 :] += 1
    before = whole(mixer, x, tok)[:, : length // 2], whole(mixer, changed, tok)[:, : length // 2]
    np.testing.assert_array_equal(*before)


def check_gradients(mixer, length, unused=()):
    """Gradients are finite, and zero only for parameters whose path ends in a name of `unused`."""
    graph, state = nnx.split(mixer, nnx.Param, ...)[0], nnx.split(mixer, nnx.Param, ...)[1:]
    valid = np.arange(length)[None] >= np.array([[0], [length // 4]])

    @jax.jit
    def gradients(x, trained, rest):
        loss = lambda x, trained: jnp.sum(
            jnp.where(
                valid[..., None],
                nnx.merge(graph, trained, rest).whole(x, pj.Tokens.of(valid=valid)) ** 2,
                0,
            )
        )
        return jax.grad(loss, (0, 1))(x, trained)

    d_x, d_trained = gradients(draw(6, 2, length, MODEL), *state)
    assert np.isfinite(d_x).all() and not np.any(np.asarray(d_x)[~valid])
    for path, leaf in jax.tree_util.tree_leaves_with_path(d_trained):
        named = any(name in jax.tree_util.keystr(path) for name in unused)
        assert np.isfinite(leaf).all() and bool(np.any(leaf)) != named, path


def check_bfloat16(mixer, length):
    """In bfloat16 the result has that type and the state is float32."""
    x, tok = draw(7, 2, length, MODEL), pj.Tokens.of(length=length)
    expected = whole(mixer, x, tok)
    y, state = fill(mixer, jnp.asarray(x, jnp.bfloat16), tok)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(state.inner)} == {np.dtype('float32')}
    error = np.abs(np.asarray(y, np.float32) - expected)
    assert error.max() < 0.06 * np.abs(expected).max()


@functools.partial(jax.jit, static_argnums=(0,))
def _trained(graph, state, tokens, rate):
    def loss(trained, rest):
        logits = nnx.merge(graph, trained, rest)(tokens[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1).mean()

    def update(trained, _):
        value, slope = jax.value_and_grad(loss)(trained, state[1])
        return jax.tree.map(lambda a, b: a - rate * b, trained, slope), value

    return jax.lax.scan(update, state[0], None, length=30)[1]


def check_training(*pattern, length=9, rate=0.3):
    """A model with these layers lowers its loss on one batch of text of few tokens."""
    cfg = TransformerConfig(
        vocab_size=5, train_len=8, layers=len(pattern), width=MODEL, heads=HEADS,
        encoding='nope()', pattern=pattern,
    )  # fmt: skip
    graph, *state = nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param, ...)
    tokens = np.random.default_rng(0).integers(0, 5, (2, length))
    losses = np.asarray(_trained(graph, state, tokens, rate))
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0], losses
