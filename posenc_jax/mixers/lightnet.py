"""LightNet: linear attention whose decay keeps a running average."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal, rms_norm
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.methods.md_lrpe import MdLrpe
from posenc_jax.mixers.head_projections import from_heads, input_weights, output_weights, to_heads
from posenc_jax.mixers.piecewise_scan import known_rows, scan_pieces
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

PIECE = 64  # tokens that are summed by one product
HIDDEN = -1e30  # a key without weight
SAFE = 80.0  # e to this power, and to its negative, are normal numbers of float32


def running_log_sum(
    k: Float[Array, 'B T H F'],
    starts: Bool[Array, 'B T'],
    before: Float[Array, 'B H F'],
    initial: float = 0.0,
) -> Float[Array, 'B T H F']:
    """`E_t = log(e^E + sum_{s <= t} e^k_s)`, where E is `before`, and `initial` from a start on."""
    starts = jnp.broadcast_to(starts[..., None, None], (*starts.shape, 1, 1))
    first = jnp.zeros_like(starts).at[:, :1].set(True)
    begun = jnp.logaddexp(jnp.where(starts, initial, before[:, None]), k)
    parts = starts | first, jnp.where(starts | first, begun, k)

    def join(a, b):
        return a[0] | b[0], jnp.where(b[0], b[1], jnp.logaddexp(a[1], b[1]))

    return jax.lax.associative_scan(join, parts, axis=1)[1]


def decayed_sum(state, rows):
    """One piece of linear attention with a decay: `S_t = e^(E_{t-1} - E_t) S_{t-1} + k_t v_t^T` and
    `o_t = S_t^T q_t`, by products of matrices.

    Args:
      state: S [B, H, F, V] and E [B, H, F] before the piece.
      rows: q, k [B, C, H, F], v [B, C, H, V], E [B, C, H, F] and the starts of documents [B, C].
        E rises within a document, and k is zero at padding.

    Returns:
      The new state, and o [B, C, H, V].
    """
    s, before = state
    q, k, v, log_sum, starts = rows
    document = jnp.cumsum(starts, axis=1)
    place = jnp.arange(starts.shape[1])
    seen = (document[:, :, None] == document[:, None, :]) & (place[:, None] >= place)
    rise = log_sum - before[:, None]

    def factors():
        """The decay between two tokens as the product of two factors, so that matrices are
        multiplied.
        """
        near = jnp.clip(rise, -SAFE, SAFE)
        return jnp.einsum('bthf,bshf->bhts', q * jnp.exp(-near), k * jnp.exp(near))

    def pairs():
        """The same for each pair of tokens, where one of the factors would overflow."""
        between = log_sum[:, None] - log_sum[:, :, None]
        decay = jnp.exp(jnp.where(seen[..., None, None], between, HIDDEN))
        return jnp.einsum('bthf,bshf,btshf->bhts', q, k, decay)

    # The gradient of `cond` stores the residuals of both branches, and those of `pairs` are large.
    scores = jax.lax.cond(jnp.abs(rise).max() < SAFE, factors, jax.checkpoint(pairs))
    scores = jnp.where(seen[:, None], scores, 0.0)
    old = (document == 0)[..., None, None]
    decay = jnp.exp(jnp.where(old, before[:, None] - log_sum, HIDDEN))
    out = jnp.einsum('bhts,bshv->bthv', scores, v) + jnp.einsum('bthf,bhfv->bthv', q * decay, s)
    last = (document == document[:, -1:])[..., None, None]
    new = k * jnp.exp(jnp.where(last, log_sum - log_sum[:, -1:], HIDDEN))
    s = s * decay[:, -1][..., None] + jnp.einsum('bshf,bshv->bhfv', new, v)
    return (s, log_sum[:, -1]), out


class LightNetParts(nnx.Module):
    """The projections, the encoding, the norm and the gate of a layer of LightNet; arguments and
    errors as for `LightNet`.
    """

    def __init__(
        self,
        encoding: Encoding | None = None,
        model_dim: int = CONTEXT,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if encoding is not None and not isinstance(encoding, MdLrpe):
            found = getattr(getattr(encoding, 'card', None), 'key', type(encoding).__name__)
            raise ValueError(
                f'{self.card.key} takes the encoding md_lrpe, not {found}; use e.g. '
                f'{self.card.key}(encoding=md_lrpe())'
            )
        self.encoding, self.sizes = encoding, (heads, head_dim)
        self.width = head_dim if encoding is None else encoding.width
        into = lambda: input_weights(rngs, model_dim, heads, head_dim)
        self.w_q, self.w_k, self.w_v = into(), into(), into()
        self.w_down = normal(rngs, (model_dim, head_dim), model_dim, ('width', 'rank'))
        self.w_up = normal(
            rngs, (head_dim, heads, head_dim), head_dim, ('rank', 'heads', 'head_dim')
        )
        self.scale = nnx.Param(jnp.ones((heads, head_dim), jnp.float32), axes=('heads', 'head_dim'))
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)

    def projected(self, x: Float[Array, 'B T D'], valid: Bool[Array, '#B T']):
        """q, k and v [B, T, H, F] in float32; the keys of padding have no weight."""
        project = lambda w: to_heads(x, w[...]).astype(jnp.float32)
        k = jnp.where(valid[..., None, None], project(self.w_k), HIDDEN)
        return jax.nn.silu(project(self.w_q)), k, project(self.w_v)

    def turned(self, a: Float[Array, 'B T H F'], tok: Tokens) -> Float[Array, 'B T H W']:
        """Queries or keys with their positions."""
        return a if self.encoding is None else self.encoding.turned(a, tok)

    def result(self, out: Float[Array, 'B T H V'], x: Float[Array, 'B T D']):
        """The layer's result [B, T, D] from the sums and its input."""
        out = rms_norm(out, jnp.ones(out.shape[-1])) * self.scale[...]
        gate = jax.nn.sigmoid(to_heads(linear(x, self.w_down[...]), self.w_up[...]))
        return from_heads((out * gate).astype(x.dtype), self.w_out[...])


@register(
    'lightnet',
    kind='mixer',
    card=Card(
        name='LightNet',
        example="lightnet(encoding=md_lrpe(form='cosine'))",
        use_when=(
            'You want linear attention with constant memory, within the trained length; beyond '
            'it the loss of small models rose.'
        ),
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class LightNet(LightNetParts, RecurrentMixer):
    """Linear attention with an additive decay, in the place of softmax attention.

    `o_t = q_t . sum_s e^k_s v_s / (1 + sum_s e^k_s)`, s <= t, for each head and each feature of the
    keys, q = SiLU(x W_q): a running average, so the weights of old tokens fall like 1/t instead of
    exponentially. With `E_t = log(1 + sum_{s <= t} e^k_s)` the state is `S_t = diag(e^(E_{t-1} -
    E_t)) S_{t-1} + k'_t v_t^T`, `k'_t = e^(k_t - E_t)`, and `o_t = S_t^T q_t`. An encoding turns q
    and k', and the decay acts on its features. In the form 'cosine' results depend on differences
    of positions alone; in the form 'rotate' not quite, because the two features of a turned pair
    decay differently. Then `y = (RMSNorm(o) * sigmoid(x W_down W_up)) W_o`, with a norm for each
    head. Time and memory are linear in the length, and decoding reads a state of H F (V + 1)
    numbers. Differs from the paper: the rank of the gate is the head width. `lightnet_whole` reads
    in both directions. Packed documents start with the initial state.

    Args:
      encoding: `md_lrpe(...)`, or None for no encoding.

    Raises:
      ValueError: another encoding than `md_lrpe`.

    Reference: Qin et al., arXiv 2405.21022.

    Example:
      >>> import posenc_jax as pj
      >>> mixer = LightNet(model_dim=8, heads=2, head_dim=4, layers=1, rngs=nnx.Rngs(0))
      >>> mixer.whole(jnp.ones((1, 3, 8)), pj.Tokens.of(length=3)).shape
      (1, 3, 8)
    """

    def initial(self, batch):
        heads, head_dim = self.sizes
        zeros = lambda *shape: jnp.zeros((batch, heads, *shape), jnp.float32)
        return zeros(self.width, head_dim), zeros(head_dim)

    def scan(self, x, tok, starts, state):
        valid, _, starts = known_rows(x, tok, starts)
        q, k, v = self.projected(x, valid)
        s, before = state
        log_sum = running_log_sum(k, starts, before)
        k = jnp.exp(k - log_sum)
        q, k = self.turned(q, tok), self.turned(k, tok)
        # The features that an encoding makes of one feature decay alike.
        wide = lambda a: jnp.concatenate([a] * (self.width // a.shape[-1]), axis=-1)
        rows = q, k, v, wide(log_sum), starts
        out, (s, _) = scan_pieces(decayed_sum, (s, wide(before)), rows, PIECE)
        return self.result(out, x), (s, log_sum[:, -1])
