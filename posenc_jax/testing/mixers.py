"""The laws of mixers that decode, the layers in the place of attention. `check('gru()')` runs them.

They call `whole`, `start`, `fill` and `step` of one mixer, whose parameters have moved away from
their initial values.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import Promises
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.testing.compare import close, close_gradients, demand, equal_trees, gap, holds
from posenc_jax.testing.jaxprs import largest_array
from posenc_jax.testing.subject import CONTEXT as SIZES
from posenc_jax.testing.subject import DOCUMENT, HEADS, KV_HEADS, LENGTH, PACKED, ROWS, draw

# The sizes that a mixer takes from the model.
MODEL = 16
CONTEXT = {**SIZES, 'model_dim': MODEL, 'layers': 2}
PADDED = np.ones((ROWS, LENGTH), bool)
PADDED[0, :3] = PADDED[1, 4:6] = PADDED[1, -4:] = False
# Lengths of the pieces. Every other length of a step is one more program; `fill` reads all at once.
CUTS = ((7, 13), (1, 7, *(1,) * 12))
# All have the same optional arrays, so they use the same compiled functions.
KINDS = {
    'padded': dict(segment=np.zeros_like(PACKED), valid=PADDED),
    'packed': dict(segment=PACKED, valid=np.ones_like(PADDED)),
    'packed and padded': dict(segment=PACKED, valid=PADDED),
}


class Mixed:
    """A mixer with random parameters and input, and its compiled functions.

    Args:
      make: gives the mixer for a seed.
      promises: what its Card states; None where it states nothing.
    """

    def __init__(self, make: Callable[[int], Any], promises: Promises | None):
        self.make, self.promises = make, promises
        self.mixer = make(0)
        self.x = np.asarray(draw(4, ROWS, LENGTH, MODEL))

    def whole(self, x=None, tok=None, mixer=None):
        """`whole` of the usual input, or of another one."""
        mixer, x = (self.mixer if mixer is None else mixer), (self.x if x is None else x)
        return _whole(*nnx.split(mixer), x, Tokens.of(length=x.shape[1]) if tok is None else tok)

    def pieces(self, x, tok, cuts, mixer=None, step=None):
        """The results of the steps over pieces of these lengths, joined."""
        mixer = self.mixer if mixer is None else mixer
        step = step or functools.partial(_step, *nnx.split(mixer))
        memory, out, cursor = mixer.start(len(x), tok), [], 0
        for size in cuts:
            piece, at = x[:, cursor : cursor + size], jnp.asarray(cursor, jnp.int32)
            y, memory = step(piece, tok, memory, at)
            out.append(y)
            cursor += size
        return jnp.concatenate(out, axis=1)


def moved(mixer, seed: int):
    """The mixer, after random numbers have been added to its trained parameters."""
    graphdef, params, rest = nnx.split(mixer, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(params)
    leaves = [a + 0.1 * draw(seed + 100 + n, *a.shape) for n, a in enumerate(leaves)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves), rest)


@functools.partial(jax.jit, static_argnums=0)
def _whole(graphdef, state, x, tok):
    return nnx.merge(graphdef, state).whole(x, tok)


@functools.partial(jax.jit, static_argnums=0)
def _step(graphdef, state, x, tok, memory, cursor):
    return nnx.merge(graphdef, state).step(x, tok, memory, cursor)


@functools.partial(jax.jit, static_argnums=0)
def _fill(graphdef, state, x, tok, count=None):
    return nnx.merge(graphdef, state).fill(x, tok, LENGTH, count)


def shapes(subject: Mixed):
    """The result has the shape and dtype of the input. The state of a `RecurrentMixer` is float32,
    and always of the form of `start`.
    """
    mixer, x = subject.mixer, jnp.asarray(subject.x, jnp.bfloat16)
    tok = Tokens.of(**KINDS['packed and padded'])
    formed = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    out, state = jax.eval_shape(mixer.whole, x, tok), mixer.start(ROWS, tok)
    demand(
        (out.shape, out.dtype) == (x.shape, x.dtype),
        f'whole returns {out.dtype}{list(out.shape)} for bfloat16{list(x.shape)}',
    )
    if not isinstance(mixer, RecurrentMixer):  # its cache may have a dtype of its own
        return
    step = lambda x, state: mixer.step(x, tok, state, jnp.int32(3))
    y, after = jax.eval_shape(step, x[:, 3:4], state)
    demand(
        (y.shape, y.dtype) == ((ROWS, 1, MODEL), jnp.bfloat16),
        f'step returns {y.dtype}{list(y.shape)} for bfloat16{[ROWS, 1, MODEL]}',
    )
    filled = jax.eval_shape(lambda x: mixer.fill(x, tok, LENGTH)[1], x)
    longer = mixer.start(ROWS, Tokens.of(length=50 * LENGTH))
    for name, made in (('step', after), ('fill', filled), ('start for longer texts', longer)):
        demand(
            formed(made) == formed(state),
            f'the state of {name} has another form than that of start, which is {formed(state)}',
        )
    for leaf in jax.tree.leaves(state.inner):
        demand(
            leaf.dtype == jnp.float32 and leaf.shape[0] == ROWS,
            f'the state has {leaf.dtype}{list(leaf.shape)}; expected float32 [{ROWS}, ...]',
        )


def roles(subject: Mixed):
    """Every variable is an `nnx.Param` or a `Constant` and declares the role of each axis."""
    for _, variable in nnx.to_flat_state(nnx.state(subject.mixer)):
        kind, axes = type(variable), variable.get_metadata().get('axes')
        demand(isinstance(variable, (nnx.Param, Constant)), f'a variable is a {kind.__name__}')
        shape = variable.get_value().shape
        demand(
            axes is not None and len(axes) == len(shape),
            f'a {kind.__name__} of shape {shape} has axes={axes}; name each of its axes',
        )
        for size, role in zip(shape, axes):
            wanted = {'heads': HEADS, 'kv_heads': KV_HEADS, 'width': MODEL}.get(role, size)
            demand(size == wanted, f'an axis of {size} has the role {role!r}, which has {wanted}')


def needs_training(subject: Mixed):
    """There are parameters exactly if the Card says so."""
    if subject.promises is None:
        return 'no promises are stated'
    found = bool(jax.tree.leaves(nnx.state(subject.mixer, nnx.Param)))
    promised = subject.promises.needs_training
    demand(found == promised, f'the promise is needs_training={promised}, found {found}')


def decoding(subject: Mixed):
    """Steps over pieces of any lengths, and steps behind `fill`, give what `whole` gives."""
    parts, x, (cut, _) = nnx.split(subject.mixer), subject.x, CUTS[0]
    for kind, given in KINDS.items():
        tok, real = Tokens.of(length=LENGTH, **given), given['valid']
        expected = np.asarray(subject.whole(tok=tok))
        for cuts in CUTS:
            out = np.asarray(subject.pieces(x, tok, cuts))
            what = f'steps of {cuts[0]}, {cuts[-1]} and one pass, {kind},'
            close(out[real], expected[real], what=what)
        count = jnp.int32(cut)
        filled = _fill(*parts, x[:, :cut], tok.slice(0, cut)), _fill(*parts, x, tok, count)
        for y, state in filled:
            close(np.asarray(y)[:, :cut][real[:, :cut]], expected[:, :cut][real[:, :cut]])
            rest = np.asarray(_step(*parts, x[:, cut:], tok, state, count)[0])
            what = f'a step behind fill and one pass, {kind},'
            close(rest[real[:, cut:]], expected[:, cut:][real[:, cut:]], what=what)


def padding(subject: Mixed):
    """Results are finite beside padding, and the values of padding reach no other token."""
    for kind in ('padded', 'packed and padded'):
        tok = Tokens.of(**KINDS[kind])
        out = np.asarray(subject.whole(tok=tok))
        demand(np.isfinite(out).all(), 'the results beside padding are not finite')
        other = subject.whole(np.where(PADDED[..., None], subject.x, np.float32(1e3)), tok)
        what = 'tokens beside padding of other values'
        close(np.asarray(other)[PADDED], out[PADDED], 1e-6, what)


def _influence(subject, tok, outputs):
    """The largest gradient of each input row by a random sum of the chosen output rows, [L]."""
    cotangent = np.where(outputs[:, None], np.asarray(draw(9, ROWS, LENGTH, MODEL)), 0)
    loss = lambda x: (subject.mixer.whole(x, tok) * cotangent).sum()
    return np.abs(jax.jit(jax.grad(loss))(jnp.asarray(subject.x))).max(axis=(0, 2))


def causality(subject: Mixed):
    """An output depends on its own and all earlier tokens of its document, and on no other."""
    place = np.arange(LENGTH)
    for segment, outputs, seen in (
        (np.zeros_like(PACKED), place < 7, place < 7),
        (PACKED, place >= DOCUMENT, place >= DOCUMENT),
    ):
        reached = _influence(subject, Tokens.of(segment=segment), outputs)
        documents = 'another document' if segment is PACKED else 'a later token'
        demand(not reached[~seen].any(), f'an output depends on {documents}')
        demand((reached[seen] > 1e-6).all(), 'an output does not depend on an earlier token')
    later = subject.x.copy()
    later[:, 7:] = -5.0
    before = [np.asarray(subject.whole(x))[:, :7] for x in (later, subject.x)]
    demand(np.array_equal(*before), f'other later tokens change outputs by {gap(*before):.3g}')


def gradients(subject: Mixed):
    """Gradients are finite and those of the steps, every parameter has one, and padding none."""
    graphdef, params, rest = nnx.split(subject.mixer, nnx.Param, ...)
    tok = Tokens.of(**KINDS['packed and padded'])
    cotangent = np.where(PADDED[..., None], np.asarray(draw(9, ROWS, LENGTH, MODEL)), 0)
    merged = lambda params: nnx.merge(graphdef, params, rest)
    ways = (
        lambda params, x: merged(params).whole(x, tok),
        lambda params, x: subject.pieces(x, tok, (19, 1), merged(params), merged(params).step),
    )
    ours, theirs = (
        jax.jit(jax.grad(lambda params, x, how=how: (how(params, x) * cotangent).sum(), (0, 1)))(
            params, jnp.asarray(subject.x)
        )
        for how in ways
    )
    close_gradients(ours, theirs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours[0]):
        learns = leaf.size == 0 or np.abs(leaf).max() > 1e-6
        demand(learns, f'the gradient of {jax.tree_util.keystr(path)} is zero')
    demand(not np.asarray(ours[1])[~PADDED].any(), 'padding has a gradient')


def jit(subject: Mixed):
    """The compiled function gives what the uncompiled one gives."""
    tok = Tokens.of(**KINDS['packed and padded'])
    eager = subject.mixer.whole(jnp.asarray(subject.x), tok)
    close(np.asarray(eager)[PADDED], np.asarray(subject.whole(tok=tok))[PADDED])


def bfloat16(subject: Mixed):
    """Inputs in bfloat16 give about what the same inputs in float32 give."""
    tok = Tokens.of(length=LENGTH)
    if subject.promises is not None and subject.promises.relative:
        # Where the error of a position in bfloat16 is above 1.
        tok = dataclasses.replace(tok, pos=13 * tok.pos + 1000)
    low = jnp.asarray(subject.x, jnp.bfloat16)
    exact = np.asarray(subject.whole(low.astype(jnp.float32), tok))
    error = np.abs(np.asarray(subject.whole(low, tok), np.float32) - exact)
    scale = float(np.abs(exact).max())
    demand(
        np.median(error) < 0.01 * scale and error.max() < 0.06 * scale,
        f'bfloat16 differs by up to {error.max():.3g}, with results of up to {scale:.3g}',
    )


def traced(mixer, length: int):
    """One forward and backward pass over one row, traced."""
    graphdef, params, rest = nnx.split(mixer, nnx.Param, ...)
    tok = Tokens.of(length=length)
    loss = lambda params, x: nnx.merge(graphdef, params, rest).whole(x, tok).sum()
    shape = jax.ShapeDtypeStruct((1, length, MODEL), jnp.float32)
    return jax.jit(jax.grad(loss, (0, 1))).trace(params, shape)


def blockwise(subject: Mixed):
    """No array has an entry for each pair of tokens exactly if the Card promises it."""
    if subject.promises is None:
        return 'no promises are stated'
    length = 4096
    largest = largest_array(traced(subject.mixer, length))
    promised = subject.promises.blockwise
    demand(
        (largest < length**2) == promised,
        f'the promise is blockwise={promised}; the largest array has {largest / length:.0f} '
        'entries a token',
    )


def relative(subject: Mixed):
    """A constant that is added to all positions changes nothing exactly if the Card says so."""
    if subject.promises is None:
        return 'no promises are stated'
    tok = Tokens.of(length=LENGTH)
    shifted = subject.whole(tok=dataclasses.replace(tok, pos=tok.pos + 300))
    holds(subject.promises.relative, 'relative', gap(shifted, subject.whole()))


def checkpoints(subject: Mixed):
    """The same seed gives the same variables, and saved variables restore the results."""
    mixer, again, other = subject.mixer, subject.make(0), subject.make(5)
    equal_trees(nnx.state(again), nnx.state(mixer), 'variables of the same seed')
    saved = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(mixer)))
    graphdef, state = nnx.split(other)
    nnx.replace_by_pure_dict(state, saved)
    results = [subject.whole(mixer=m) for m in (nnx.merge(graphdef, state), mixer)]
    equal_trees(*results, 'restored results')


LAWS = (
    shapes, roles, needs_training, relative, decoding, causality, padding, gradients, jit, bfloat16,
    blockwise, checkpoints,
)  # fmt: skip
