"""Set prediction with boxes: the assignment of predictions to objects, the loss, and a small
detector that applies one layer again and again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.layer.layers import zeros
from posenc_jax.mixers.box_pe import BoxLayer, Decoded, moved_boxes
from posenc_jax.protocol.encoding import Constant, drawn_normal

L1 = 5.0  # weight of the distance of boxes beside that of classes, as in DETR
NO_OBJECT = 0.2  # weight of proposals that should say 'no object'


def match_costs(
    boxes: Float[Array, 'B N 4'],
    logits: Float[Array, 'B N classes'],
    of_objects: Float[Array, 'B G 4'],
    kinds: Int[Array, 'B G'],
) -> Float[Array, 'B N G']:
    """What it costs that prediction n stands for object g: `L1 |b_n - b_g|_1 - p_n(kind of g)`.

    Example:
      >>> box = jnp.full((1, 1, 4), 0.5)
      >>> match_costs(box, jnp.zeros((1, 1, 2)), box, jnp.array([[0]])).tolist()
      [[[-0.5]]]
    """
    apart = jnp.abs(boxes[:, :, None] - of_objects[:, None]).sum(-1)
    chances = jax.nn.softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(chances, kinds[:, None].repeat(boxes.shape[1], 1), axis=2)
    return L1 * apart - chosen


def assign(
    costs: Float[np.ndarray, 'B N G'], real: Bool[np.ndarray, 'B G']
) -> Int[np.ndarray, 'B N']:
    """The object that each prediction stands for, -1 for none, such that the costs have the
    smallest sum and every real object has one prediction (Hungarian method, by SciPy).

    Raises:
      ValueError: fewer predictions than objects, or costs that are not finite.
    """
    from scipy.optimize import linear_sum_assignment

    costs, real = np.asarray(costs, np.float64), np.asarray(real)
    if real.sum(axis=1).max(initial=0) > costs.shape[1]:
        raise ValueError(
            f'{costs.shape[1]} predictions cannot stand for {real.sum(axis=1).max()} objects'
        )
    if not np.isfinite(costs).all():
        raise ValueError('costs must be finite: a box or a logit is NaN')
    found = np.full(costs.shape[:2], -1, np.int32)
    for row, (cost, kept) in enumerate(zip(costs, real)):
        numbers = np.flatnonzero(kept)
        predictions, objects = linear_sum_assignment(cost[:, numbers])
        found[row, predictions] = numbers[objects]
    return found


def set_loss(
    boxes: Float[Array, 'B N 4'],
    logits: Float[Array, 'B N classes'],
    of_objects: Float[Array, 'B G 4'],
    kinds: Int[Array, 'B G'],
    assigned: Int[Array, 'B N'],
) -> Float[Array, '']:
    """The cross entropy of the kinds, where others should say 'no object' with the weight
    NO_OBJECT, plus L1 times the distance of boxes; both are means, over predictions and objects.

    Example:
      >>> box = jnp.full((1, 1, 4), 0.5)
      >>> loss = set_loss(box, jnp.array([[[30.0, 0.0]]]), box, jnp.array([[0]]), jnp.array([[0]]))
      >>> float(loss)
      0.0
    """
    stands = assigned >= 0
    at = jnp.maximum(assigned, 0)
    wanted = jnp.where(stands, jnp.take_along_axis(kinds, at, axis=1), logits.shape[-1] - 1)
    logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    entropy = -jnp.take_along_axis(logp, wanted[..., None], axis=-1)[..., 0]
    weight = jnp.where(stands, 1.0, NO_OBJECT)
    apart = jnp.abs(boxes - jnp.take_along_axis(of_objects, at[..., None], axis=1)).sum(-1)
    count = jnp.maximum(stands.sum(), 1)
    return (entropy * weight).sum() / weight.sum() + L1 * jnp.where(stands, apart, 0).sum() / count


def overlap(a: Float[Array, '... 4'], b: Float[Array, '... 4']) -> Float[Array, '...']:
    """Intersection over union of boxes (cx, cy, w, h)."""
    low = jnp.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = jnp.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    both = jnp.maximum(high - low, 0).prod(-1)
    return both / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both)


class Detector(nnx.Module):
    """A small detector: a convolutional stem, learned proposals with boxes, and one `BoxLayer` that
    is applied `steps` times, or a layer for each step.

    Args:
      classes: kinds of objects.
      proposals: N; their first boxes are a grid of boxes that cover the image.
      steps: applications of layers.
      shared: whether all steps have one layer.
      width: D.
      channels: of the image.
      options: further arguments of `BoxLayer`.

    Raises:
      ValueError: proposals or steps below 1; as for `BoxLayer`.

    Example:
      >>> detector = Detector(classes=3, proposals=4, steps=2, width=8, heads=2, rngs=nnx.Rngs(0))
      >>> [out.boxes.shape for out in detector(jnp.zeros((1, 16, 16, 1)))]
      [(1, 4, 4), (1, 4, 4)]
    """

    def __init__(
        self,
        *,
        classes: int,
        proposals: int = 9,
        steps: int = 4,
        shared: bool = True,
        width: int = 32,
        channels: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if proposals < 1 or steps < 1:
            raise ValueError(
                f'a detector has at least one proposal and one step, got {proposals} and {steps}'
            )
        draw = lambda *shape: drawn_normal(
            rngs, shape, np.prod(shape[:-1]) ** -0.5, (None,) * len(shape)
        )
        self.kernels = nnx.List([draw(3, 3, channels, width), draw(3, 3, width, width)])
        self.biases = nnx.List([zeros((width,), (None,)) for _ in self.kernels])
        side = int(np.ceil(proposals**0.5))
        centre = (np.stack(np.divmod(np.arange(proposals), side), -1)[:, ::-1] + 0.5) / side
        first = np.concatenate([centre, np.full((proposals, 2), 1 / side)], axis=1)
        # Trained as logits that move a grid, so that every box stays in the image.
        self.grid = Constant(jnp.asarray(first, jnp.float32), axes=(None, None))
        self.moves = zeros((proposals, 4), (None, None))
        self.proposals = drawn_normal(rngs, (proposals, width), 1.0, (None, None))
        make = lambda: BoxLayer(width, classes=classes, rngs=rngs, **options)
        self.layers = nnx.List([make() for _ in range(1 if shared else steps)])
        self.steps = steps

    def features(self, image: Float[Array, 'B rows columns C']) -> Float[Array, 'B r c D']:
        """Two convolutions of 3 x 3 pixels, the first one with stride 2."""
        x = image
        for stride, kernel, bias in zip((2, 1), self.kernels, self.biases):
            x = jax.lax.conv_general_dilated(
                x, kernel[...], (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
            x = jax.nn.relu(x + bias[...])
        return x

    def __call__(self, image: Float[Array, 'B rows columns C']) -> list[Decoded]:
        """What each step says. No gradient passes from the boxes of a step to the step before."""
        x = self.features(image)
        f = jnp.broadcast_to(self.proposals[...], (len(image), *self.proposals.shape))
        boxes = moved_boxes(self.grid[...], self.moves[...])
        boxes = jnp.broadcast_to(boxes, (len(image), *boxes.shape))
        out = []
        for step in range(self.steps):
            found = self.layers[step % len(self.layers)](f, boxes, x)
            f, boxes = found.f, jax.lax.stop_gradient(found.boxes)
            out.append(found)
        return out
