"""The small pictures of the catalogue, one way to draw them for each kind of method."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Num, Shaped

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.fields import make_field
from posenc_jax.lab.cli.equal_tokens import Probe
from posenc_jax.lab.cli.gallery import new_figure, thumbnail
from posenc_jax.lab.files import disk
from posenc_jax.lab.tasks.graphs.named import from_edges
from posenc_jax.methods.extend import extend
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Entry

SIZE, DPI = (1.6, 0.9), 100
SIDE, STEPS = 32, 100  # of the picture that a field fits, and of the fit


def draw(entry: Entry, path: Path) -> None:
    """Draws the small picture of one method."""
    assert entry.card is not None
    example = entry.card.example
    if entry.kind == 'graph':
        _draw_graphs(graph_features(example), path)
    elif entry.kind == 'field':
        _draw_squares(field_fit(example), path)
    else:
        _draw_logits(entry.kind == 'extension', example, path)


def _draw_logits(extends: bool, example: str, path: Path) -> None:
    """With narrow heads if the example needs them; an extension extends the first that it can."""
    bases = ('rope()', 'alibi()', 'nope()', 'learned_absolute(max_len=64)') if extends else (None,)
    for base, width in [(base, width) for base in bases for width in (64, 8)]:
        probe = Probe(head_dim=width)
        try:
            if base is None:
                encoding = probe.make(example)
            else:
                encoding = extend(probe.make(base), example, **probe.context)
        except SpecError as error:
            refused = error
            continue
        thumbnail(encoding, path, probe)
        return
    raise refused


# A ring of six nodes with one chord, and a tail of four below it; where their nodes stand.
RING = 6
EDGES = [*((i, (i + 1) % RING) for i in range(RING)), (1, 3), (0, 6), (6, 7), (7, 8), (7, 9)]
_TURNS = 2 * np.pi * np.arange(RING) / RING
PLACES = np.concatenate(
    [
        np.stack([np.sin(_TURNS), -np.cos(_TURNS)], axis=1),
        [[0.0, -2.0], [0.0, -3.0], [-0.8, -3.8], [0.8, -3.8]],
    ]
)
TOP = int(PLACES[:, 1].argmax())


def graph_features(example: str, most: int = 3) -> Num[np.ndarray, 'F 10']:
    """The first features of an encoder that differ among the nodes of a small graph; those of the
    pairs with the topmost node where it has no others.
    """
    encoder, graph = make_graph_features(example), from_edges(len(PLACES), EDGES)
    values = encoder.encode(graph)
    if not encoder.width:
        pairs = [a[TOP].reshape(len(graph), -1) for a in encoder.pairs(graph).values()]
        values = np.concatenate(pairs, axis=1)
    return values.T[np.ptp(values, axis=0) > 1e-6][:most]


def field_fit(example: str) -> Shaped[np.ndarray, '3 side side']:
    """The values of a field over the square -1 .. 1 with its initial weights, those behind a fit of
    the values of a wave with an edge, and these.

    L-BFGS fits, since it has no learning rate, which would have to suit each field.
    """
    network = make_field(example, features=2, outputs=1, rngs=nnx.Rngs(0))
    axis = (jnp.arange(SIDE) + 0.5) * 2 / SIDE - 1
    points = jnp.stack(jnp.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)
    targets = (jnp.sin(6 * points[:, 0] + 2 * points[:, 1]) + (points[:, 1] > 0.25)) / 2
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def values(params):
        network = nnx.merge(graphdef, params, rest)
        return network(points if network.takes_features else None, points)[:, 0]

    loss = lambda params: jnp.mean((values(params) - targets) ** 2)
    optimizer = optax.lbfgs()
    slope_of = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, slope = slope_of(params, state=state)
        change, state = optimizer.update(
            slope, state, params, value=value, grad=slope, value_fn=loss
        )
        return (optax.apply_updates(params, change), state), None

    fit = jax.jit(lambda start: jax.lax.scan(step, start, length=STEPS)[0][0])
    fitted = fit((params, optimizer.init(params)))
    rows = [values(params), values(fitted), targets]
    return np.stack([np.asarray(row).reshape(SIDE, SIDE) for row in rows])


def _draw_graphs(features: Num[np.ndarray, 'F n'], path: Path) -> None:
    figure, axes = new_figure(SIZE, len(features))
    for axis, values in zip(axes, features):
        for edge in EDGES:
            axis.plot(*PLACES[list(edge)].T, color='0.7', linewidth=0.6, zorder=1)
        axis.scatter(*PLACES.T, c=values, cmap='viridis', s=14, zorder=2, clip_on=False)
        axis.set(aspect='equal')
        axis.set_axis_off()
    disk.save_figure(figure, path, dpi=DPI)


def _draw_squares(squares: Shaped[np.ndarray, 'S side side'], path: Path) -> None:
    figure, axes = new_figure(SIZE, 2)
    for axis, values in zip(axes, squares):
        axis.imshow(values, cmap='viridis', interpolation='nearest')
        axis.set_axis_off()
    disk.save_figure(figure, path, dpi=DPI)
