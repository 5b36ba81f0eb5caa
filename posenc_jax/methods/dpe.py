"""Dynamic position encoding: a small encoder learns where each source word stands in the target."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.attention.attend import attend
from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.protocol.bounds import CONTEXT, Gt, Le, Size
from posenc_jax.protocol.capabilities import AuxiliaryLoss
from posenc_jax.protocol.encoding import TOKEN_STAGE
from posenc_jax.protocol.families import check_token_width
from posenc_jax.protocol.masks import Document
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

# One size of tile at every length, so that memory is linear in the length.
_TILE = 128
# The weights of a layer: the roles of their axes, and what their shape is made of.
_WEIGHTS = {
    'w_q': ((None, 'heads', None), 'DNH'),
    'w_k': ((None, 'heads', None), 'DNH'),
    'w_v': ((None, 'heads', None), 'DNH'),
    'w_out': (('heads', None, None), 'NHD'),
    'w_in': ((None, 'mlp'), 'DF'),
    'b_in': (('mlp',), 'F'),
    'w_back': (('mlp', None), 'FD'),
    'b_back': ((None,), 'D'),
    'scale_1': ((None,), 'D'),
    'bias_1': ((None,), 'D'),
    'scale_2': ((None,), 'D'),
    'bias_2': ((None,), 'D'),
}


def ordering_layer(
    x: Float[Array, 'B L D'], tok: Tokens, weights: dict[str, Array]
) -> Float[Array, 'B L D']:
    """An encoder layer: `y = norm(x + attention(x))`, `norm(y + relu(y W_in + b_in) W_back + b)`.

    Every token sees the valid tokens of its document. Norms are in float32, the result has the
    dtype of `x`.

    Args:
      x: vectors of the tokens.
      tok: the tokens; only documents and padding are read.
      weights: w_q, w_k, w_v [D, N, H], w_out [N, H, D], w_in [D, F], b_in [F], w_back [F, D], and
        b_back, scale_1, bias_1, scale_2, bias_2 [D].
    """
    w = {name: a.astype(x.dtype) for name, a in weights.items()}
    q, k, v = (jnp.einsum('bld,dnh->blnh', x, w[name]) for name in ('w_q', 'w_k', 'w_v'))
    tok = tok.without_feats()
    mixed = attend(Document(), q, k, v, tok, tok, block=_TILE, applied=TOKEN_STAGE)
    y = x + jnp.einsum('blnh,nhd->bld', mixed, w['w_out'])
    y = _norm(y, weights['scale_1'], weights['bias_1'])
    hidden = jax.nn.relu(y @ w['w_in'] + w['b_in'])
    return _norm(y + hidden @ w['w_back'] + w['b_back'], weights['scale_2'], weights['bias_2'])


def _norm(x, scale, bias):
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
    return (y * scale + bias).astype(x.dtype)


def dpe_loss(
    o: Float[Array, 'B L D'], pi: Num[Array, '#B L'], valid: Bool[Array, '#B L'] | None = None
) -> Float[Array, '']:
    """The mean of `(o_t - sinusoid(pi(t)))^2` over the valid tokens and the channels, float32.

    Args:
      o: what the ordering encoder says of each token.
      pi: the place of each token in the order of the target.
      valid: False for padding; None where all tokens are real.
    """
    apart = o.astype(jnp.float32) - sinusoidal_table(pi, o.shape[-1])
    error = (apart * apart).mean(-1)
    real = jnp.ones_like(error, bool) if valid is None else jnp.broadcast_to(valid, error.shape)
    return jnp.where(real, error, 0).sum() / jnp.maximum(real.sum(), 1)


@register(
    'dpe',
    kind='encoding',
    card=Card(
        name='DPE, dynamic position encoding',
        door='embed',
        example='dpe() | full()',
        use_when=(
            'You translate, and word order differs between the two languages; the '
            'measured claim is open.'
        ),
        share='model',
        needs_training=True,
    ),
)
class DPE(AuxiliaryLoss):
    """Adds to the vectors of a source what a small encoder says about their order in the target.

    `x_t + o_t`, `o = encoder(x_t + sinusoid(t))`; o is the result of `layers` encoder layers on
    `x_t + sinusoid(t)`. In training, o_t is drawn to `sinusoid(pi(t))`, where pi(t) is the place of
    word t in the order of the target (`xlpe_order` of `xlpe` makes it): the loss is `lam
    CE + (1 - lam) L_order`, L_order as `dpe_loss` has it. The cross entropy of a task has the
    weight 1 here, so `auxiliary_loss` is `(1 - lam) / lam L_order`. Positions are [B, L, 2] of
    components (t, pi(t)) in training; nothing but the loss reads pi, and without the loss positions
    [B, L] do. The layers read later tokens too: for encoders. Differs from the paper, which has no
    public code and leaves details open: that the layers read sinusoid(t) is an option, and the loss
    is a mean over the channels. The layers are those of arXiv 1706.03762 with a hidden width of 4
    D, without biases in attention.

    Args:
      layers: of the ordering encoder.
      lam: weight of the cross entropy.
      order_input_pe: whether the layers read sinusoid(t). Without it, repeated words are alike.
      heads, head_dim, model_dim, rngs: N, H, D, from the model.

    Raises:
      ValueError: at call, positions with more than two components, token vectors of another
        width, or a loss with positions that have no pi.

    Reference: Zheng, Rezagholizadeh, Passban, arXiv 2204.08142.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('dpe(layers=1)', heads=2, head_dim=2, model_dim=4)
      >>> x, tok = jnp.ones((1, 3, 4)), pj.Tokens.of(positions=[[[0, 2], [1, 1], [2, 0]]])
      >>> encoding.embed(x, tok).shape, encoding.auxiliary_loss(x, tok, key=None).shape
      ((1, 3, 4), ())
    """

    traits = frozenset({'sees_later', 'moves_positions', 'reads_target_order'})

    def __init__(
        self,
        layers: Size = 2,
        lam: Annotated[float, Gt(0), Le(1.0)] = 0.5,
        order_input_pe: bool = True,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.lam, self.order_input_pe, self.model_dim = lam, order_input_pe, model_dim
        sizes = dict(D=model_dim, N=heads, H=head_dim, F=4 * model_dim)
        for name, (axes, letters) in _WEIGHTS.items():
            shape = (layers, *(sizes[letter] for letter in letters))
            if name.startswith('w_'):
                inputs = heads * head_dim if name == 'w_out' else sizes[letters[0]]
                a = inputs**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32)
            else:
                a = jnp.full(shape, float(name.startswith('scale')), jnp.float32)
            setattr(self, name, nnx.Param(a, axes=(None, *axes)))

    def order(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """o_t; what it says of padding has no meaning."""
        check_token_width('dpe', self.model_dim, x.shape[-1])
        if tok.pos.shape[2:] not in ((), (2,)):
            raise ValueError(
                'dpe needs positions [B, L], or [B, L, 2] of components (t, pi(t)), got '
                f'{tok.pos.shape}'
            )
        if self.order_input_pe:
            place = tok.pos if tok.pos.ndim == 2 else tok.pos[..., 0]
            x = x + sinusoidal_table(place, x.shape[-1]).astype(x.dtype)
        stacked = {name: getattr(self, name)[...] for name in _WEIGHTS}
        return jax.lax.scan(lambda x, w: (ordering_layer(x, tok, w), None), x, stacked)[0]

    def embed(self, x, tok):
        o = self.order(x, tok)
        return x + (o if tok.valid is None else jnp.where(tok.valid[..., None], o, 0))

    def auxiliary_loss(
        self, x: Float[Array, 'B L D'], tok: Tokens, *, key: Array | None = None
    ) -> Float[Array, '']:
        """`(1 - lam) / lam L_order` of token vectors before `embed`."""
        if tok.pos.shape[2:] != (2,):
            raise ValueError(
                'dpe trains with positions [B, L, 2] of components (t, pi(t)), where '
                f'xlpe_order makes pi from word alignments, got {tok.pos.shape}'
            )
        loss = dpe_loss(self.order(x, tok), tok.pos[..., 1], tok.valid)
        return (1 - self.lam) / self.lam * loss
