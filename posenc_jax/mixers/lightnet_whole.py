"""LightNet in both directions: one sum over all positions, for encoders."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.mixers.lightnet import HIDDEN, PIECE, LightNetParts, decayed_sum, running_log_sum
from posenc_jax.mixers.piecewise_scan import scan_pieces
from posenc_jax.protocol.registry import Card, register


def lightnet_whole(
    q: Float[Array, 'B L H F'],
    k: Float[Array, 'B L H F'],
    v: Float[Array, 'B L H V'],
    valid: Bool[Array, '#B L'] | None = None,
) -> Float[Array, 'B L H V']:
    """LightNet in both directions: `o = Q (softmax(K)^T V)`, the softmax over all positions, so one
    scan serves positions with any number of components.
    """
    if valid is not None:
        k = jnp.where(valid[..., None, None], k, HIDDEN)
    return of_row(q, jax.nn.softmax(k, axis=1), v)


def of_row(
    q: Float[Array, 'B L H W'], k: Float[Array, 'B L H W'], v: Float[Array, 'B L H V']
) -> Float[Array, 'B L H V']:
    """`o_t = q_t . sum_s k_s v_s` over whole rows."""
    return jnp.einsum('blhf,bhfv->blhv', q, jnp.einsum('bshf,bshv->bhfv', k, v))


def of_documents(
    q: Float[Array, 'B L H W'],
    k: Float[Array, 'B L H W'],
    v: Float[Array, 'B L H V'],
    starts: Bool[Array, 'B L'],
    ends: Bool[Array, 'B L'],
) -> Float[Array, 'B L H V']:
    """`o_t = q_t . sum_s k_s v_s` over the documents of packed rows: a scan over the tokens up to
    t, and one over those from t on, both of linear cost.

    Args:
      q, k, v: of the tokens.
      starts, ends: the first and the last tokens of the documents.
    """
    batch, heads, width = q.shape[0], *q.shape[2:]
    still = jnp.zeros(q.shape)  # nothing decays
    zero = jnp.zeros((batch, heads, width, v.shape[-1])), jnp.zeros((batch, heads, width))
    sums = lambda *rows: scan_pieces(decayed_sum, zero, rows, PIECE)[0]
    turn = lambda a: a[:, ::-1]
    later = turn(sums(turn(q), turn(k), turn(v), still, turn(ends)))
    return sums(q, k, v, still, starts) + later - (q * k).sum(-1, keepdims=True) * v


def log_totals(
    k: Float[Array, 'B L H F'], starts: Bool[Array, 'B L'], ends: Bool[Array, 'B L']
) -> Float[Array, 'B L H F']:
    """`log sum_s e^k_s` over the document of each token."""
    length = k.shape[1]
    running = running_log_sum(k, starts, jnp.full_like(k[:, 0], HIDDEN), initial=HIDDEN)
    places = jnp.where(ends, jnp.arange(length), length - 1)
    last = jax.lax.cummin(places, axis=1, reverse=True)
    return jnp.take_along_axis(running, last[..., None, None], axis=1)


@register(
    'lightnet_whole',
    kind='mixer',
    card=Card(
        name='LightNet in both directions',
        example='lightnet_whole(encoding=md_lrpe())',
        use_when='You train an encoder on long rows and want time linear in the length.',
        relative=True,
        needs_training=True,
    ),
)
class LightNetWhole(LightNetParts, WholeMixer):
    """Linear attention over all tokens of a row, in the place of softmax attention of an encoder.

    `o_t = q_t . sum_s k'_s v_s`, `k'_s = e^k_s / sum_s e^k_s` over all tokens, for each head and
    each feature of the keys, q = SiLU(x W_q). An encoding turns q and k'. One sum serves positions
    with any number of components, where a scan needs one for each direction of each axis.
    Projections, norm and gate are those of `lightnet`. Time and memory are linear in the length. In
    packed rows every document has its own sums. Differs from the paper: as `lightnet`.

    Args:
      encoding: `md_lrpe(...)`, or None for no encoding; `md_lrpe(components=2)` on grids.

    Raises:
      ValueError: another encoding than `md_lrpe`.

    Reference: Qin et al., arXiv 2405.21022.

    Example:
      >>> import posenc_jax as pj
      >>> from flax import nnx
      >>> mixer = LightNetWhole(model_dim=8, heads=2, head_dim=4, layers=1, rngs=nnx.Rngs(0))
      >>> mixer.whole(jnp.ones((1, 3, 8)), pj.Tokens.of(length=3)).shape
      (1, 3, 8)
    """

    def whole(self, x, tok):
        real = jnp.ones((1, 1), bool) if tok.valid is None else tok.valid
        valid = jnp.broadcast_to(real, x.shape[:2])
        q, k, v = self.projected(x, valid)
        if tok.segment is None:
            k = jax.nn.softmax(k, axis=1)
            return self.result(of_row(self.turned(q, tok), self.turned(k, tok), v), x)
        changes = jnp.diff(jnp.broadcast_to(tok.segment, valid.shape), axis=1) != 0
        border = jnp.ones((len(x), 1), bool)
        starts = jnp.concatenate([border, changes], axis=1)
        ends = jnp.concatenate([changes, border], axis=1)
        k = jnp.exp(k - log_totals(k, starts, ends))
        out = of_documents(self.turned(q, tok), self.turned(k, tok), v, starts, ends)
        return self.result(out, x)
