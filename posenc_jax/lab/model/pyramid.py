"""The stages of a pyramid over an image, as a config lists them."""

import math
from collections.abc import Sequence

from posenc_jax.protocol.errors import quoted

STAGE = (int, int, int, int, str)  # of a pyramid: layers, width, heads, patch, spec


def pixels_per_patch(patch: int, lower: Sequence[Sequence]) -> int:
    """The side, in pixels of the image, of what a patch of the last stage stands for.

    Args:
      patch: side of its patches in cells of the stage before.
      lower: the stages before, see `TransformerConfig`.

    Raises:
      ValueError: a stage that is not (layers, width, heads, patch, spec).

    Example:
      >>> pixels_per_patch(2, [(2, 32, 1, 4, 'nope()')])
      8
    """
    for number, stage in enumerate(lower):
        if (
            not isinstance(stage, (tuple, list))
            or len(stage) != len(STAGE)
            or not all(map(isinstance, stage, STAGE))
            or min(stage[:4]) < 1
        ):
            raise ValueError(
                'a stage in lower is (layers, width, heads, patch, spec), e.g. (2, 32, 1, 4, '
                f"'rope()'); stage {number} is {quoted(stage)}"
            )
    return patch * math.prod(stage[3] for stage in lower)
