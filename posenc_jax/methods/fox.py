"""FoX: softmax attention with a forget gate, and the pruning that its decay allows."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.products import heads_first
from posenc_jax.methods.cable import cable_bias
from posenc_jax.protocol.bounds import CONTEXT, Finite, Ge, Lt, Meaning
from posenc_jax.protocol.capabilities import Carries, Prunes, SeveralInputs
from posenc_jax.protocol.encoding import Constant, drawn_normal
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import host_values

Horizon = Annotated[float, Ge(0.1), Meaning('tokens in which a weight falls by the factor e')]
Gate = Literal['full', 'bias_only', 'fixed']
_NORM_OF_KEYS, _NORM_OF_RESULTS = 1e-5, 1e-6  # the epsilons of the norms of the 'pro' block


def fox_horizons(t_min: float, t_max: float, heads: int) -> np.ndarray:
    """The gate biases b_h of horizons T_h whose logarithms rise linearly over the heads; float64.

    `b_h = -ln(exp(1 / T_h) - 1)`, so `sigmoid(b_h) = exp(-1 / T_h)`: a weight falls by the factor e
    in T_h tokens.

    Example:
      >>> fox_horizons(2.0, 64.0, 4).round(4).tolist()
      [0.4328, 1.7686, 2.9787, 4.1511]
    """
    return -np.log(np.expm1(1 / np.geomspace(t_min, t_max, heads)))


def fox_bias(
    log_gates: Float[Array, '#B N S'],
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
    carry: Float[Array, 'B N T'],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """The sum of the log gates of the tokens after each key up to each query, for one block of
    keys; float32.

    Args:
      log_gates: `ln f` of each key, at most 0, ascending in index; 0 at keys that are not valid.
      q_index, k_index: order of the tokens. For keys after the query the bias has no meaning.
      carry: minus the sum of the log gates of the nearer blocks up to each query.

    Returns:
      The bias, and the carry for the next farther block.
    """
    return cable_bias(-log_gates, q_index, k_index, carry)


@register(
    'fox',
    kind='encoding',
    card=Card(name='FoX', example='fox()', causal_only=True, relative=True, needs_training=True),
)
class FoX(Carries):
    """Adds the log forget gates of the tokens between key and query; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) + sum_{j<l<=i} ln f_l`, `f_l = sigmoid(x_l W_g + b_h)` per head,
    x the layer input. The gate of the query counts, and that of the key does not. With one constant
    gate per head it is ALiBi of slope `-ln f`, and with `f = 1` it is no encoding. The paper uses
    it without another encoding; with rotary positions it is `rope(base=500000) | fox()`. Differs
    from the released code: with grouped queries there is one gate for each query head (the code
    refuses them). The sum is taken from near to far, so it keeps its digits in long texts.
    Positions are not read. Padding has no gate, and each document has sums of its own.

    `pro=True` is the 'Pro' block: keys and values are mixed with those of the token before, `k_i <-
    a_i k_(i-1) + (1 - a_i) k_i` with `a_i = sigmoid(x_i W_a)` per key head; then queries and keys
    have an RMS norm per head; the result has one too, and is multiplied by `sigmoid(x_i W_o)`. Its
    feed-forward ratio of 3.5 is a field of the model. A rotary part of the chain acts behind these
    norms. Before the first token of a document there are zeros. Unlike those of the paper's
    training, matrices of encodings have no weight decay here.

    `prune` leaves out blocks of keys, which is Adaptive Computation Pruning: `prune=-10` removes at
    most `exp(-10)` of the weights of a query. A block is left out if its gates lie below `prune - 2
    max|q_i| max|k_j| / sqrt(H) - ln n` for all queries of the tile, n keys. A tile of the blocked
    form has all heads and rows of the batch, and that of a kernel one head of one row. In a
    decoding step no block is left out, since the norms of cached keys are not known. Rotary parts
    stand in front of it.

    The keys that a query sees must be contiguous and end at the query.

    Args:
      gate: 'full' reads the layer input; 'bias_only' trains b_h alone; 'fixed' trains nothing. A
        text without gates is `nope()`.
      gate_bias: initial b of 'full'. The paper's is 0, so every gate starts at 1/2 and a head sees
        few tokens; values of 2 to 4 learn faster in small models.
      t_min, t_max: the horizons in tokens of the first and the last head, from which 'bias_only'
        and 'fixed' take b_h, see `fox_horizons`. The paper tries several.
      pro: whether the block is 'Pro'.
      prune: the natural logarithm of the share of the weights of a query that may be left out, or
        None.
      heads, kv_heads, head_dim, model_dim, rngs: from the model.

    Raises:
      ValueError: horizons with `gate='full'`, or none or falling ones with another gate; the layer
        input of a key is missing; a gate is NaN, if its value is known (not traced).

    Reference: Lin, Nikishin, He, Courville, arXiv 2503.02130.
    """

    traits = frozenset({'sums_between'})

    def __init__(
        self,
        gate: Gate = 'full',
        gate_bias: Finite = 0.0,
        t_min: Horizon | None = None,
        t_max: Horizon | None = None,
        pro: bool = False,
        prune: Annotated[float, Lt(0)] | None = None,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        normal = lambda shape, *axes: drawn_normal(rngs, shape, 0.02, axes)
        self.prune: Any = prune
        bias = _first_biases(gate, gate_bias, t_min, t_max, heads)
        kernel = normal((model_dim, heads), 'width', 'heads')
        self.kernel = kernel if gate == 'full' else None
        variable = Constant if gate == 'fixed' else nnx.Param
        self.bias = variable(jnp.asarray(bias, jnp.float32), axes=('heads',))
        if pro:
            ones = lambda n, *role: nnx.Param(jnp.ones((n, head_dim)), axes=(*role, None))
            self.shift = normal((model_dim, 2, kv_heads), 'width', None, 'kv_heads')
            self.gate = normal((model_dim, heads, head_dim), 'width', 'heads', None)
            self.norm_q, self.norm_k = ones(heads, 'heads'), ones(kv_heads, 'kv_heads')
            self.norm_out = ones(heads, 'heads')

    def project(self, q, k, v, tq, tk, x=None):
        bias = jnp.broadcast_to(self.bias[...], (*k.shape[:2], q.shape[2]))
        if self.kernel is not None:
            bias = bias + _product(_own_rows(x, k.shape[1]), self.kernel[...])
        log_gates = jax.nn.log_sigmoid(bias)
        if tk.valid is not None:
            log_gates = jnp.where(tk.valid[..., None], log_gates, 0.0)
        _check_gates(log_gates)
        return q, k, v, self.of_queries(tq, q, k, tk), tk.with_feats(fox=log_gates)

    def of_queries(self, tq, q, k, tk):
        """The tokens of the queries, with what a variant must know of them."""
        return tq

    def logits(self, s, q, k, tq, tk, seen, carry):
        bias, carry = fox_bias(heads_first(tk.feats['fox']), tq.index, tk.index, carry)
        return s + bias, carry


class PruningFoX(FoX, Prunes, where=lambda given: given['prune'] is not None):
    """FoX that leaves out blocks of keys whose weights are negligible."""

    # A part behind it that enlarges queries or keys would break the bound, for which `project`
    # reads all keys.
    traits = FoX.traits | {'reads_own_projections', 'reads_other_tokens'}

    def of_queries(self, tq, q, k, tk):
        """With the carry beyond which a query needs no keys, [B, T, N]; infinite where a cache may
        have keys in front of these.
        """
        norm = lambda a: jnp.linalg.norm(a.astype(jnp.float32), axis=-1)
        keys = jnp.repeat(norm(k).max(1, keepdims=True), q.shape[2] // k.shape[2], axis=2)
        largest = norm(q) * keys * q.shape[-1] ** -0.5
        needed = 2 * largest + jnp.log(jnp.float32(k.shape[1])) - self.prune
        known = (tk.index[:, :1] == 0)[..., None]
        needed = jax.lax.stop_gradient(jnp.where(known, needed, jnp.inf))
        return tq.with_feats(fox_needed=needed)

    def ended(self, carry, tq):
        return carry > heads_first(tq.feats['fox_needed'])


class ProFoX(FoX, SeveralInputs, where=lambda given: given['pro']):
    """FoX in its 'Pro' block."""

    lookback = 1

    def qkv(self, x, linear, tok):
        q, k, v = linear(x)
        if x.shape[1] != tok.length + 1:
            raise ValueError(
                f'fox mixes keys with those of the token before: {tok.length} tokens, the layer '
                f'input of {x.shape[1]}'
            )
        share = jax.nn.sigmoid(jnp.einsum('bsd,dck->bsck', x[:, 1:], self.shift[...]))

        def mixed(a, share):
            before = jnp.where((tok.rank > 0)[..., None, None], a[:, :-1], 0.0)
            return (share * before + (1 - share) * a[:, 1:]).astype(a.dtype)

        k, v = (mixed(a, share[:, :, n, :, None]) for n, a in enumerate((k, v)))
        normed = lambda a, weight: _rms_norm(a, weight[...], _NORM_OF_KEYS)
        return normed(q[:, 1:], self.norm_q), normed(k, self.norm_k), v

    def project(self, q, k, v, tq, tk, x=None):
        q, k, v, tq, tk = super().project(q, k, v, tq, tk, x)
        gate = jnp.einsum('btd,dnh->btnh', _own_rows(x, k.shape[1]), self.gate[...])
        return q, k, v, tq.with_feats(fox_gate=jax.nn.sigmoid(gate)), tk

    def rescale(self, out, lse, tq):
        normed = _rms_norm(out, self.norm_out[...], _NORM_OF_RESULTS)
        return (normed * tq.feats['fox_gate']).astype(out.dtype)


def _check_gates(log_gates: Float[Array, 'B S N']) -> None:
    """Refuses gates that are NaN, if they are known: one of them makes every later sum NaN."""
    known = host_values(log_gates)
    if known is not None and (wrong := np.argwhere(np.isnan(known))).size:
        row, token, head = wrong[0]
        raise ValueError(
            f'fox: the gate of token {token} of row {row} is NaN in head {head}; gates lie between '
            '0 and 1, so the layer input of this token or the weights of the gates are NaN'
        )


def _first_biases(
    gate: Gate, gate_bias: float, t_min: float | None, t_max: float | None, heads: int
) -> np.ndarray:
    """b_h at the start, from the arguments of `FoX`."""
    if gate == 'full':
        if t_min is not None or t_max is not None:
            raise ValueError(
                "fox: gate='full' starts at gate_bias; t_min and t_max belong to gate='bias_only' "
                "and gate='fixed'"
            )
        return np.full(heads, gate_bias)
    if t_min is None or t_max is None or t_min > t_max:
        raise ValueError(
            f'fox: gate={gate!r} needs the horizons of the first and the last head, t_min <= '
            f't_max, in tokens, got t_min={t_min}, t_max={t_max}'
        )
    if gate_bias:
        raise ValueError(
            f'fox: gate={gate!r} takes its biases from t_min and t_max: leave out '
            f'gate_bias={gate_bias}'
        )
    return fox_horizons(t_min, t_max, heads)


def _own_rows(x, keys: int):
    """The rows of the layer input that belong to the keys, in float32."""
    if x is None or x.shape[1] < keys:
        got = 'none' if x is None else f'{x.shape[1]} tokens'
        raise ValueError(
            f'fox reads the layer input of one token per key: {keys} keys, input: {got}'
        )
    return x[:, x.shape[1] - keys :].astype(jnp.float32)


def _product(x, kernel):
    return jnp.einsum('bsd,dn->bsn', x, kernel, precision='highest')


def _rms_norm(a, weight, epsilon: float):
    wide = a.astype(jnp.float32)
    mean = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + epsilon) * weight).astype(a.dtype)
