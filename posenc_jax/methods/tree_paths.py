"""Nodes of trees as positions: the branches on the way from a node up to the root.

Component l of a position is the branch, 1 .. n, of the step that leads down to the ancestor l
levels above the node; it is 0 from the root on. So the root is (0, 0, ...), its second child
(2, 0, ...), and that child's first child (1, 2, 0, ...). A token in front of a tree has negative
components alone. A path that is cut, which does not reach the root, has `CUT` added to its last
component, since only some encodings can use it.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.grids import on_grid
from posenc_jax.protocol.tokens import Tokens

CUT = 2**16  # larger than all branches
Numbers = Sequence[int] | Int[np.ndarray, 'L']


def tree_paths(
    parents: Numbers, branches: Numbers, levels: int, *, cut: bool = False
) -> Int[np.ndarray, 'L levels']:
    """The positions of the nodes of trees, int32, on the host.

    Args:
      parents: index of the parent of each node; -1 for a root.
      branches: which child of its parent each node is, 1 .. n, n < 2^16; that of a root is not
        read.
      levels: number of components, at least the depth of the trees.
      cut: keep the nearest steps of deeper nodes, marked by `CUT`, instead of refusing them.

    Raises:
      ValueError: a parent that is no node, a branch below 1 or beyond, or a node more than `levels`
        steps below its root.

    Example:
      >>> tree_paths([-1, 0, 0, 2], [0, 1, 2, 1], levels=3).tolist()
      [[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 2, 0]]
    """
    up, steps = (np.asarray(a, np.int32) for a in (parents, branches))
    if up.ndim != 1 or up.shape != steps.shape:
        raise ValueError(
            f'tree_paths: parents and branches must be lists of one length, got {up.shape} and '
            f'{steps.shape}'
        )
    if up.size and (up.min() < -1 or up.max() >= up.size):
        wrong = up.min() if up.min() < -1 else up.max()
        raise ValueError(f'tree_paths: parent {wrong} is not in -1 .. {up.size - 1}')
    if (bad := np.flatnonzero((up >= 0) & (steps < 1))).size:
        raise ValueError(
            f'tree_paths: branch {steps[bad[0]]} of node {bad[0]} must be at least 1, the first '
            'child'
        )
    if (bad := np.flatnonzero((up >= 0) & (steps >= CUT))).size:
        raise ValueError(
            f'tree_paths: branch {steps[bad[0]]} of node {bad[0]} must be below {CUT}, which marks '
            'paths that are cut'
        )
    paths, at = np.zeros((up.size, levels), np.int32), np.arange(up.size)
    for level in range(levels):
        below = (at >= 0) & (up[at] >= 0)
        paths[:, level] = np.where(below, steps[at], 0)
        at = np.where(below, up[at], -1)
    deeper = np.flatnonzero((at >= 0) & (up[at] >= 0))
    if deeper.size and not cut:
        raise ValueError(
            f'tree_paths: node {deeper[0]} is more than levels={levels} steps below its root; give '
            'more levels, or cut=True, which keeps the nearest steps'
        )
    paths[deeper, -1] += CUT
    return paths


def complete_tree(nodes: int, branches: int, levels: int) -> Int[np.ndarray, 'nodes levels']:
    """The positions of the first nodes of a tree in which every node has all its children, level by
    level.

    Raises:
      ValueError: a tree of so many levels has fewer nodes.

    Example:
      >>> complete_tree(4, 2, levels=2).tolist()
      [[0, 0], [1, 0], [2, 0], [1, 1]]
    """
    up = np.arange(-1, nodes - 1)
    return tree_paths(up // branches, up % branches + 1, levels)


def read_paths(
    user: str, tok: Tokens, branches: int, levels: int, *, cut: bool = False
) -> tuple[Int[Array, '#B L levels'], Bool[Array, '#B L']]:
    """The paths of tokens, zeros for those in front of a tree, and which are paths. Those that are
    none, which is an error where they are known, get NaN from the caller.

    Args:
      cut: whether paths that are cut are read, without their mark, or are no paths.

    Raises:
      ValueError: positions that are not integers [B, L, levels]; where they are known, a branch
        beyond 1 .. branches, or a 0 in front of a branch.
    """
    pos = tok.pos
    if pos.ndim != 3 or pos.shape[2] != levels or not jnp.issubdtype(pos.dtype, jnp.integer):
        raise ValueError(
            f'{user} needs integer positions [B, L, {levels}], the branches from a node up to the '
            f'root, got {pos.dtype} {pos.shape}; tree_paths(..., levels={levels}) makes them'
        )
    paths = jnp.where(on_grid(pos)[..., None], pos, 0).astype(jnp.int32)
    marked = paths[..., -1] > CUT
    paths = paths.at[..., -1].add(jnp.where(marked, -CUT, 0))
    inside = ((paths >= 0) & (paths <= branches)).all(-1)
    inside = inside if cut else inside & ~marked
    whole = inside & ~((paths[..., :-1] == 0) & (paths[..., 1:] != 0)).any(-1)
    real = whole if tok.valid is None else whole | ~tok.valid
    if not isinstance(real, Tracer) and not (known := np.asarray(real)).all():
        row, column = np.argwhere(~known)[0]
        found = np.asarray(jnp.broadcast_to(pos, (*known.shape, levels)))[row, column].tolist()
        raise ValueError(
            f'{user}: {found} is no path in a tree of {branches} branches; expected branches 1 .. '
            f'{branches} from the node up to the root, and then zeros'
            + ('' if cut else '; one that tree_paths has cut needs more levels')
        )
    return paths, real


def root_first(paths: Int[Array, '#B L levels']) -> Int[Array, '#B L levels']:
    """The same branches from the root down to the node, then zeros.

    Example:
      >>> root_first(jnp.array([[[1, 2, 0]]])).tolist()
      [[[2, 1, 0]]]
    """
    steps = (paths > 0).sum(-1, keepdims=True)
    place = steps - 1 - jnp.arange(paths.shape[-1])
    found = jnp.take_along_axis(paths, jnp.maximum(place, 0), axis=-1)
    return jnp.where(place >= 0, found, 0)


def tree_steps(a: Int[Array, '#B T levels'], b: Int[Array, '#B S levels']) -> Int[Array, '#B T S']:
    """Number of steps between nodes, through their nearest common ancestor, from paths that are
    written root first.

    Example:
      >>> tree_steps(jnp.array([[[2, 1]]]), jnp.array([[[0, 0], [2, 0], [2, 2], [1, 0]]])).tolist()
      [[[2, 1, 2, 3]]]
    """
    shared, alike = jnp.int32(0), jnp.bool_(True)
    for level in range(a.shape[-1]):
        own, other = a[:, :, None, level], b[:, None, :, level]
        alike = alike & (own == other) & (own > 0)
        shared = shared + alike.astype(jnp.int32)
    deep = lambda paths: (paths > 0).sum(-1)
    return deep(a)[:, :, None] + deep(b)[:, None] - 2 * shared
