"""Factors on queries that grow with the logarithm of the number of tokens so far."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posenc_jax.protocol.bounds import CONTEXT, NonNegative, Size, TrainLen
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register

Kind = Literal['logn', 'llama4']
SLOPE, STEP = 0.1, 8192  # of Llama 4


def log_length_logn_factor(count: Int[Array, '...'], train_len: int) -> Float[Array, '...']:
    """`max(1, ln n / ln L)`, float32: exactly 1 up to n = L.

    Args:
      count: n, the number of tokens up to the query, itself included.
      train_len: L, at least 2.

    Raises:
      ValueError: a train_len below 2, whose logarithm is 0.
    """
    beyond = jnp.maximum(count, _logarithmic(train_len)).astype(jnp.float32) / train_len
    return 1.0 + jnp.log(beyond) / math.log(train_len)


def _logarithmic(train_len: int) -> int:
    if train_len < 2:
        raise ValueError(
            f'logn divides by ln(train_len), so train_len must be at least 2, got {train_len}'
        )
    return train_len


def log_length_llama4_factor(
    count: Int[Array, '...'], slope: float = SLOPE, step: int = STEP
) -> Float[Array, '...']:
    """`1 + a ln(1 + floor(n / c))`, float32: exactly 1 below n = c.

    Args:
      count: n, the number of tokens up to the query, itself included.
      slope, step: a, c.
    """
    return 1.0 + slope * jnp.log1p((count // step).astype(jnp.float32))


def log_length_queries(
    q: Float[Array, 'B T N H'], factor: Float[Array, '#B T']
) -> Float[Array, 'B T N H']:
    """Queries times a factor for each token, formed in float32."""
    return (q.astype(jnp.float32) * factor[..., None, None]).astype(q.dtype)


@register(
    'log_length',
    kind='encoding',
    card=Card(
        name='log length',
        equation='lambda_i = max(1, ln n / ln L), or 1 + a ln(1 + floor(n / c)), n = i + 1',
        example='log_length(train_len=8)',
        use_when=(
            'You read texts longer than in training and attention to many keys gets too flat.'
        ),
        share='model',
        relative=True,
    ),
)
class LogLength(Encoding):
    """Multiplies queries, and so the logits, by a factor that grows with the number of tokens up to
    the query, so that attention to many keys stays as sharp as to few.

    `logit_ij = lambda_i q_i . k_j / sqrt(H)`. With n = i + 1, i the rank of the token in its
    document, the kind 'logn' has `lambda_i = max(1, ln n / ln L)`, for any encoding and without
    training. The kind 'llama4' has `lambda_i = 1 + a ln(1 + floor(n / c))`, in the layers without
    positions of Llama 4, in training too. The factor belongs to a query and not to the present
    length, so a decoding step equals the pass over the whole text. Keys that a mask hides are
    counted too. `ssmax` trains such a factor for each head, `nope_temperature` has a slope that is
    fitted. Differs from the released code: n counts the tokens of the document, where that of Llama
    4 takes the index in the cache, which padding on the left moves.

    Args:
      kind: 'logn' or 'llama4'.
      slope: a of the kind 'llama4'; None for 0.1.
      step: c of the kind 'llama4', in tokens; None for 8192.
      train_len: L of the kind 'logn', at least 2, from the model.

    Raises:
      ValueError: a slope or a step with the kind 'logn', or a train_len of 1.

    Reference: Su, kexue.fm/archives/9706 and github.com/bojone/rerope; Meta AI, code of Llama 4.

    Example:
      >>> log_length_llama4_factor(jnp.array([8191, 8192, 16384])).round(4).tolist()
      [1.0, 1.0693, 1.1099]
    """

    def __init__(
        self,
        kind: Kind = 'logn',
        slope: NonNegative | None = None,
        step: Size | None = None,
        train_len: TrainLen = CONTEXT,
    ):
        if kind == 'logn':
            for name, given in (('slope', slope), ('step', step)):
                if given is not None:
                    raise ValueError(
                        f"log_length: {name} belongs to the kind 'llama4', got {name}={given} with "
                        f"kind='logn'"
                    )
            _logarithmic(train_len)
        self.kind, self.train_len = kind, train_len
        self.slope = SLOPE if slope is None else slope
        self.step = STEP if step is None else step

    def factor(self, count: Int[Array, '#B T']) -> Float[Array, '#B T']:
        """lambda of queries up to which there are so many tokens."""
        if self.kind == 'logn':
            return log_length_logn_factor(count, self.train_len)
        return log_length_llama4_factor(count, self.slope, self.step)

    def project(self, q, k, v, tq, tk, x=None):
        return log_length_queries(q, self.factor(tq.rank + 1)), k, v, tq, tk
