"""The attention that analyses read: queries and keys of every layer from one forward pass, the
attention of given queries and keys, sums over blocks of queries, and checks of a model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.rope import Rotary
from posenc_jax.methods.single_rotary import single_rotary
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `function(model, *fixed, *arrays)`, once for each architecture, `fixed` and shapes.
    It is called as `function(model, *arrays, fixed=())`; `fixed` is a tuple of hashable values.
    Its attribute `lower` shows the program without running it, see `jax.jit`.
    """

    @functools.partial(jax.jit, static_argnums=0)
    def of_state(static, state, *arrays):
        graphdef, fixed = static
        return function(nnx.merge(graphdef, state), *fixed, *arrays)

    def given(model, arrays, fixed):
        graphdef, state = nnx.split(model)
        return (graphdef, fixed), state, *arrays

    @functools.wraps(function)
    def call(model, *arrays, fixed=()):
        return of_state(*given(model, arrays, fixed))

    call.lower = lambda model, *arrays, fixed=(): of_state.lower(*given(model, arrays, fixed))
    return call


def check_causal(user: str, model: Transformer) -> None:
    """Refuses a model whose queries see later tokens.

    Raises:
      ValueError: as said.
    """
    for layer_type, block in enumerate(model.blocks):
        later = block.own_mixer is None and 'sees_later' in model.encoding(layer_type, block).traits
        if not model.cfg.causal or later:
            raise ValueError(
                f'{user} is defined for causal attention; this model lets queries see later tokens'
            )


def check_rotary(user: str, model: Transformer) -> list[Rotary]:
    """The rotary encodings of the layers of one period; the layers of a model repeat a pattern of
    encodings, and a period is one such pattern.

    Args:
      user: name of the analysis, for messages.
      model: the model.

    Raises:
      ValueError: a layer has another encoding, or layers rotate different numbers of planes.
    """
    found = [
        single_rotary(user, model.encoding(layer_type, block))
        for layer_type, block in model.layers()[: len(model.blocks)]
    ]
    if len(planes := {rotary.rotary_dim // 2 for rotary in found}) != 1:
        raise ValueError(
            f'{user} compares the same planes in all layers, but layers have {sorted(planes)} of '
            'them'
        )
    return found


def capture_encodings(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None,
    look: Callable[[Encoding, Any, Any], Any],
) -> Any:
    """The results of `look` for every layer in one forward pass, stacked over the layers in order.

    Args:
      model: a transformer whose layers have attention.
      tokens: token ids.
      tok: positions, documents and padding of the tokens; None counts positions from 0.
      look: `look(encoding, before, after)` returns arrays; `before` is (q, k) as projected from the
        layer input, `after` is (q, k, tq, tk) as returned by `Encoding.project`. If the encoding
        gives attention several inputs (`qkv`), their heads lie side by side.
    """
    tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
    placed = model.place(tok, tokens)

    def layer(x, number, layer_type, block):
        mixer, seen, own = model.attention(layer_type, block), [], placed[layer_type]

        def capture(qkv, projected):
            q, k, _, tq, tk = projected
            seen.append(look(mixer.encoding, qkv[:2], (q, k, tq, tk)))

        return block.around(x, lambda h: mixer.whole(h, own, capture=capture)), seen[0]

    _, outs = model.scan_layers(layer, model.embed(tokens, placed))
    return in_order(outs)


def in_order(outs: tuple) -> Any:
    """The outputs of `scan_layers`, whose first axis counts groups for each layer type, with one
    axis of layers in order.
    """
    return jax.tree.map(lambda *types: jnp.stack(types, 1).reshape(-1, *types[0].shape[1:]), *outs)


def weights_of(s: Float[Array, '... S'], seen: Bool[Array, '... S']) -> Float[Array, '... S']:
    """The softmax of logits over the keys that are seen; 0 for the others."""
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)


def attention_of(
    encoding: Encoding,
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    tq: Tokens,
    tk: Tokens,
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T S'], Bool[Array, 'B N T S']]:
    """Logits before the softmax, attention, and which keys are seen, of every head of one layer,
    from the queries and keys that `Encoding.project` returns, heads first. Attention is the softmax
    over the keys, without what `Encoding.rescale` does to the result behind it.
    """
    s, _, seen = pair_logits(encoding, q, k, tq, tk)
    return s, weights_of(s, seen), jnp.broadcast_to(seen, s.shape)


def with_valid(tok: Tokens, batch: int) -> Tokens:
    """The tokens with `valid` filled in for every row, so that zeros padded later are not valid."""
    valid = jnp.ones((1, tok.length), bool) if tok.valid is None else tok.valid
    return dataclasses.replace(tok, valid=jnp.broadcast_to(valid, (batch, tok.length)))


def over_queries(step: Callable[[Any, Array, Any], Any], sums: Any, rows: Any, block: int) -> Any:
    """`sums = step(sums, start, rows[:, start : start + block])` for all blocks of queries in turn.

    Args:
      step: returns the sums with those of one block of queries added.
      sums: initial sums.
      rows: arrays [B, L, ...] or trees of them. Zeros fill up the last block, so tokens need
        `valid` (see `with_valid`).
      block: how many queries are evaluated at a time.

    Example:
      >>> float(
      ...     over_queries(
      ...         lambda total, start, a: total + start * a.sum(),
      ...         jnp.zeros(()),
      ...         jnp.ones((1, 5)),
      ...         2,
      ...     )
      ... )
      8.0
    """
    length = jax.tree.leaves(rows)[0].shape[1]
    block = min(block, length)
    room = -length % block
    rows = jax.tree.map(
        lambda a: jnp.pad(a, [(0, room * (axis == 1)) for axis in range(a.ndim)]), rows
    )
    cut = lambda start: jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, start, block, 1), rows
    )
    return jax.lax.scan(
        lambda sums, start: (step(sums, start, cut(start)), None),
        sums,
        jnp.arange(0, length + room, block),
    )[0]
