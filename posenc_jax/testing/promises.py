"""Laws about the promises of a Card, which an encoding keeps exactly if they are stated; and about
chains, determinism and checkpoints.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.methods.nope import NoPE
from posenc_jax.protocol.capabilities import merge
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.masks import Document
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.testing.compare import DIFFERENT, close, demand, equal_trees, gap, holds
from posenc_jax.testing.jaxprs import largest_array
from posenc_jax.testing.subject import LENGTH, MODEL, PACKED, Subject, attend, project, tokens

NO_PROMISE = 'no promises are stated'


def relative(subject: Subject) -> str | None:
    """Adding one constant to every position changes nothing, exactly if relative=True."""
    if subject.promises is None:
        return NO_PROMISE
    tok = tokens()
    shifted = dataclasses.replace(tok, pos=tok.pos + 3)
    holds(subject.promises.relative, 'relative', gap(subject(tok=shifted), subject()))


def sweep_free(subject: Subject) -> str | None:
    """The order in which keys are visited changes nothing, exactly if sweep_free=True."""
    if subject.promises is None:
        return NO_PROMISE
    q, k, v, tq, tk = subject.project()
    order = np.random.default_rng(0).permutation(LENGTH)
    shuffled = jax.tree.map(lambda a: a[:, order] if a.ndim > 1 else a, (k, v, tk))
    out = subject.attend(q, shuffled[0], shuffled[1], tq, shuffled[2])
    holds(subject.promises.sweep_free, 'sweep_free', gap(out, subject.attend(q, k, v, tq, tk)))


def traced(subject: Subject, length: int) -> Any:
    """One forward and backward pass in tiles of 64, traced."""
    tok = Tokens.of(positions=np.arange(length)[None] % 64)  # within every example's table
    loss = lambda encoding, weights, x: attend(
        encoding, *project(encoding, weights, x, tok), block=64
    ).sum()
    run = subject.counted(
        f'memory {length}', lambda e, w, x: jax.grad(loss, (0, 1, 2), allow_int=True)(e, w, x)
    )
    shape = jax.ShapeDtypeStruct((1, length, MODEL), jnp.float32)
    return run.trace(subject.state, subject.weights, shape)


def blockwise(subject: Subject) -> str | None:
    """Tiles make no array with an entry for each pair of tokens, exactly if blockwise=True."""
    if subject.promises is None:
        return NO_PROMISE
    length, stated = 4096, subject.promises.blockwise
    largest = largest_array(traced(subject, length))
    demand(
        (largest < length**2) == stated,
        f'the promise is blockwise={stated}, and of {length} tokens the largest array has '
        f'{largest / length:.3g} entries a token',
    )


def needs_training(subject: Subject) -> str | None:
    """It has trainable parameters, exactly if needs_training=True."""
    if subject.promises is None:
        return NO_PROMISE
    found = len(jax.tree.leaves(nnx.state(subject.encoding, nnx.Param)))
    stated = subject.promises.needs_training
    demand(
        bool(found) == stated,
        f'the promise is needs_training={stated}, and it has {found} trainable arrays',
    )


def fused(subject: Subject) -> str | None:
    """JAX's own attention with the causal mask gives the result of the pair stage, exactly if
    fused=True. The positions are those of packed documents, but no document mask is used.
    """
    if subject.promises is None:
        return NO_PROMISE
    q, k, v, tq, tk = subject.project(tok=tokens(segment=PACKED))
    parts = parts_of(subject.encoding)
    is_causal = 'full' not in map(name_of, parts)
    library = jax.nn.dot_product_attention(q, k, v, is_causal=is_causal)
    own = lambda part: name_of(part) != 'document' or subject.name == 'document'
    keep = chain(*filter(own, parts))
    out = attend(keep, q, k, v, tq, tk, implementation='dense')
    holds(subject.promises.fused, 'fused', gap(merge(subject.encoding, library), out))


def chains(subject: Subject) -> None:
    """Chains associate, and `nope` changes nothing."""
    first, second = NoPE(), Document()
    left = chain(chain(first, subject.encoding), second)
    right = chain(first, chain(subject.encoding, second))
    demand(nnx.graphdef(left) == nnx.graphdef(right), 'two ways to chain give two encodings')
    run = jax.jit(
        lambda encoding, weights, x, tok: attend(
            encoding, *project(encoding, weights, x, tok), implementation='dense'
        )
    )
    close(run(left, subject.weights, subject.x, tokens()), subject(), what='with and without nope')


def determinism(subject: Subject) -> None:
    """The same seed, the same inputs and the same key give the same numbers."""
    equal_trees(nnx.state(subject.make(0)), subject.state, 'variables of one seed')
    equal_trees(subject(), subject(), 'two results of one input')
    place = subject.encoding.place
    equal_trees(place(tokens()), place(tokens()), 'positions without a key')
    drawn = lambda: place(tokens(), key=jax.random.key(3))
    equal_trees(drawn(), drawn(), 'positions of one key')


def checkpoints(subject: Subject) -> None:
    """The saved variables restore the encoding."""
    saved = jax.tree.map(np.asarray, nnx.to_pure_dict(subject.state))
    graphdef, state = nnx.split(subject.make(5))
    demand(graphdef == subject.graphdef, 'two seeds give encodings of two structures')
    is_trained = bool(jax.tree.leaves(nnx.state(subject.encoding, nnx.Param)))
    if is_trained and not subject.encoding.opens('begin_stream'):
        change = gap(subject(state=state), subject())
        demand(change > DIFFERENT, f'other parameters change the result by {change:.3g} alone')
    nnx.replace_by_pure_dict(state, saved)
    equal_trees(state, subject.state, 'saved and restored variables')
    equal_trees(subject(state=state), subject(), 'results before and after')
