"""The tasks on graphs: pairs that look alike, triangles, communities, and a user's own graphs."""

import abc
import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np

from posenc_jax.base.programs import printable
from posenc_jax.lab.tasks.class_task import split_numbers
from posenc_jax.lab.tasks.graphs.edge_lists import MAX_NODES, NODES, EdgeList, read_graphs
from posenc_jax.lab.tasks.graphs.graph_task import GraphTask
from posenc_jax.lab.tasks.graphs.named import (
    BLIND_PAIRS,
    Graph,
    blind_pair,
    circulant,
    disjoint,
    relabelled,
)
from posenc_jax.lab.tasks.graphs.random_graphs import (
    community_samples,
    node_triangles,
    random_regular,
)
from posenc_jax.lab.tasks.task import SPLITS, Length, Reader
from posenc_jax.protocol.bounds import Ge, Share, Size
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

MAX_CLASSES = 2**16  # of the graphs or nodes of a user
SKIP_NODES, SKIPS = 41, (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)


class KnownGraphs(GraphTask):
    """Which of a few graphs is it? Colour refinement (1-WL), and so a graph network without
    features of position, cannot tell. The task length k is the number of copies of the graph, which
    are not joined, in a random order of all nodes.
    """

    counted = 'number of copies of a graph'

    @property
    @abc.abstractmethod
    def known(self) -> tuple[Graph, ...]:
        """The graph of each class."""

    @property
    def output_size(self) -> int:
        return len(self.known)

    def longest(self, length):
        return length * max(map(len, self.known))

    def scale_graphs(self, rng, count):
        return self.graphs(rng, count, 1, 1)[0]

    def graphs(self, rng, batch, low, high):
        known, labels = self.known, rng.integers(0, self.output_size, batch)
        counts = rng.integers(low, high, batch, endpoint=True)
        copies = [disjoint(*[known[label]] * count) for label, count in zip(labels, counts)]
        return [relabelled(rng, graph) for graph in copies], list(labels)


@register('blind_pairs', kind='task')
@dataclasses.dataclass(frozen=True)
class BlindPairs(KnownGraphs):
    """Which of two graphs is it? `KnownGraphs` says what the task length counts.

    Args:
      pair: see `posenc_jax.lab.tasks.graphs.blind_pair`.

    Example:
      >>> task = BlindPairs('triangles_hexagon', features='rwse(steps=3)')
      >>> batch = task.sample(np.random.default_rng(3), batch=2, length=1)
      >>> batch['targets'].tolist(), batch['vectors'][:, 0, 3].astype(float).round(2).tolist()
      ([[1], [0]], [-1.21, 0.83])
    """

    pair: Literal[*BLIND_PAIRS] = 'rook_shrikhande'

    @property
    def known(self):
        return blind_pair(self.pair)


@register('skip_links', kind='task')
@dataclasses.dataclass(frozen=True)
class SkipLinks(KnownGraphs):
    """Which of the ten circular skip link graphs of 41 nodes is it? In each, the nodes of a circle
    are also joined to those at one further distance along it, the class. Any other distance gives
    one of these graphs in another order. `KnownGraphs` says what the task length counts.

    Reference: Murphy, Srinivasan, Rao, Ribeiro, arXiv 1903.02541.

    Example:
      >>> batch = SkipLinks().sample(np.random.default_rng(0), batch=2, length=1)
      >>> batch['adjacency'].shape, batch['targets'].tolist()
      ((2, 41, 41), [[8], [6]])
    """

    @functools.cached_property
    def known(self):
        return tuple(circulant(SKIP_NODES, (1, skip)) for skip in SKIPS)


@register('triangles', kind='task')
@dataclasses.dataclass(frozen=True)
class Triangles(GraphTask):
    """How many triangles each node of a random regular graph is in. All nodes look alike to colour
    refinement (1-WL), so this needs features of position.

    Args:
      degree: of every node.
      most: counts from here on are one class, so there are `most + 1` classes.
      by_graph: predict the count of the whole graph and not that of each node.

    Example:
      >>> batch = Triangles(degree=4).sample(np.random.default_rng(0), batch=1, length=8)
      >>> batch['targets'].tolist()
      [[3, 3, 3, 3, 2, 2, 3, 2]]
    """

    degree: Size = 4
    most: Size = 3
    by_graph: bool = False

    @property
    def predicts(self) -> Literal['here', 'class']:
        return 'class' if self.by_graph else 'here'

    @property
    def output_size(self) -> int:
        return self.most + 1

    @property
    def shortest(self):
        return self.degree + 1

    def range(self, length):
        low, high = super().range(length)
        if self.degree % 2 and (low % 2 or high % 2):
            raise ValueError(
                f'graphs of degree {self.degree} have an even number of nodes, got {length!r}; '
                f'nearest: {(low + low % 2, high + high % 2)}'
            )
        return low, high

    def scale_graphs(self, rng, count):
        nodes = 4 * (self.degree + 1)
        return self.graphs(rng, count, nodes, nodes)[0]

    def graphs(self, rng, batch, low, high):
        step = 1 + self.degree % 2
        sizes = low + step * rng.integers(0, (high - low) // step, batch, endpoint=True)
        graphs = [random_regular(rng, int(size), self.degree) for size in sizes]
        counts = [node_triangles(graph) for graph in graphs]
        if self.by_graph:
            return graphs, [min(int(count.sum()) // 3, self.most) for count in counts]
        return graphs, [np.minimum(count, self.most) for count in counts]


@register('communities', kind='task')
@dataclasses.dataclass(frozen=True)
class Communities(GraphTask):
    """Does a graph have communities, or the same degrees and no communities? The task length counts
    nodes, of which each community has an equal share.

    Args:
      groups: number of communities.
      inside, between: probability of an edge within a community, and between two.

    Example:
      >>> batch = Communities().sample(np.random.default_rng(0), batch=2, length=16)
      >>> batch['vectors'].shape, batch['targets'].ravel().tolist()
      ((2, 16, 1), [1, 1])
    """

    groups: Annotated[int, Ge(2)] = 2
    inside: Share = 0.6
    between: Share = 0.1

    output_size = 2

    @property
    def shortest(self):
        return 2 * self.groups

    def range(self, length):
        low, high = super().range(length)
        if low % self.groups or high % self.groups:
            nearest = tuple(round(n / self.groups) * self.groups for n in (low, high))
            raise ValueError(
                f'{length!r} nodes cannot be shared by {self.groups} groups; nearest: {nearest}'
            )
        return low, high

    def scale_graphs(self, rng, count):
        return self.graphs(rng, count, 8 * self.groups, 8 * self.groups)[0]

    def graphs(self, rng, batch, low, high):
        sizes = rng.integers(low // self.groups, high // self.groups, batch, endpoint=True)
        return community_samples(rng, batch, self.groups, sizes, self.inside, self.between)


@functools.lru_cache(maxsize=4)
def _read(folder: str) -> tuple[EdgeList, ...]:
    return tuple(read_graphs(folder))


@register('edge_lists', kind='task')
@dataclasses.dataclass(frozen=True)
class EdgeLists(GraphTask):
    """A user's own graphs, with a class for each, from a folder of edge lists (see
    `posenc_jax.lab.tasks.graphs.read_graphs`) with a file labels.txt, or nodes.txt for `by_node`.

    The task length is the number of nodes up to which graphs are drawn. A seventh of the graphs, at
    least one, is for test, as many for validation, and the rest for training (`split_numbers`).

    Args:
      folder: of the edge lists.
      part: the split of which `sample` draws; a data set reads its own.
      by_node: predict the class of each node and not that of the graph.

    Raises:
      FileNotFoundError, ValueError: a folder or file that is missing or wrong, with its name; fewer
        than three graphs.
      SpecError: graphs without labels that are whole numbers, or without classes
        of their nodes; a class of `MAX_CLASSES` or more.
    """

    folder: str = ''
    part: Literal[*SPLITS] = 'train'
    by_node: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.folder:
            raise SpecError("edge_lists needs a folder, e.g. edge_lists(folder='molecules')")
        for graph in _read(self.folder):
            if self.by_node and graph.classes is None:
                raise SpecError(
                    f'{self._where}: by_node=True needs a file {NODES} with "graph node class" a '
                    'line'
                )
            if not self.by_node and not isinstance(graph.label, int):
                raise SpecError(
                    f'{self._where}: the label of graph {graph.name!r} must be a whole number of '
                    f'at least 0, its class, got {graph.label!r}'
                )
        if self.output_size > MAX_CLASSES:
            raise SpecError(
                f'{self._where} has the class {self.output_size - 1}; a model has one output for '
                f'each class from 0 on, and at most {MAX_CLASSES}: number the classes anew'
            )
        self.numbers  # noqa: B018  (raises for too few graphs)

    @functools.cached_property
    def numbers(self) -> list[int]:
        """The numbers of the graphs of the part, in the order of their names."""
        count = len(_read(self.folder))
        return split_numbers(count, self.part, f'graphs in {self._where}').tolist()

    @property
    def predicts(self) -> Literal['here', 'class']:
        return 'here' if self.by_node else 'class'

    @property
    def output_size(self) -> int:
        return 1 + max(int(np.max(self._classes(graph))) for graph in _read(self.folder))

    @property
    def _where(self) -> str:
        return printable(self.folder)

    def _classes(self, graph: EdgeList):
        return graph.classes if self.by_node else graph.label

    def of_split(self, split):
        return dataclasses.replace(super().of_split(split), part=split)

    def reader(self, split: str, length: Length) -> Reader:
        self.known(*self.range(length))
        return super().reader(split, length)

    def known(self, low: int, high: int) -> list[EdgeList]:
        """The graphs of the part with `low` to `high` nodes.

        Raises:
          ValueError: there are none.
        """
        own = [_read(self.folder)[number] for number in self.numbers]
        found = [graph for graph in own if low <= len(graph.adjacency) <= high]
        if not found:
            sizes = [len(graph.adjacency) for graph in own]
            raise ValueError(
                f'{self._where} has no graphs of {low} to {high} nodes in the {self.part} split, '
                f'whose graphs have {min(sizes)} to {max(sizes)}'
            )
        return found

    def scale_graphs(self, rng, count):
        return dataclasses.replace(self, part='train').graphs(rng, count, 1, MAX_NODES)[0]

    def graphs(self, rng, batch, low, high):
        known = self.known(low, high)
        drawn = [known[i] for i in rng.integers(0, len(known), batch)]
        return [graph.adjacency for graph in drawn], [self._classes(graph) for graph in drawn]
