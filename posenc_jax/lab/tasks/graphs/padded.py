"""Graphs of different sizes as one batch of arrays, with padding at the end."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from posenc_jax.features.graphs.adjacency import check_adjacency


def pad_nodes(
    values: Sequence[Shaped[np.ndarray, '...']], nodes: int, axis: int = 0
) -> Shaped[np.ndarray, '...']:
    """Values of the nodes of several graphs, which lie along `axis`, stacked, with zeros (False) up
    to `nodes`.

    Raises:
      ValueError: no graphs, a graph of more nodes, or other axes that differ.
    """
    if not len(values):
        raise ValueError('a batch needs at least one graph, got none')
    arrays = [np.asarray(value) for value in values]
    rest = lambda array: np.delete(array.shape, axis).tolist()
    for number, array in enumerate(arrays):
        if array.shape[axis] > nodes:
            raise ValueError(
                f'graph {number} has {array.shape[axis]} nodes, and the batch has room for {nodes}'
            )
        if rest(array) != rest(arrays[0]):
            raise ValueError(
                f'graph {number} has values of shape {array.shape}, graph 0 has '
                f'{arrays[0].shape}; all axes but {axis} must agree'
            )
    pads = [[(0, 0)] * array.ndim for array in arrays]
    for pad, array in zip(pads, arrays):
        pad[axis] = (0, nodes - array.shape[axis])
    return np.stack([np.pad(array, pad) for array, pad in zip(arrays, pads)])


def pad_pairs(
    pairs: Sequence[Mapping[str, Shaped[np.ndarray, '...']]], nodes: int
) -> dict[str, np.ndarray]:
    """Features of the pairs of nodes of several graphs (`GraphEncoder.pairs`) as arrays
    [B, nodes, nodes, ...], with zeros for padding. Errors are those of `pad_nodes`.
    """
    of_keys = {
        name: [pad_nodes([own[name]], nodes, axis=1)[0] for own in pairs] for name in pairs[0]
    }
    return {name: pad_nodes(arrays, nodes) for name, arrays in of_keys.items()}


def pad_graphs(
    graphs: Sequence[Shaped[np.ndarray, '_ _']],
    features: Sequence[Shaped[np.ndarray, '...']],
    nodes: int | None = None,
) -> dict[str, np.ndarray]:
    """A batch of B graphs of different sizes.

    Args:
      graphs: adjacencies [n, n].
      features: of the nodes of each graph, [n, F], or [draws, n, F] of `encode_draws`.
      nodes: N, the nodes of every row; those of the largest graph by default.

    Returns:
      'features' [B, N, F] (or [B, draws, N, F]) with the type of the features, 'adjacency' bool
      [B, N, N], and 'valid' bool [B, N], which is False on padding. Padding has features 0 and no
      edges.

    Raises:
      ValueError: no graphs, features that do not fit them, a graph of more than N nodes, or a
        matrix that is no adjacency, see `check_adjacency`.
    """
    if len(graphs) != len(features):
        raise ValueError(f'{len(graphs)} graphs, but features of {len(features)}')
    graphs = [_checked(number, graph) for number, graph in enumerate(graphs)]
    sizes = [len(graph) for graph in graphs]
    for number, (size, rows) in enumerate(zip(sizes, features)):
        if np.ndim(rows) < 2 or np.shape(rows)[-2] != size:
            raise ValueError(
                f'graph {number} has {size} nodes, but features of shape {np.shape(rows)}, '
                f'expected [.., {size}, F]'
            )
    n = max(sizes, default=0) if nodes is None else nodes
    rows = pad_nodes(features, n, axis=-2)
    adjacency = np.zeros((len(graphs), n, n), bool)
    for own, graph, size in zip(adjacency, graphs, sizes):
        own[:size, :size] = graph > 0
    valid = np.arange(n) < np.array(sizes)[:, None]
    return {'features': rows, 'adjacency': adjacency, 'valid': valid}


def _checked(number: int, graph: Shaped[np.ndarray, '...']) -> Float[np.ndarray, 'n n']:
    try:
        return check_adjacency(graph)
    except ValueError as error:
        raise ValueError(f'graph {number}: {error}') from None
