"""The base class of tasks on graphs: nodes as vectors, their edges, and classes to predict."""

import abc
import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.features.graphs.encoder import (
    GraphEncoder,
    JoinedGraphFeatures,
    feature_scale,
    make_graph_features,
)
from posenc_jax.lab.tasks.class_task import ClassTask, class_targets
from posenc_jax.lab.tasks.graphs.padded import pad_graphs, pad_nodes, pad_pairs
from posenc_jax.lab.tasks.task import Batch, Length, batch_rng

Graph = Bool[np.ndarray, 'n n']
SCALE_GRAPHS = 64  # whose features give the scale of a task


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphTask(ClassTask):
    """A distribution of graphs with a class for each graph or each node.

    A batch has `vectors` [B, N, F], whose columns are a 1 and the features of `features`, the
    `adjacency` [B, N, N], and `valid`, which is False on the padding of smaller graphs. With an
    encoder of R > 1 draws they are [B, R, N, F], and a model averages its logits over the draws.
    Features of pairs of nodes, of an encoder that has them, are arrays [B, N, N, ...].
    The task length counts nodes, unless a task says otherwise. A subclass draws graphs in `graphs`.

    Features are standardised: of each, the mean over all nodes of 64 training graphs is subtracted,
    and the result is divided by the standard deviation (`feature_scale`). These graphs are the same
    for all seeds, splits and task lengths. Features of an encoder that draws from a generator
    (`rfp`, and `lap_pe` with random signs) are left as they are drawn, as their scale is known. So
    are those of pairs, and those that a network reads as they are (`signnet`, `pearl`).

    Args:
      features: spec string of encoders of graphs, e.g. 'lcp() | rwse(steps=16)'; '' is none. They
        are computed on the host. What is random in them is drawn anew for every graph of training,
        and by the rule of evaluation in validation and test data.
      fresh: whether the rule of training holds.

    Raises:
      SpecError: a spec string that is wrong.
    """

    features: str = ''
    fresh: bool = True

    counted = 'number of nodes'

    def __post_init__(self):
        self.encoder  # noqa: B018  (raises for a spec string that is wrong)

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

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        graphs, classes = self.graphs(rng, batch, *self.range(length))
        encoder, drawn = self.encoder, rng if self.fresh else None
        mean, std = (0, 1) if encoder is None else _scale(dataclasses.replace(self, fresh=True))
        rows = []
        for graph in graphs:
            row = np.ones((1, len(graph), 1), np.float32)
            if encoder is not None:
                features = (encoder.encode_draws(graph, drawn) - mean) / std
                row = np.concatenate([np.repeat(row, encoder.draws, axis=0), features], axis=-1)
            rows.append(row)
        width = self.width(length)
        padded = pad_graphs(graphs, rows, width)
        vectors = padded['features']
        told = (
            class_targets(classes)
            if self.predicts == 'class'
            else {
                'targets': pad_nodes(classes, width).astype(np.int32),
                'loss_mask': padded['valid'].astype(np.float32),
            }
        )
        return {
            'vectors': vectors if vectors.shape[1] > 1 else vectors[:, 0],
            'adjacency': padded['adjacency'].astype(np.float32),
            'valid': padded['valid'],
            **({} if encoder is None else pad_pairs(list(map(encoder.pairs, graphs)), width)),
            **told,
        }


@functools.lru_cache(maxsize=16)
def _scale(task: GraphTask) -> tuple[Float[np.ndarray, 'F'], Float[np.ndarray, 'F']]:
    """The mean and the standard deviation of each feature of a task; 0 and 1 of those that stay."""
    encoder = task.encoder
    parts = encoder.parts if isinstance(encoder, JoinedGraphFeatures) else (encoder,)
    graphs, scales = task.scale_graphs(batch_rng(0, 'train', 0), SCALE_GRAPHS), []
    for part in parts:
        if part.randomised or not part.standardised:
            scales.append((np.zeros(part.width, np.float32), np.ones(part.width, np.float32)))
        else:
            scales.append(feature_scale([part.encode(graph) for graph in graphs]))
    mean, std = map(np.concatenate, zip(*scales))
    return mean, std
