"""Mixers that read all cells of a grid at once, and so have no step."""

from typing import ClassVar, NoReturn

from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.registry import Card
from posenc_jax.core.tokens import Tokens


class GridMixer(nnx.Module):
    """A layer in the place of attention in which every token reads the whole grid.

    A subclass writes `mix`. Such a layer needs a model that sees later tokens, and tokens that lie
    on a grid; decoding token by token is refused.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'mixer'
    streams: ClassVar[bool] = False
    sees_later: ClassVar[bool] = True

    def mix(self, x: Float[Array, 'B L D'], grid: tuple[int, int]) -> Float[Array, 'B L D']:
        """The result for tokens of which the last rows x columns are the cells of `grid`."""
        raise NotImplementedError

    def whole(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """The result for whole grids.

        Raises:
          ValueError: tokens on no grid, or some that are padding.
        """
        if tok.grid is None:
            raise ValueError(
                f'{self.card.key} reads a grid of tokens, and these lie on none: use it in a model '
                'of images (model.patch)'
            )
        if tok.valid is not None or tok.segment is not None:
            raise ValueError(
                f'{self.card.key} reads one whole grid a row, got tokens with padding or documents'
            )
        return self.mix(x, tok.grid)

    def start(self, batch: int, tok: Tokens) -> NoReturn:
        """Raises ValueError: there is no state of only a part of a grid."""
        self._refuse()

    def fill(self, x, tok: Tokens, capacity: int, count=None) -> NoReturn:
        """Raises ValueError, as `start`."""
        self._refuse()

    def step(self, x, tok: Tokens, state, cursor) -> NoReturn:
        """Raises ValueError, as `start`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f'{self.card.key} reads the whole grid at once, so it cannot decode token by token; '
            "use attention with an encoding, e.g. 'nope()'"
        )
