"""Packing of whole documents into rows, kept apart by segment ids."""

import bisect
import dataclasses

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import Batch


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """A plan of rows of `length` inputs from a stream of tokens.

    Row r holds the pieces `order[bounds[r]:bounds[r + 1]]`. Piece p holds `sizes[p]` inputs, which
    begin at index `starts[p]` of the stream.
    """

    stream: Int[np.ndarray, ' N']
    starts: Int[np.ndarray, ' pieces']
    sizes: Int[np.ndarray, ' pieces']
    order: Int[np.ndarray, ' pieces']
    bounds: Int[np.ndarray, ' ends']
    length: int

    @property
    def rows(self) -> int:
        return len(self.bounds) - 1


def pack_documents(documents: list[Int[np.ndarray, ' _']], length: int) -> PackedRows:
    """Cuts documents into pieces of at most `length` inputs and packs these into rows, best fit
    decreasing.

    Every token of a document but its first is a target exactly once; no target crosses from one
    document to the next.
    """
    sizes = np.array([len(document) for document in documents])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    starts, counts = [], []
    for begin, targets in zip(first, sizes - 1):
        offsets = np.arange(0, targets, length)
        starts.append(begin + offsets)
        counts.append(np.minimum(length, targets - offsets))
    starts, counts = np.concatenate(starts), np.concatenate(counts)
    rows = best_fit_decreasing(counts, length)
    bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return PackedRows(
        np.concatenate(documents), starts, counts, np.concatenate(rows), bounds, length
    )


def best_fit_decreasing(sizes: Int[np.ndarray, ' pieces'], capacity: int) -> list[list[int]]:
    """The pieces of each row: from large to small, each goes to the fullest row that has room."""
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # free space -> rows that have it
    spaces: list[int] = []  # the keys of with_space, ascending
    for piece in np.argsort(-sizes, kind='stable').tolist():
        size = int(sizes[piece])
        place = bisect.bisect_left(spaces, size)
        if place < len(spaces):
            space = spaces[place]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[place]
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        if left := space - size:
            if left not in with_space:
                with_space[left] = []
                bisect.insort(spaces, left)
            with_space[left].append(row)
    return rows


def packed_batch(packed: PackedRows, numbers: Int[np.ndarray, ' B']) -> Batch:
    """The rows with these numbers; a number beyond the last row gives a row of padding.

    Segments count from 1 in each row, and padding has segment 0.
    """
    batch, length = len(numbers), packed.length
    inside = numbers < packed.rows
    begin = np.where(inside, packed.bounds[np.where(inside, numbers, 0)], 0)
    pieces_in_row = np.where(inside, packed.bounds[np.where(inside, numbers, 0) + 1], 0) - begin
    row = np.repeat(np.arange(batch), pieces_in_row)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(pieces_in_row) - pieces_in_row, pieces_in_row)
    piece = packed.order[begin[row] + rank]
    sizes = packed.sizes[piece]
    written = np.cumsum(sizes) - sizes  # tokens before this piece, over all rows
    row_start = np.concatenate(
        [[0], np.cumsum(np.bincount(row, weights=sizes, minlength=batch).astype(np.int64))]
    )[row]
    step = np.arange(sizes.sum()) - np.repeat(written, sizes)
    source = np.repeat(packed.starts[piece], sizes) + step
    at = np.repeat(row, sizes), np.repeat(written - row_start, sizes) + step

    out = {name: np.zeros((batch, length), np.int32) for name in ('tokens', 'targets', 'segment')}
    out['tokens'][at] = packed.stream[source]
    out['targets'][at] = packed.stream[source + 1]
    out['segment'][at] = np.repeat(rank + 1, sizes)
    out['loss_mask'] = (out['segment'] > 0).astype(np.float32)
    return out
