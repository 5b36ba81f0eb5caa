"""What tasks on graphs have in common: nodes as vectors, their edges, and classes to predict."""

import abc
import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.core.registry import SpecError
from posenc_jax.graph.encoder import (
    GraphEncoder,
    JoinedGraphFeatures,
    feature_scale,
    make_graph_features,
)
from posenc_jax.tasks.class_task import ClassTask, class_targets
from posenc_jax.tasks.graphs.padded import pad_graphs, pad_nodes
from posenc_jax.tasks.task import Batch, Length, batch_rng, length_range

Graph = Bool[np.ndarray, 'n n']
SCALE_GRAPHS = 64  # whose features give the scale of a task


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphTask(ClassTask):
    """A distribution of graphs with a class for each graph or each node.

    A batch has `vectors` [B, N, F], whose columns are a 1 and the features of `features`, the
    `adjacency` [B, N, N], and `valid`, which is False on the padding of smaller graphs. The task
    length counts nodes, unless a task says otherwise. A subclass draws graphs in `graphs`.

    Features are standardised: of each, the mean over all nodes of 64 training graphs is subtracted,
    and the result is divided by the standard deviation (`feature_scale`). These graphs are the same
    for all seeds, splits and task lengths. Features of an encoder that draws from a generator
    (`rfp`, and `lap_pe` with random signs) are left as they are drawn, as their scale is known.

    Args:
      features: spec string of encoders of graphs, e.g. 'lcp() | rwse(steps=16)'; '' is none. They
        are computed on the host. What is random in them is drawn anew for every graph of training,
        and by the rule of evaluation in validation and test data.
      fresh: whether the rule of training holds.

    Raises:
      SpecError: a spec string that is wrong, an encoder with several draws.
    """

    features: str = ''
    fresh: bool = True

    def __post_init__(self):
        encoder = self.encoder
        if encoder is not None and encoder.draws > 1:
            raise SpecError(
                f'{self.features}: graph tasks read one draw, got draws={encoder.draws}; use '
                'draws=1: training draws anew for every graph of every batch, and several draws of '
                'one graph are those of `encode_draws`, over which you average the logits'
            )

    @functools.cached_property
    def encoder(self) -> GraphEncoder | None:
        """The encoder of `features`."""
        return make_graph_features(self.features) if self.features else None

    @property
    def channels(self) -> int:
        return 1 + (0 if self.encoder is None else self.encoder.width)

    @abc.abstractmethod
    def graphs(
        self, rng: np.random.Generator, batch: int, low: int, high: int
    ) -> tuple[list[Graph], list[Int[np.ndarray, '...']]]:
        """Graphs of task lengths low .. high, and the class of each, or of each of its nodes."""

    @abc.abstractmethod
    def scale_graphs(self, rng: np.random.Generator, count: int) -> list[Graph]:
        """The training graphs whose features give the scale of all of them."""

    def for_evaluation(self) -> 'GraphTask':
        return dataclasses.replace(self, fresh=False)

    def range_of(self, length: Length) -> tuple[int, int]:
        """The task length as an inclusive range.

        Raises:
          ValueError: a length that the task does not have.
        """
        return length_range(length, 1, 'number of nodes')

    def width(self, length: Length) -> int:
        return self.range_of(length)[1]

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        graphs, classes = self.graphs(rng, batch, *self.range_of(length))
        encoder, drawn = self.encoder, rng if self.fresh else None
        mean, std = (0, 1) if encoder is None else _scale(dataclasses.replace(self, fresh=True))
        rows = []
        for graph in graphs:
            columns = [np.ones((len(graph), 1), np.float32)]
            if encoder is not None:
                columns.append((encoder.encode(graph, drawn) - mean) / std)
            rows.append(np.concatenate(columns, axis=1))
        width = self.width(length)
        padded = pad_graphs(graphs, rows, width)
        told = (
            class_targets(classes)
            if self.predicts == 'class'
            else {
                'targets': pad_nodes(classes, width).astype(np.int32),
                'loss_mask': padded['valid'].astype(np.float32),
            }
        )
        return {
            'vectors': padded['features'],
            'adjacency': padded['adjacency'].astype(np.float32),
            'valid': padded['valid'],
            **told,
        }


@functools.lru_cache(maxsize=16)
def _scale(task: GraphTask) -> tuple[Float[np.ndarray, 'F'], Float[np.ndarray, 'F']]:
    """The mean and the standard deviation of each feature of a task; 0 and 1 of random ones."""
    encoder = task.encoder
    parts = encoder.parts if isinstance(encoder, JoinedGraphFeatures) else (encoder,)
    graphs, scales = task.scale_graphs(batch_rng(0, 'train', 0), SCALE_GRAPHS), []
    for part in parts:
        if part.randomised:
            scales.append((np.zeros(part.width, np.float32), np.ones(part.width, np.float32)))
        else:
            scales.append(feature_scale([part.encode(graph) for graph in graphs]))
    mean, std = map(np.concatenate, zip(*scales))
    return mean, std
