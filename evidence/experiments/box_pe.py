"""A detector that applies one layer again and again, with and without the encodings of its boxes.

Writes results.csv and results.png to WORKDIR: the share of objects that are found, by the number of
steps of the decoder. An object is found if the prediction that is assigned to it has its kind
and an overlap (intersection over union) above 1/2. The pictures show up to three rectangles, see
`posenc_jax/lab/tasks/rectangles.py`; 512 new ones are tested.
Number:    docs/results/space.md: after 4 steps .74, .75, .71 with 'unshared' and .35, .80, .61 with
           'recursive_both', seeds 0, 1, 2; the others were not run.
Paper:     Zhao, Sun and Li (arXiv 2307.13619): one layer with encodings of the boxes is better than
           six layers of their own, with fewer parameters. Their images are those of COCO.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.tasks.rectangles import KINDS, rectangles
from posenc_jax.mixers.set_prediction import Detector, assign, match_costs, overlap, set_loss

VARIANTS: dict[str, dict[str, Any]] = {
    'unshared': dict(shared=False, attention=False, convolution=False),
    'recursive': dict(attention=False, convolution=False),
    'recursive_attention': dict(convolution=False),
    'recursive_both': dict(),
}
SIZES = dict(classes=len(KINDS), proposals=9, steps=4, width=32, heads=4, kernel=8, hidden=32)
TESTED = 512


def train(
    detector: Detector, seed: int, *, steps: int, batch: int, rate: float
) -> tuple[Detector, list[float]]:
    """Trains a detector on new pictures in every step.

    Args:
      detector: changed by nothing.
      seed: of the pictures.
      steps, batch, rate: of Adam, whose rate falls along a cosine.

    Returns:
      The trained detector, and the loss of every step: the sum over the steps of the decoder.
    """
    graphdef, params, rest = nnx.split(detector, nnx.Param, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05))
    )
    build = lambda params: nnx.merge(graphdef, params, rest)

    @jax.jit
    def costs(params, image, boxes, kinds):
        return [match_costs(out.boxes, out.logits, boxes, kinds) for out in build(params)(image)]

    @jax.jit
    def step(params, state, image, boxes, kinds, assigned):
        def loss(params):
            parts = zip(build(params)(image), assigned)
            return sum(set_loss(out.boxes, out.logits, boxes, kinds, own) for out, own in parts)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for number in range(steps):
        image, boxes, kinds, real = rectangles(np.random.default_rng([seed, number]), batch)
        # The Hungarian method runs on the host, between two programs.
        found = [assign(np.asarray(c), real) for c in costs(params, image, boxes, kinds)]
        params, state, value = step(params, state, image, boxes, kinds, found)
        losses.append(value)
    return build(params), [float(value) for value in losses]


def found_share(detector: Detector, count: int) -> list[float]:
    """The share of objects of `count` new pictures that each step of the decoder finds."""
    image, boxes, kinds, real = rectangles(np.random.default_rng([2**31, 7]), count)
    shares = []
    for out in jax.jit(lambda detector: detector(image))(detector):
        costs = np.asarray(match_costs(out.boxes, out.logits, boxes, kinds))
        own = assign(costs, real)
        stands, at = own >= 0, np.maximum(own, 0)
        close = overlap(out.boxes, jnp.take_along_axis(boxes, at[..., None], axis=1)) > 0.5
        right = np.asarray(out.logits).argmax(-1) == np.take_along_axis(kinds, at, axis=1)
        shares.append(float((np.asarray(close) & right & stands).sum() / real.sum()))
    return shares


def run(variant: Mapping[str, Any], seed: int, **training: Any) -> tuple[list[float], int]:
    """The shares of `found_share` of a newly trained detector, and its number of parameters."""
    detector = Detector(**{**SIZES, **variant}, rngs=nnx.Rngs(seed))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(detector, nnx.Param)))
    return found_share(train(detector, seed, **training)[0], TESTED), count


def measured(variant: str, seed: int, options: argparse.Namespace) -> Found:
    """The shares of objects that the steps of a trained decoder find."""
    training = dict(steps=options.steps, batch=options.batch, rate=options.rate)
    shares, count = run(VARIANTS[variant], seed, **training)
    print(f'{count:,} parameters', end=' ')
    for step, share in enumerate(shares, 1):
        yield 'rectangles', variant, step, share


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'variants'),
    choose={'variants': VARIANTS},
    options={'steps': 400, 'batch': 16, 'rate': 2e-3},
    table={
        'title': 'Objects that a detector finds', 'x': 'steps of the decoder', 'value': 'found',
    },
)  # fmt: skip
