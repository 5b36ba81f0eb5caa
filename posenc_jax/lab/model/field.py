"""A field: features of coordinates, and a network from them to values, logits of classes or logits
of bits.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates import make_features
from posenc_jax.fields import make_field
from posenc_jax.protocol import bounds
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.errors import SpecError, check_choice

PREDICTS = ('value', 'bits', 'class')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """What defines a `Field`.

    Attributes:
      components: d, how many coordinates a point has.
      output_size: how many values, bits or classes a point has.
      predicts: 'value', 'bits' or 'class'; it decides the loss.
      features: spec string of an encoder of coordinates; '' for the coordinates themselves.
      field: spec string of the network.
      bits: bits of the whole numbers that the values or bits stand for; 0 for none.

    Raises:
      ValueError: sizes below 1, or an unknown choice.
    """

    kind: ClassVar[str] = 'field'
    train_len: ClassVar[int] = 1  # a row of a batch is one point
    source_len: ClassVar[int] = 0

    components: Size
    output_size: Size
    predicts: str
    features: str = ''
    field: str = 'siren()'
    bits: int = 0

    def __post_init__(self):
        bounds.check('FieldConfig', bounds.hints_of(type(self)), vars(self))
        check_choice('predicts', self.predicts, PREDICTS)


class Field(nnx.Module):
    """`network(features(x), x)`, values of points.

    Args:
      cfg: sizes and choices.
      rngs: initial parameters come from `rngs.params()`.

    Raises:
      SpecError: features of points with another number of coordinates, or features for a network
        that reads the coordinates themselves.

    Example:
      >>> import jax.numpy as jnp
      >>> cfg = FieldConfig(components=2, output_size=3, predicts='value', field='mlp(width=8)')
      >>> Field(cfg, rngs=nnx.Rngs(0))(jnp.zeros((5, 2))).shape
      (5, 3)
    """

    # A field has none of the parts of attention, which some checks of a run ask for.
    shared: ClassVar[tuple] = ()
    blocks: ClassVar[tuple] = ()

    def __init__(self, cfg: FieldConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        encoder = make_features(cfg.features, rngs) if cfg.features else None
        if encoder is not None and encoder.components != cfg.components:
            raise SpecError(
                f'features is {cfg.features!r}, of points with {encoder.components} coordinates; '
                f'those of the task have {cfg.components}'
            )
        self.features = encoder
        self.network = make_field(
            cfg.field,
            features=cfg.components if encoder is None else encoder.width,
            outputs=cfg.output_size,
            components=cfg.components,
            rngs=rngs,
        )
        if encoder is not None and not self.network.takes_features:
            raise SpecError(
                f'field is {cfg.field!r}, which reads the coordinates themselves; features must '
                f"be '', got {cfg.features!r}"
            )

    def check_coordinates(self, coords: Float[np.ndarray, '*B d']) -> None:
        """Raises ValueError if the features are not defined at a point. A call checks this itself
        unless it is traced.
        """
        if self.features is not None:
            self.features.check_values(coords)

    def __call__(
        self, coords: Num[Array, '*B d'], *, key: Array | None = None, progress: Any = None
    ) -> Float[Array, '*B out']:
        """Values of points, or logits of their classes or bits.

        Args:
          coords: the points.
          key: draws what training drops; None drops nothing.
          progress: the share of training that is over; None is the end.

        Raises:
          ValueError: points with another number of coordinates, or coordinates that are not finite.
        """
        if self.features is not None:
            features = self.features.encode_at(coords, progress)
        else:
            features = coords if self.network.takes_features else None
        return self.network(features, coords, key=key, progress=progress)
