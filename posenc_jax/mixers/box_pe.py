"""RecursiveDet: encodings of boxes in a decoder layer that a detector applies again and again."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.layer.layers import Norm
from posenc_jax.mixers.box_features import (
    box_features,
    centerness,
    dynamic_convolution,
    kernel_positions,
    position_term,
    proposal_attention,
    roi_samples,
    sine_map,
)
from posenc_jax.protocol.bounds import Divides, Ge, Size
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.registry import Card, register

FEATURES = 128  # sine features of each number of a box


class Decoded(NamedTuple):
    """What a layer says of its proposals.

    Attributes:
      f: features of the proposals, the input of the next step.
      boxes: the refined boxes, (cx, cy, w, h), within the image.
      logits: of the classes, the last of which is 'no object'.
    """

    f: Float[Array, 'B N D']
    boxes: Float[Array, 'B N 4']
    logits: Float[Array, 'B N classes']


def inverse_sigmoid(p: Float[Array, '...']) -> Float[Array, '...']:
    """The logit of p, which is kept 1e-4 away from 0 and 1."""
    p = jnp.clip(p, 1e-4, 1 - 1e-4)
    return jnp.log(p) - jnp.log1p(-p)


def moved_boxes(boxes: Float[Array, '... 4'], delta: Float[Array, '... 4']) -> Array:
    """Boxes moved and resized by logits. The first two of `delta` add to the logit of the share of
    free room that lies left of and above the box, the last two to the logits of width and height.
    So every result lies in the image, with a positive size. Zero moves no box of the image; a box
    that reaches out of it is moved to the nearest edge.
    """
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    side = jax.nn.sigmoid(inverse_sigmoid(high - low) + delta[..., 2:])
    free = inverse_sigmoid(low / jnp.maximum(1 - (high - low), 1e-4))
    low = jax.nn.sigmoid(free + delta[..., :2]) * (1 - side)
    return jnp.concatenate([low + side / 2, side], axis=-1)


@register(
    'box_pe',
    kind='mixer',
    card=Card(
        name='RecursiveDet',
        example='BoxLayer(32, heads=2, classes=3, rngs=rngs)',
        use_when=(
            'You have a detector of objects with decoder layers and want one of them to '
            'be used several times; the measured claim is mixed.'
        ),
        needs_training=True,
    ),
)
class BoxLayer(nnx.Module):
    """A decoder layer of an object detector that knows the boxes of its proposals. A detector of
    one layer applies it to its own results.

    `q = Wq_c f + Wq_p e`, `k = Wk_c f + Wk_p e`, `v = Wv f`: attention over the proposals has the
    encoding `e = W_2 relu(W_1 pe)` of their boxes in queries and keys; pe are 512 sine features of
    y, x, w and h. Then the features of each box, P x P cells, pass two kernels that are made of the
    proposal. The first one adds `<Wq fp, Wk kp>` to all channels of a cell: fp are the sine
    features of the image there, kp those of the centre of the box, gated, scaled by reference sizes
    over w and h; both times the centerness of the cell. A feed-forward network follows, and two
    heads.

    Differs from the paper: an RMS norm follows the first kernel, since the layer norm of Sparse
    R-CNN would remove a number that is the same in all channels; the cells of a box have one sample
    each; a box is moved by logits (`moved_boxes`), so that it stays in the image; the convolution
    is done once in a step, not twice.

    Args:
      width: D, of proposals and image features.
      heads: of attention, a divisor of D.
      classes: without 'no object'.
      kernel: M, inner channels of the dynamic convolution.
      cells: P.
      hidden: width of e, and of its network.
      attention, convolution: whether the encodings act in either.

    Raises:
      ValueError: at call, boxes that are none (see `check_boxes`).

    Reference: Zhao, Sun, Li, arXiv 2307.13619.

    Example:
      >>> layer = BoxLayer(8, heads=2, classes=3, cells=3, rngs=nnx.Rngs(0))
      >>> boxes = jnp.array([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 0.25]]])
      >>> out = layer(jnp.ones((1, 2, 8)), boxes, jnp.ones((1, 4, 4, 8)))
      >>> out.boxes.shape, out.logits.shape
      ((1, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        width: Size,
        *,
        heads: Annotated[int, Ge(1), Divides('width')],
        classes: Size,
        kernel: Size = 16,
        cells: Size = 7,
        hidden: Size = 256,
        attention: bool = True,
        convolution: bool = True,
        rngs: nnx.Rngs,
    ):
        per_head, both = width // heads, 2 * FEATURES
        draw = lambda *shape: _xavier(rngs, *shape)
        project = lambda inputs: draw(inputs, heads, per_head)
        self.cells, self.kernel, self.encodes = cells, kernel, (attention, convolution)
        self.content = nnx.Dict({name: project(width) for name in 'qkv'})
        self.position = nnx.Dict({name: project(hidden) for name in 'qk'} if attention else {})
        self.w_boxes: Any = _Network(rngs, 4 * FEATURES, hidden, hidden) if attention else None
        self.w_out = draw(width, width)
        self.w_kernels = draw(width, 2 * width * kernel)
        self.gate: Any = _Network(rngs, width, width, both) if convolution else None
        self.ref: Any = _Network(rngs, width, width, 2) if convolution else None
        self.w_q: Any = draw(both, width) if convolution else None
        self.w_k: Any = draw(both, width) if convolution else None
        self.w_cells = draw(cells * cells * width, width)
        self.mlp = _Network(rngs, width, 4 * width, width)
        # A layer norm behind the first kernel would take off the number that all channels share.
        kinds = (('layernorm', width), ('rmsnorm', kernel), *[('layernorm', width)] * 3)
        self.norms = nnx.List(Norm(*kind) for kind in kinds)
        self.to_classes = draw(width, classes + 1)
        self.to_boxes = _Network(rngs, width, width, 4)

    def __call__(
        self,
        f: Float[Array, 'B N D'],
        boxes: Float[Array, 'B N 4'],
        image: Float[Array, 'B rows columns D'],
    ) -> Decoded:
        """One step on the proposals of images.

        Args:
          f: features of the proposals.
          boxes: their boxes.
          image: features of the images.
        """
        attends, convolves = self.encodes
        of_attention, *_, of_convolution, of_network = self.norms
        pe = box_features(boxes, FEATURES)
        e = self.w_boxes(pe) if attends else None
        value = lambda maps: {name: w[...] for name, w in maps.items()}
        mixed = proposal_attention(f, e, value(self.content), value(self.position))
        f = of_attention(f + mixed.reshape(f.shape) @ self.w_out[...])
        f = of_convolution(f + self._convolved(f, boxes, pe if convolves else None, image))
        f = of_network(f + self.mlp(f))
        return Decoded(f, moved_boxes(boxes, self.to_boxes(f)), f @ self.to_classes[...])

    def _convolved(self, f, boxes, pe, image):
        """What the features of every box, through the kernels of its proposal, add to it."""
        sample = jax.vmap(lambda image, boxes: roi_samples(image, boxes, self.cells))
        term = None
        if pe is not None:
            cen = centerness(self.cells)
            ref = jax.nn.sigmoid(self.ref(f))
            kernel = kernel_positions(pe, boxes, self.gate(f), ref, cen)
            sines = jnp.broadcast_to(
                sine_map(*image.shape[1:3], FEATURES), (*image.shape[:3], 2 * FEATURES)
            )
            feature = sample(sines, boxes) * cen.reshape(-1, 1)
            term = position_term(feature, kernel, self.w_q[...], self.w_k[...])
        first, second = jnp.split(f @ self.w_kernels[...], 2, axis=-1)
        first = first.reshape(*f.shape, self.kernel)
        second = second.reshape(*f.shape[:2], self.kernel, f.shape[-1])
        x = dynamic_convolution(sample(image, boxes), first, term)
        x = jax.nn.relu(self.norms[1](x))
        x = jax.nn.relu(self.norms[2](dynamic_convolution(x, second)))
        return x.reshape(*f.shape[:2], -1) @ self.w_cells[...]


class _Network(nnx.Module):
    """`W_2 relu(W_1 x)`."""

    def __init__(self, rngs, inputs, hidden, out):
        self.w1, self.w2 = _xavier(rngs, inputs, hidden), _xavier(rngs, hidden, out)

    def __call__(self, x):
        return jax.nn.relu(x @ self.w1[...]) @ self.w2[...]


def _xavier(rngs: nnx.Rngs, inputs: int, *out: int) -> nnx.Param:
    """Weights from U(-b, b) with `b = sqrt(6 / (inputs + outputs))`."""
    outputs = 1
    for size in out:
        outputs *= size
    bound = (6 / (inputs + outputs)) ** 0.5
    return drawn_uniform(rngs, (inputs, *out), bound, (None,) * (1 + len(out)))
