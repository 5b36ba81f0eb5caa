"""The forward pass of evaluation: the negative log-likelihood of each target, and whether the
target is the first choice.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.model.inputs import SourceInput, encoded_source
from posenc_jax.lab.model.stack import Inputs
from posenc_jax.layer.sharding import ROLES, constrain, placed, whole_rows
from posenc_jax.protocol.tokens import Tokens

# Bytes of the logits that are held at a time. 4 MB of float32 stay near the cache; [L, V] at once
# would be gigabytes at long contexts.
_LOGITS_BYTES = 4 * 2**20

Scores = tuple[Float[Array, 'B M'], Bool[Array, 'B M']]
Scorer = Callable[..., Scores]


def scorer(model: nnx.Module, mesh: Mesh | None = None) -> Scorer:
    """`token_scores` of a model, compiled once for each shape of its arguments, also for several
    scorers of models that differ in their variables alone.

    The result is called as `score(tokens, targets, tok, key=None, at=None, source=None)`.

    Args:
      model: as for `token_scores`.
      mesh: see `layer.sharding.make_mesh`. Its devices share the rows, the heads and the tokens of
        each row, and every process has the whole result. Rows whose width mesh.sequence does not
        divide are padded; with a key, positions are then drawn for the padding too. None uses the
        device of the parameters.
    """
    return _on_mesh(_score, model, mesh)


def first_choices(model: nnx.Module, mesh: Mesh | None = None) -> Callable[..., Int[Array, 'B T']]:
    """The most probable token at every place, as `choices(tokens, tok)`.

    Args:
      model, mesh: as for `scorer`.
    """
    choose = _on_mesh(_choose, model, mesh)
    return lambda tokens, tok: choose(tokens, tokens, tok)[0]


def _on_mesh(run: Callable, model: nnx.Module, mesh: Mesh | None) -> Callable:
    """A compiled function of a model, whose arguments, those of a scorer, are dealt to the devices
    of a mesh. Its results have an entry for each row and place.
    """
    graphdef, state = nnx.split(model)
    if mesh is None or mesh.size == 1:
        return lambda tokens, targets, tok, key=None, at=None, source=None: run(
            graphdef, state, tokens, targets, tok, key, at, source
        )
    state = placed(state, mesh)

    def on_mesh(tokens, targets, tok, key=None, at=None, source=None):
        batch, width = targets.shape
        tokens, targets, tok, source = _divisible(
            mesh.shape['sequence'], tokens, targets, tok, source
        )
        arguments = _dealt(mesh, batch, (tokens, targets, tok, key, at, source))
        with jax.set_mesh(mesh):
            found = run(graphdef, state, *arguments)
        return tuple(a[:batch, : width if at is None else None] for a in found)

    return on_mesh


@functools.partial(jax.jit, static_argnums=0)
def _score(graphdef, state, tokens, targets, tok, key, at, source):
    model = nnx.merge(graphdef, state)
    scores = token_scores(model, tokens, targets, tok, key=key, at=at, source=source)
    return tuple(constrain(a, None, None) for a in scores)


@functools.partial(jax.jit, static_argnums=0)
def _choose(graphdef, state, tokens, targets, tok, key, at, source):
    logits = nnx.merge(graphdef, state)(tokens, tok)
    return (constrain(jnp.argmax(logits, axis=-1), None, None),)


def _divisible(divisor: int, tokens, targets, tok: Tokens | None, source) -> tuple:
    """The arguments of a scorer, padded on the right with tokens that are not valid, to widths that
    `divisor` divides. Images stay as they are: their patches are a grid.
    """
    if source is not None and source[0].shape[1] % divisor:
        source = _padded(source[0], 1, divisor), _padded_tokens(source[1], divisor)
    if tokens.ndim == 4 and tok is None:
        return tokens, targets, tok, source
    axis = 1 if tokens.ndim == 2 else tokens.ndim - 2
    if (width := tokens.shape[axis]) % divisor:
        tok = _padded_tokens(Tokens.of(length=width) if tok is None else tok, divisor)
        tokens = _padded(tokens, axis, divisor)
        if targets.shape[1] == width:  # and not one target for the row
            targets = _padded(targets, 1, divisor)
    return tokens, targets, tok, source


def _padded(a, axis: int, divisor: int, **how) -> np.ndarray:
    ends = [(0, -n % divisor if axis == i else 0) for i, n in enumerate(a.shape)]
    return np.pad(np.asarray(a), ends, **how)


def _padded_tokens(tok: Tokens, divisor: int) -> Tokens:
    """Tokens behind which some follow that are not valid, at the position of the last one."""
    last = lambda a: _padded(a, 1, divisor, mode='edge')
    whole = jax.tree.map(last, tok)
    real = np.ones(tok.index.shape, bool) if tok.valid is None else tok.valid
    behind = np.maximum(np.arange(whole.length) - (tok.length - 1), 0)
    feats = whole.feats
    if 'adjacency' in feats:  # its last axis are the tokens, too
        feats = {**feats, 'adjacency': _padded(feats['adjacency'], 3, divisor)}
    return dataclasses.replace(
        whole, index=whole.index + behind, valid=_padded(real, 1, divisor), feats=feats
    )


def _dealt(mesh: Mesh, batch: int, arguments: Any) -> Any:
    """The arguments of a scorer on the devices of a mesh. Each device gets some of the rows. Where
    the mesh does not divide their number, rows are repeated.
    """
    rows = whole_rows(mesh, batch)

    def put(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return a
        cut = a.ndim > 0 and len(a) == batch and batch > 1
        a = np.asarray(a)
        a = np.resize(a, (rows, *a.shape[1:])) if cut else a
        return jax.device_put(
            a, NamedSharding(mesh, PartitionSpec(ROLES['batch'] if cut else None))
        )

    return jax.tree.map(put, arguments)


def token_scores(
    model: nnx.Module,
    tokens: Inputs,
    targets: Int[Array, 'B _'],
    tok: Tokens | None = None,
    *,
    key: Array | None = None,
    at: Int[Array, 'B M'] | None = None,
    chunk: int | None = None,
    source: SourceInput | None = None,
) -> Scores:
    """Negative log-likelihood of each target in nats, and whether it is the first choice. Logits
    are held for `chunk` positions at a time.

    Args:
      model: has `hidden(tokens, tok, key=)` -> [B, T, D] and `logits(hidden)` -> [B, T, V] in
        float32.
      tokens: the inputs, ids or what the model reads in their place.
      targets: the token that each input should predict; [B, 1] where the model predicts a class.
      tok: positions, segments, padding; None for one unpadded document per row.
      key: draws random positions; None uses the evaluation rule of the encoding.
      at: positions of each row whose targets are scored, in the order of the result [B, M]; no
        other logits are computed. None scores all positions (M = T).
      chunk: how many positions have their logits held at once; None chooses by the size of the
        vocabulary.
      source: what the encoder reads, see `source_of` in `lab/model/inputs.py`.

    Example:
      nll, correct = token_scores(model, tokens[:, :-1], tokens[:, 1:])
    """
    read = {} if source is None else dict(source=encoded_source(model, source, key))
    hidden = model.hidden(tokens, tok, key=key, **read)
    if at is not None:
        hidden, targets = (
            jnp.take_along_axis(hidden, at[..., None], axis=1),
            jnp.take_along_axis(targets, at, axis=1),
        )
    batch, length, _ = hidden.shape
    if chunk is None:
        vocabulary = jax.eval_shape(lambda h: model.logits(h), hidden[:, :1]).shape[-1]
        chunk = max(1, _LOGITS_BYTES // (4 * batch * vocabulary))
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def cut(a):
        a = jnp.pad(a, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(batch, count, chunk, *a.shape[2:]), 1, 0)

    def score(one):
        hidden, targets = one
        logits = model.logits(hidden).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.argmax(logits, axis=-1) == targets

    def join(a):
        return jnp.moveaxis(a, 0, 1).reshape(batch, count * chunk)[:, :length]

    nll, correct = jax.lax.map(score, (cut(hidden), cut(targets)))
    return join(nll), join(correct)
