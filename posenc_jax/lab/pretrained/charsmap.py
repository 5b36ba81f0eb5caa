"""Checks the character map of SentencePiece: a trie of bytes whose leaves point to texts."""

import base64
import binascii

import numpy as np

from posenc_jax.lab.pretrained.fields import PretrainedError


def longest(charsmap: str, where: object, field: str) -> int:
    """The number of bytes of the longest text by which a character map replaces a character.

    The trie is an array of 32-bit units. The child of the node at `position` for a byte is at
    `position ^ offset ^ byte`, if the low bits of the unit there are this byte. If a node has a
    leaf, the unit at `position ^ offset` holds the index of its text.

    Args:
      charsmap: the size of the trie in 4 bytes, the trie and the texts, encoded in base64.
      where: name of the file, for error messages.
      field: name of the field, for error messages.

    Raises:
      PretrainedError: the data is damaged, or part of it points outside.
    """

    def damaged(why):
        return PretrainedError(f'{where}: {field} is damaged: {why}')

    try:
        data = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError) as error:
        raise damaged(f'not base64: {error}') from None
    size = int.from_bytes(data[:4], 'little')
    if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
        raise damaged(
            f'its trie would have {size} bytes, expected a multiple of 4 up to '
            f'{max(len(data) - 4, 4)}'
        )
    units, texts = (
        np.frombuffer(data, '<u4', size // 4, offset=4).astype(np.int64),
        data[4 + size :],
    )
    try:
        texts.decode()
    except UnicodeDecodeError as error:
        raise damaged(f'its texts are not UTF-8: {error.reason}') from None
    offsets = (units >> 10) << ((units & 512) >> 6)
    labels, leaves = units & (1 << 31 | 255), (units >> 8 & 1).astype(bool)
    bytes_, visited = np.arange(1, 256), np.zeros(len(units), bool)
    nodes, ends = np.zeros(1, np.int64), []  # all nodes of one depth, beginning with the root
    while len(nodes):
        visited[nodes] = True
        bases = nodes ^ offsets[nodes]
        if (bases | 255).max() >= len(units):
            raise damaged(f'its trie points to unit {(bases | 255).max()} of {len(units)}')
        ends.append(bases[leaves[nodes]])
        children = bases[:, None] ^ bytes_
        children = np.unique(children[labels[children] == bytes_])
        nodes = children[~visited[children]]
    ends = units[np.concatenate(ends)] & (2**31 - 1)
    if len(ends) and ends.max() > len(texts):
        raise damaged(f'its trie points to byte {ends.max()} of {len(texts)} bytes of texts')
    starts = np.unique(ends[ends < len(texts)])
    if any(texts[start] & 0xC0 == 0x80 for start in starts):
        raise damaged('its trie points into the middle of a character')
    stops = np.append(np.flatnonzero(np.frombuffer(texts, np.uint8) == 0), len(texts))
    return int((stops[np.searchsorted(stops, starts)] - starts).max(initial=0))
