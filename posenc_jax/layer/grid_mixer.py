"""Mixers that read all cells of a grid at once, and so have no step."""

from jaxtyping import Array, Float

from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.protocol.tokens import Tokens


class GridMixer(WholeMixer):
    """A layer in the place of attention in which every token reads the whole grid. A subclass
    writes `mix`.
    """

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
