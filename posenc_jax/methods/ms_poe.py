"""Ms-PoE: every head divides positions by its own ratio."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.base.phases import phase
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.rope import Rotary, rotate
from posenc_jax.protocol.bounds import CONTEXT, Ge, Positive
from posenc_jax.protocol.composite import Wrapper, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

Assign = Literal['rank', 'code', 'normal']
ASSIGNMENTS = ('rank', 'code', 'normal')


def ms_poe_ratios(heads: int, r_min: float, r_max: float) -> np.ndarray:
    """The ratios by which positions are divided: `r_n = r_min + (r_max - r_min) n / heads`, n =
    0 .. heads - 1, in float64.
    """
    return r_min + (r_max - r_min) * np.arange(heads) / heads


def ms_poe_scores(
    q: Float[Array, 'B N H'], k: Float[Array, 'B S K H'], seen: Bool[Array, '#B S'] | None = None
) -> Float[Array, 'B N']:
    """The position-awareness of every head: the share of keys that get more than three times the
    mean weight from one query.

    Args:
      q: the last query of every row, not rotated.
      k: the keys, not rotated.
      seen: False for padding; None where all keys are seen.
    """
    s = scaled_dot_product(q[:, :, None], k.swapaxes(1, 2))[:, :, 0]
    seen = jnp.ones((1, k.shape[1]), bool) if seen is None else seen
    weights = jax.nn.softmax(jnp.where(seen[:, None], s, -jnp.inf), axis=-1)
    count = seen.sum(-1)[:, None]
    return (weights * count[..., None] > 3.0).sum(-1) / count


def ms_poe_order(scores: Float[Array, '... N']) -> Int[Array, '... N']:
    """Numbers of the heads from the most to the least position-aware; equal scores keep their
    order.
    """
    return jnp.argsort(-scores, axis=-1, stable=True)


def ms_poe_index(order: Int[Array, '... N'], assign: Assign = 'rank') -> Int[Array, '... N']:
    """The index n(h) of every head into the table of ratios, from the order of the heads.

    'rank': n(h) is the rank of head h in the order, as the paper means it. 'code': n(h) = order[h],
    the inverse permutation, as in the released code. 'normal': n(h) = N - 1 - h for any order.
    """
    check_choice('ms_poe assign', assign, ASSIGNMENTS)
    if assign == 'normal':
        return jnp.broadcast_to(jnp.arange(order.shape[-1])[::-1], order.shape)
    return jnp.argsort(order, axis=-1) if assign == 'rank' else order


CARD = Card(
    name='Ms-PoE',
    door='project',
    example='ms_poe(encoding=rope())',
    use_when=(
        'You have a trained rotary model that misses what stands in the middle of a '
        'text; to compare with the plain model, since a measured claim is contrary.'
    ),
)


@register('ms_poe', kind='encoding', card=CARD)
@register('ms_poe', kind='extension', card=CARD)
class MsPoE(Wrapper):
    """Divides rotary positions by a ratio per head, smaller for more position-aware heads.

    `A_iht = (i / r_n(h)) theta_t`, `r_n = r_min + (r_max - r_min) n / N`, with n(h) from an order
    of the heads (see `ms_poe_index`). `probe_heads` finds the orders of all layers on a prompt, and
    `reorder` puts them into a model. eval.py, generation and the analyses do both, on the beginning
    of the validation text. A key head has the ratio of its first query head. So the logits of the
    other query heads that share it depend on position differences only approximately; in SmolLM2,
    which has such groups, `per_group=True` has a far lower loss (docs/results/contrary.md, R22).
    Differs from the paper: the frequencies are divided instead of the positions, in float32, and
    positions stay integers. `reorder` leaves the first two layers unchanged, as the paper does.

    Args:
      encoding: the rotary encoding.
      r_min: the smallest ratio, r_0.
      r_max: the value that the ratios approach; the largest one is r_max - (r_max - r_min) / N.
      order: the heads from most to least position-aware; None is 0 .. N - 1, until `reorder`.
      assign: 'rank', 'code' or 'normal' (which takes no order).
      per_group: query heads that share a key head also share its ratio.
      heads, kv_heads: N and K, from the model.

    Raises:
      ValueError: an encoding that is not rotary, depends on the length or has other frequencies
        at its first positions; an order that does not name every head once, or is given with
        'normal'; at call, another number of heads.

    Reference: Zhang, Chen, Liu, Yao, Ruwase, Chen, Wu, Wang, arXiv 2403.04797.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('ms_poe(encoding=rope(), order=(1, 3, 2, 0))', heads=4, head_dim=8)
      >>> part.ratios[...].round(2).tolist()
      [1.65, 1.2, 1.5, 1.35]
    """

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        r_min: Positive = 1.2,
        r_max: Annotated[float, Ge('r_min')] = 1.8,
        order: tuple[int, ...] | None = None,
        assign: Assign = 'rank',
        per_group: bool = False,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        self.encoding = check_part('ms_poe', encoding, even=True)
        if assign == 'normal' and order is not None:
            raise ValueError(
                f"ms_poe: assign='normal' takes no order, got {order}; use assign='rank'"
            )
        if order is not None and sorted(order) != list(range(heads)):
            raise ValueError(
                f'ms_poe: order must name each of the heads 0 .. {heads - 1} once, got {order}'
            )
        self.r_min, self.r_max, self.assign, self.per_group = r_min, r_max, assign, per_group
        self.heads, self.kv_heads = heads, kv_heads
        self.unordered = order is None and assign != 'normal'
        self.ratios = Constant(
            self.ratios_of(jnp.asarray(range(heads) if order is None else order)), axes=('heads',)
        )

    def ratios_of(self, order: Int[Array, '... N']) -> Float[Array, '... N']:
        """The ratio of every head for this order of the heads, float32."""
        table = jnp.asarray(ms_poe_ratios(self.heads, self.r_min, self.r_max), jnp.float32)
        ratios, group = table[ms_poe_index(order, self.assign)], self.heads // self.kv_heads
        return jnp.repeat(ratios[..., ::group], group, axis=-1) if self.per_group else ratios

    def with_order(self, order: Int[Array, '... N'], *, plain: Bool[Array, '...']) -> 'MsPoE':
        """A copy with this order of the heads. Leading axes are a stack of layers; in `plain`
        layers the ratios are 1.
        """
        names = ('encoding', 'r_min', 'r_max', 'assign', 'per_group', 'heads', 'kv_heads')
        copy = MsPoE(**{name: getattr(self, name) for name in names})
        copy.unordered = False
        copy.ratios = Constant(jnp.where(plain, 1.0, self.ratios_of(order)), axes=('heads',))
        return copy

    def fitted(self, model: Any, prompt: Int[Array, 'B T']) -> Any:
        """A copy of a model whose layers order their heads as `probe_heads` finds them on a prompt,
        for the programs that extend a trained model.
        """
        return reorder(model, probe_heads(model, jnp.asarray(prompt)))

    def rotate(
        self, x: Num[Array, 'B L heads H'], pos: Num[Array, '#B L'], ratios: Float[Array, 'heads']
    ):
        """`x` rotated to the positions `pos / ratios` of each head."""
        if x.shape[2] != len(ratios):
            raise ValueError(f'ms_poe was built for {len(ratios)} heads, got {x.shape[2]}')
        if pos.ndim != 2:
            raise ValueError(
                f'ms_poe takes one position per token [B, L], got positions of shape {pos.shape}'
            )
        inv_freq, temperature = self.encoding.frequencies()
        angles = phase(pos[..., None], jnp.asarray(inv_freq, jnp.float32) / ratios[:, None])
        return rotate(x, angles, layout=self.encoding.layout, scale=temperature)

    def project(self, q, k, v, tq, tk, x=None):
        ratios, group = self.ratios[...], self.heads // self.kv_heads
        return self.rotate(q, tq.pos, ratios), self.rotate(k, tk.pos, ratios[::group]), v, tq, tk


def probe_heads(
    model, tokens: Int[Array, 'B T'], tok: Tokens | None = None, *, skip: int = 2
) -> Int[Array, 'layers N']:
    """The order of the heads of every layer on a prompt, by `ms_poe_scores`, in one pass. A layer
    already uses its own order when it computes the input of the next one.

    The score is that of the last query of a row, with unrotated queries and keys. Scores of several
    rows are averaged.

    Args:
      model: a decoder `Transformer`. It is not changed.
      tokens: the prompt.
      tok: the `Tokens` of the prompt, e.g. with its padding; None for no padding.
      skip: number of first layers whose ratios are 1; 2 in the released code.

    Raises:
      ValueError: an encoder; packed documents.
    """
    if not model.cfg.causal:
        raise ValueError(
            'probe_heads scores the last query of a decoder, this model is of kind '
            f'{model.cfg.kind!r}'
        )
    tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
    if tok.segment is not None:
        raise ValueError('probe_heads takes one prompt a row, got packed documents (tok.segment)')
    placed = model.place(tok, tokens)

    def layer(x, number, layer_type, block):
        parts = parts_of(model.encoding(layer_type, block))
        q, k, _ = block.attention.qkv(block.attention_norm(x))
        last = jnp.broadcast_to(tok.last, q.shape[0])[:, None, None, None]
        q = jnp.take_along_axis(q, last, axis=1)[:, 0]
        order = ms_poe_order(ms_poe_scores(q, k, tok.valid).mean(0))
        ordered = lambda part: part.with_order(order, plain=number < skip)
        encoding = chain(*(ordered(part) if isinstance(part, MsPoE) else part for part in parts))
        return block(x, placed[layer_type], encoding), order

    _, orders = model.scan_layers(layer, model.embed(tokens, placed))
    return jnp.stack(orders, axis=1).reshape(model.cfg.layers, model.cfg.heads)


def reorder(model, orders: Int[Array, 'layers N'], *, skip: int = 2):
    """The same model with the ratios of these orders in the `ms_poe` parts of its layers. In the
    first `skip` layers the ratios are 1.

    In the result every layer has its own ratios, even if the layers shared one `ms_poe` part.

    Raises:
      ValueError: a model without `ms_poe` (`model.extend('ms_poe()')` adds it); orders of a wrong
        shape.
    """
    orders = jnp.asarray(orders)
    if orders.shape != (model.cfg.layers, model.cfg.heads):
        raise ValueError(
            f'reorder takes orders of {model.cfg.layers} layers, {model.cfg.heads} heads, got '
            f'{orders.shape}'
        )

    ordered = lambda part, layers: part.with_order(orders[layers], plain=layers[:, None] < skip)
    return model.map_parts(MsPoE, ordered)
