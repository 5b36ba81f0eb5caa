"""The base class of rules for rotary frequencies that are the same at every length."""

from typing import Any, ClassVar

import numpy as np

from posenc_jax.protocol.errors import must_define
from posenc_jax.protocol.registry import Promises

STATIC: dict[str, Any] = dict(  # of their Cards
    share='model', promises=Promises(relative=True, fused=True)
)


class FrequencyRule:
    """A rule whose temperature is 1, see `Frequencies`. A subclass is a frozen dataclass with
    `frequencies`, which refuses wrong arguments; it is called when a rule is made.
    """

    spec_kind: ClassVar[str] = 'frequencies'
    uses_length: ClassVar[bool] = False

    def __post_init__(self):
        self.frequencies(4, 10000.0)

    def frequencies(self, rotary_dim: int, base: float) -> np.ndarray:
        """Radians per position of each plane, float64 [rotary_dim / 2]."""
        raise must_define(self, 'frequencies(self, rotary_dim, base)')

    def __call__(self, rotary_dim: int, base: float, length=None) -> tuple[np.ndarray, float]:
        return self.frequencies(rotary_dim, base), 1.0
