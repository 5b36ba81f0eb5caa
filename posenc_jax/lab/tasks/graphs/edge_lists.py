"""A user's own graphs: a folder of edge lists, and labels of graphs or of their nodes."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.base.memory import check_data
from posenc_jax.base.programs import printable
from posenc_jax.lab.tasks.language.documents import as_text
from posenc_jax.protocol.errors import nearest, quoted

MAX_NODES = 2**14  # a dense adjacency of 256 MiB
PARSED = 32  # bytes of memory for a byte of a list, while it is read
BATCH = 13  # bytes of a pair of nodes in a batch: 8 where it is checked, 1 as bool, 4 as float32
LABELS, NODES = 'labels.txt', 'nodes.txt'  # of graphs, of nodes


@dataclasses.dataclass(frozen=True)
class EdgeList:
    """A graph that was read from a file.

    Attributes:
      name: of the file, without its ending.
      adjacency: which nodes are joined.
      ids: the id of each node in the file, ascending.
      label: a class (int) or a value (float), or None.
      classes: of each node, or None.
    """

    name: str
    adjacency: Bool[np.ndarray, 'n n']
    ids: Int[np.ndarray, 'n']
    label: int | float | None = None
    classes: Int[np.ndarray, 'n'] | None = None


def _lines(path: pathlib.Path, expected: str = '') -> Iterator[tuple[str, list[str]]]:
    """Where the lines stand that are neither empty nor comments, and their words, of which there
    are as many as in `expected`, if it is given.
    """
    size, name = path.stat().st_size, printable(path)
    check_data(f'{name} of {size} bytes', PARSED * size, 'give smaller graphs')
    text = as_text(path.read_bytes(), name).decode()
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.split('#')[0].split():
            where = f'{name}, line {number}'
            if expected and len(words) != len(expected.split()):
                raise ValueError(f'{where}: {len(words)} words, expected "{expected}"')
            yield where, words


def _check_whole(where: str, word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 18):
        raise ValueError(
            f'{where}: {quoted(word)} is no {what}, expected a whole number, 0 or larger, of at '
            'most 18 digits'
        )
    return int(word)


def read_edge_list(path: str | pathlib.Path) -> EdgeList:
    """Reads a graph from a text file with an edge `u v` a line.

    Node ids are whole numbers, of which any may be missing; a line with one id is a node that may
    have no edge. An edge may be listed once in each direction, and not twice in one. `#` begins a
    comment.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file that is not text, is too large for `base.memory.check_data`, or has no
        nodes or more than `MAX_NODES`; a line that is no edge and no node, a node joined to itself,
        or a repeated edge. The message begins with the file and the line.
    """
    return _with_adjacency(*_parsed(pathlib.Path(path)))


def _parsed(path: pathlib.Path) -> tuple[str, Int[np.ndarray, 'n'], Int[np.ndarray, 'edges 2']]:
    """The name of a graph, the ids of its nodes, and its edges as places in them."""
    lines: dict[tuple[int, ...], str] = {}  # of each edge or node
    for where, words in _lines(path):
        if len(words) > 2:
            raise ValueError(
                f'{where}: {len(words)} words, expected an edge "u v", or one node: '
                f'{quoted(" ".join(words))}'
            )
        edge = tuple(_check_whole(where, word, 'node id') for word in words)
        if len(edge) == 2 and edge[0] == edge[1]:
            raise ValueError(f'{where}: node {edge[0]} is joined to itself')
        if len(edge) == 2 and edge in lines:
            first = lines[edge].rpartition(' ')[2]
            raise ValueError(f'{where}: the edge {edge[0]} {edge[1]} is also in line {first}')
        lines[edge] = where
    ids = sorted({node for edge in lines for node in edge})
    if not ids:
        raise ValueError(f'{printable(path)} has no nodes; expected an edge "u v" a line')
    if len(ids) > MAX_NODES:
        raise ValueError(
            f'{printable(path)} has {len(ids)} nodes; at most {MAX_NODES} are accepted'
        )
    ids, edges = np.array(ids, np.int64), [edge for edge in lines if len(edge) == 2]
    return path.stem, ids, np.searchsorted(ids, np.array(edges, np.int64).reshape(-1, 2))


def _with_adjacency(name: str, ids: np.ndarray, edges: np.ndarray) -> EdgeList:
    adjacency = np.zeros((len(ids), len(ids)), bool)
    adjacency[edges[:, 0], edges[:, 1]] = adjacency[edges[:, 1], edges[:, 0]] = True
    return EdgeList(name, adjacency, ids)


def read_labels(path: str | pathlib.Path) -> dict[str, int | float]:
    """Reads the labels of graphs from a text file with `name label` a line: classes, int, if all
    are whole numbers of at least 0, else values, float.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line of other than two words, a label that is no finite number, or a second
        label of a graph. The message begins with the file and the line.
    """
    texts: dict[str, str] = {}
    for where, (name, label) in _lines(pathlib.Path(path), 'name label'):
        try:
            finite = np.isfinite(float(label))
        except ValueError:
            finite = False
        if not finite:
            raise ValueError(f'{where}: the label {quoted(label)} is no finite number')
        if name in texts:
            raise ValueError(f'{where}: a second label of {quoted(name)}')
        texts[name] = label
    whole = all(text.isascii() and text.isdigit() for text in texts.values())
    return {name: int(text) if whole else float(text) for name, text in texts.items()}


def read_node_classes(path: str | pathlib.Path) -> dict[str, dict[int, int]]:
    """Reads the classes of nodes from a text file with `graph node class` a line, as name of the
    graph -> id of the node -> class. Errors are those of `read_labels`.
    """
    found = {}
    for where, words in _lines(pathlib.Path(path), 'graph node class'):
        node, label = (
            _check_whole(where, word, what) for word, what in zip(words[1:], ('node id', 'class'))
        )
        own = found.setdefault(words[0], {})
        if node in own:
            raise ValueError(f'{where}: a second class of node {node} of {quoted(words[0])}')
        own[node] = label
    return found


def read_graphs(folder: str | pathlib.Path, labels: str | None = None) -> list[EdgeList]:
    """Reads the graphs of a folder, the files `*.txt` in the order of their names, with dense
    adjacencies; what they take together is known before the first of them is made.

    A file `nodes.txt` has the classes of all nodes of all graphs, see `read_node_classes`.

    Args:
      folder: of edge lists, see `read_edge_list`.
      labels: name of the file of labels in it, see `read_labels`. By default `labels.txt` if there
        is one, else graphs have no labels.

    Raises:
      FileNotFoundError: no such folder, no graphs in it, or no such file of labels.
      ValueError: a file that is wrong, graphs that are together too large for
        `base.memory.check_data`, or a graph, node or label without its counterpart.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f'there is no folder {printable(folder)}; expected one of edge lists'
        )
    table = folder / (LABELS if labels is None else labels)
    if labels is not None and not table.is_file():
        raise FileNotFoundError(
            f'there is no file {printable(table)}; expected "name label" a line'
        )
    beside = (table, folder / NODES)
    paths = sorted(path for path in folder.glob('*.txt') if path.is_file() and path not in beside)
    if not paths:
        raise FileNotFoundError(f'{printable(folder)} has no edge lists; expected files *.txt')
    parsed = [_parsed(path) for path in paths]
    pairs = [len(ids) ** 2 for _, ids, _ in parsed]
    check_data(
        f'{printable(folder)}: {len(paths)} graphs of up to {math.isqrt(max(pairs))} nodes',
        sum(pairs) + BATCH * max(pairs),
        'give fewer or smaller graphs',
    )
    graphs = [_with_adjacency(*graph) for graph in parsed]
    if table.is_file():
        labelled = read_labels(table)
        _check_names(table, labelled, graphs)
        graphs = [dataclasses.replace(graph, label=labelled[graph.name]) for graph in graphs]
    if (folder / NODES).is_file():
        of_nodes = read_node_classes(folder / NODES)
        _check_names(folder / NODES, of_nodes, graphs)
        graphs = [_with_classes(folder / NODES, graph, of_nodes[graph.name]) for graph in graphs]
    return graphs


def _check_names(table: pathlib.Path, found: dict[str, Any], graphs: list[EdgeList]) -> None:
    where, names = printable(table), [graph.name for graph in graphs]
    for name in found:
        if name not in names:
            near = nearest(name, names)
            raise ValueError(f'{where}: {quoted(name)} is no graph of the folder; {near}')
    for name in names:
        if name not in found:
            raise ValueError(f'{where}: the graph {quoted(name)} has no label')


def _with_classes(table: pathlib.Path, graph: EdgeList, classes: dict[int, int]) -> EdgeList:
    where, ids = printable(table), graph.ids.tolist()
    for node in classes:
        if node not in ids:
            raise ValueError(f'{where}: the graph {quoted(graph.name)} has no node {node}')
    for node in ids:
        if node not in classes:
            raise ValueError(f'{where}: node {node} of the graph {quoted(graph.name)} has no class')
    return dataclasses.replace(graph, classes=np.array([classes[node] for node in ids]))
