"""Mixers that read all tokens of a row at once, in models that do not decode."""

from typing import Any, ClassVar, NoReturn

from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.protocol.registry import Card
from posenc_jax.protocol.tokens import Tokens


class WholeMixer(nnx.Module):
    """A layer in the place of attention that sees the tokens on both sides. It has no state of
    earlier tokens, so only models of kind 'encoder' take it.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'mixer'
    streams: ClassVar[bool] = False
    sees_later: ClassVar[bool] = True

    def whole(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """The result for whole sequences."""
        raise NotImplementedError

    def start(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuses to decode, and so do `fill` and `step`."""
        raise ValueError(
            f'{self.card.key} reads all tokens at once, so it cannot decode token by token; use '
            "attention with an encoding, e.g. 'nope()'"
        )

    fill = start
    step = start
