"""Laws about the forms of evaluation: shapes, dtypes, tiles, gradients, jit, vmap and meshes.

A law is a function of a `Subject`. It raises `BrokenLaw`, or returns the reason why it does not
apply, or None. The first sentence of its docstring is the law.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.base.products import scaled_dot_product
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.capabilities import first_carry, merge
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS, Constant
from posenc_jax.testing.compare import close, close_gradients, demand
from posenc_jax.testing.subject import (
    BLOCKS,
    HEADS,
    KV_HEADS,
    LENGTH,
    PACKED,
    PADDED,
    ROWS,
    WIDTH,
    Subject,
    attend,
    cotangent,
    earlier_rows,
    gradients,
    outputs,
    project,
    split,
    tokens,
)


def shapes(subject: Subject) -> None:
    """Doors keep shapes and dtypes: with input in bfloat16 the token stage returns bfloat16;
    logits, carries and sums of values are float32.
    """
    encoding = subject.encoding
    found = jax.eval_shape(
        functools.partial(project, encoding, subject.weights),
        subject.x.astype(jnp.bfloat16),
        tokens(),
    )
    q, k, v, tq, tk = found
    inputs = q.shape[2] // HEADS
    for part in parts_of(encoding):
        hidden = vars(part).keys() & {*DOORS, *CAPABILITIES}
        demand(
            not hidden,
            f'an attribute of {name_of(part)} hides the door {min(hidden, default="")!r}',
        )
    demand(encoding.opens('qkv') == encoding.opens('merge'), 'qkv and merge are opened together')
    demand(inputs == 1 or encoding.opens('qkv'), f'{q.shape[2]} query heads, expected {HEADS}')
    kept = lambda a: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), a)

    def expect(what, a, shape, dtype):
        demand(kept(a) == (shape, dtype), f'{what} is {kept(a)}, expected {(shape, dtype)}')

    for name, a, heads in (('q', q, HEADS), ('k', k, KV_HEADS), ('v', v, KV_HEADS)):
        expect(name, a, (ROWS, LENGTH, inputs * heads, WIDTH), jnp.bfloat16)
    merged = jax.eval_shape(functools.partial(merge, encoding), q)
    expect('the result of merge', merged, (ROWS, LENGTH, HEADS, WIDTH), jnp.bfloat16)
    for tok in (tq, tk):
        demand(
            (tok.index.shape, tok.length) == ((ROWS, LENGTH), LENGTH), f'index {tok.index.shape}'
        )
        for leaf in jax.tree.leaves(tok.feats):
            fits = leaf.ndim >= 3 and leaf.shape[0] in (1, ROWS) and leaf.shape[1] == LENGTH
            fits = fits and leaf.shape[2] in (1, HEADS, KV_HEADS)
            demand(fits, f'a feature is {leaf.shape}, expected [#B, L, heads or 1, ...]')

    def pair_stage(q, k, v, tq, tk):
        q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
        seen, carry = jnp.ones((ROWS, 1, LENGTH, LENGTH), bool), first_carry(encoding, q, tq)
        s, after = encoding.logits(scaled_dot_product(q, k), q, k, tq, tk, seen, carry)
        return carry, s, after, encoding.collect(s, v, tq, tk), encoding.mask(tq, tk)

    carry, s, after, collected, mask = jax.eval_shape(pair_stage, *found)
    expect('the logits', s, (ROWS, inputs * HEADS, LENGTH, LENGTH), jnp.float32)
    demand(kept(after) == kept(carry), 'logits changes the shape or dtype of the carry')
    for leaf in jax.tree.leaves(carry):
        expect('a carry', leaf, (ROWS, inputs * HEADS, LENGTH, *leaf.shape[3:]), jnp.float32)
    expect('the sum of values', collected, (ROWS, inputs * HEADS, LENGTH, WIDTH), jnp.float32)
    if mask is not None:
        pairs = s.shape
        fits = mask.dtype == bool and np.broadcast_shapes(mask.shape, pairs) == pairs
        demand(fits, f'the mask is {kept(mask)}, which is no bool mask of {pairs}')


def roles(subject: Subject) -> None:
    """Every variable declares one role for each axis, because tensor parallelism splits variables
    by these roles.
    """
    sizes = {'heads': HEADS, 'kv_heads': KV_HEADS}
    is_variable = lambda a: isinstance(a, nnx.Variable)
    for variable in jax.tree.leaves(nnx.state(subject.encoding), is_leaf=is_variable):
        kind = type(variable).__name__
        demand(
            isinstance(variable, (nnx.Param, Constant)), f'a {kind} is neither Param nor Constant'
        )
        axes, shape = variable.get_metadata().get('axes'), variable.get_value().shape
        named = axes is not None and len(axes) == len(shape)
        demand(named, f'a {kind} of shape {shape} declares axes={axes}')
        for size, role in zip(shape, axes):
            demand(size == sizes.get(role, size), f'an axis of role {role!r} has {size} entries')


def tiles(subject: Subject, how=BLOCKS[0]) -> None:
    """Evaluation in tiles, as it streams over the keys, equals the whole matrix of logits, and so
    do its gradients, which are finite.
    """
    (out, grads, finite), (expected, expectations, _) = (
        subject.gradients(how),
        subject.gradients('plain'),
    )
    demand(finite, 'an output is not finite')
    close(out, expected, what='tiles and the whole')
    close_gradients(grads, expectations)


def one_tile(subject: Subject) -> None:
    """Dense evaluation equals the doors on the whole matrix of logits, with its gradients."""
    tiles(subject, 'dense')


def tiles_of_few_queries(subject: Subject) -> None:
    """Tiles of a few queries and all keys equal the whole matrix of logits, with gradients."""
    tiles(subject, BLOCKS[1])


def trained(subject: Subject) -> str | None:
    """Every parameter gets a gradient."""
    if subject.encoding.opens('begin_stream'):
        return 'its parameters act on the stream of a model, which one layer does not have'
    parameters, *_ = subject.gradients('plain')[1]
    for path, gradient in jax.tree_util.tree_leaves_with_path(parameters):
        most = float(np.abs(gradient).max())
        name = jax.tree_util.keystr(path)
        demand(most > 1e-6, f'{name} is trained, and its largest gradient is {most:.3g}')


def bfloat16(subject: Subject) -> None:
    """The result in bfloat16 is close to that in float32. Both runs have the same rounded queries,
    keys and values, so they differ only by the computations of the encoding.
    """
    tok, part = tokens(), subject.encoding
    if subject.promises is not None and subject.promises.relative:
        # Large positions, where the error of a position in bfloat16 is larger than 1.
        tok = dataclasses.replace(tok, pos=13 * tok.pos + 1000)
    low = subject.x.astype(jnp.bfloat16)

    def run(dtype):
        placed = part.place(tok)
        embedded = lambda x: earlier_rows(part.embed(x, placed), placed, part.lookback)
        exact, rows = embedded(low.astype(jnp.float32)), embedded(low.astype(dtype))
        heads = split(part, subject.weights, low.astype(jnp.float32), exact, placed)
        q, k, v = (a.astype(jnp.bfloat16).astype(dtype) for a in heads)
        return subject.attend(*part.project(q, k, v, placed, placed, rows))

    out = run(jnp.bfloat16)
    demand(out.dtype == jnp.bfloat16, f'the result is {out.dtype}')
    error = np.abs(out.astype(np.float32) - run(jnp.float32))
    middle, most = float(np.median(error)), float(error.max())
    message = f'the errors are up to {most:.3g}, with median {middle:.3g}'
    demand(middle < 0.0035 and most < 0.12, f'{message}; rounding explains 0.12 and 0.0035')


def jit(subject: Subject) -> None:
    """A compiled layer equals the same layer without jit."""
    inputs = project(subject.encoding, subject.weights, subject.x, tokens())
    close(attend(subject.encoding, *inputs, implementation='dense'), subject())


def vmap(subject: Subject) -> None:
    """`jax.vmap` over batches equals a loop over them."""
    xs = jnp.stack([subject.x, 0.5 * subject.x[::-1]])
    valid = jnp.stack([jnp.asarray(PADDED), jnp.asarray(PADDED[::-1])])

    def one(x, valid):
        tok = dataclasses.replace(tokens(), valid=valid)
        inputs = project(subject.encoding, subject.weights, x, tok)
        return attend(subject.encoding, *inputs, block=(8, 8))

    together = jax.jit(jax.vmap(one))(xs, valid)
    for i in range(2):
        close(together[i], subject(xs[i], dataclasses.replace(tokens(), valid=valid[i])))


def one_trace(subject: Subject) -> None:
    """One trace serves all values of one shape."""
    names = ('project', 'dense')
    before = {name: subject.traces.get(name, 0) for name in names}
    for step in range(3):
        segment = np.arange(LENGTH)[None] // (7 + step) + np.zeros((2, 1), int)
        subject(subject.x * (step + 1), tokens(pos=tokens().pos + step, segment=segment))
    more = max(subject.traces[name] - before[name] for name in names)
    demand(more <= 1, f'three inputs of one shape were traced {more} times')


def mesh(subject: Subject, derived: bool = True) -> str | None:
    """A mesh of eight devices gives the results and, where `derived`, the gradients of one device,
    of packed documents and padding.
    """
    if len(jax.devices()) < 8:
        return 'it needs eight devices: XLA_FLAGS=--xla_force_host_platform_device_count=8'
    how = functools.partial(attend, how=sharded_attend, block=(8, 8))
    # Heads that read each other cannot be cut.
    axes = dict(sequence=4) if 'mixes_logits' in subject.encoding.traits else dict(tensor=2)
    axes, tok = dict(data=2, sequence=2) | axes, tokens(valid=PADDED, segment=PACKED)
    run = functools.partial(gradients if derived else outputs, how)
    with jax.set_mesh(make_mesh(**axes, devices=jax.devices()[:8])):
        out, grads, finite = jax.jit(run)(
            subject.encoding, subject.weights, subject.x, tok, cotangent()
        )
    expected, expectations, _ = subject.gradients('plain', tok)
    demand(finite, 'an output is not finite')
    demand(len(out.sharding.device_set) == 8, 'the result is not on eight devices')
    close(out, expected, what='eight devices and one')
    if derived:
        close_gradients(grads, expectations)
