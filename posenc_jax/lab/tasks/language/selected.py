"""Language tasks whose training rows are pieces of longer texts, with positions that the method
assigns: segmented sequences, and head, middle and tail of CREAM.
"""

import abc
import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.lab.tasks.task import Length, Reader, rows_of
from posenc_jax.methods.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from posenc_jax.methods.segmented_sequences import (
    check_chunks,
    check_prefix,
    segmented_sequences_chunk_ids,
    segmented_sequences_prefix_ids,
)
from posenc_jax.protocol.registry import register


class SelectedText(Language):
    """A language task whose training rows of N tokens are chosen from texts of `source(N)` tokens.

    Texts are random crops of the stream of all documents. A batch has the positions of the chosen
    tokens. The target of a token is the one that follows it in the text, so the target at the end
    of a piece is not the first token of the next piece. All targets are scored. Validation and test
    data are whole windows at plain positions.
    """

    supplies_positions = True

    @abc.abstractmethod
    def source(self, length: int) -> int:
        """The number of tokens of the text from which a row of `length` tokens is chosen.

        Raises:
          ValueError: nothing can be chosen for rows of this length.
        """

    @abc.abstractmethod
    def choose(
        self, rng: np.random.Generator, batch: int, length: int
    ) -> tuple[Int[np.ndarray, 'B N'], Int[np.ndarray, 'B N']]:
        """For each row the indices in its text of the chosen tokens, and their positions."""

    def width(self, length: Length) -> int:
        length = super().width(length)
        self.source(length)
        return length

    def reader(self, split: str, length: Length) -> Reader:
        length = self.width(length)
        stream = np.concatenate(self._documents(split, self.source(length)))
        return functools.partial(self._rows, stream, length)

    def _rows(self, stream, length, rng, batch_size, rows):
        offsets = rng.integers(0, len(stream) - self.source(length), batch_size)
        kept, positions = self.choose(rng, batch_size, length)
        at = offsets[:, None] + kept
        batch = {
            'tokens': stream[at].astype(np.int32),
            'targets': stream[at + 1].astype(np.int32),
            'loss_mask': np.ones(at.shape, np.float32),
            'positions': positions.astype(np.int32),
        }
        return rows_of(batch, rows)


@register('segmented_text', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class SegmentedText(SelectedText):
    """Language modelling whose training rows are pieces of texts of `source_len` tokens.

    A row holds whole segments of `segment_len` tokens ('chunk' mode), or `prefix_len` single tokens
    followed by a run of consecutive ones ('prefix' mode). Tokens keep their positions in the text.
    The paper does not publish how it samples; the two modes and their proportions are our choice.

    Args:
      source_len: number of tokens of a text, e.g. 4 times the trained length.
      segment_len: number of tokens of a segment; give either this or prefix_len.
      prefix_len: number of single tokens before the run.
      last: True: the run ends the text; False: it stands at a random place.
      dataset, data_dir, feature, tokenizer: as for `language`.

    Raises:
      ValueError: neither or both of segment_len and prefix_len, `last=False` without a prefix_len;
        segments that do not divide the text and the row; a prefix as long as the row; rows longer
        than the text.

    Reference: Karypis, McAuley, Karypis, arXiv 2310.14633.

    Example:
      >>> task = SegmentedText(source_len=16, segment_len=4)
      >>> task.sample(np.random.default_rng(0), 2, 8)['positions'].tolist()
      [[4, 5, 6, 7, 12, 13, 14, 15], [0, 1, 2, 3, 12, 13, 14, 15]]
    """

    source_len: int
    segment_len: int | None
    prefix_len: int | None
    last: bool

    def __init__(
        self,
        source_len: int,
        segment_len: int | None = None,
        prefix_len: int | None = None,
        last: bool = True,
        dataset: str = 'pydoc_topics',
        data_dir: str | None = None,
        feature: str | None = None,
        tokenizer: str | None = None,
    ):
        super().__init__(dataset, data_dir, 'stream', feature, tokenizer)
        if (segment_len is None) == (prefix_len is None):
            raise ValueError(
                'segmented_text takes exactly one of segment_len and prefix_len, got '
                f'{segment_len} and {prefix_len}'
            )
        if not last and prefix_len is None:
            raise ValueError(
                'segmented_text(last=False) moves the run behind a prefix and needs one; give '
                'prefix_len'
            )
        self._set(source_len=source_len, segment_len=segment_len, prefix_len=prefix_len, last=last)

    def source(self, length):
        if self.segment_len is not None:
            check_chunks(self.source_len, length, self.segment_len)
        else:
            check_prefix(self.source_len, length, self.prefix_len)
        return self.source_len

    def choose(self, rng, batch, length):
        if self.segment_len is not None:
            draw = lambda: segmented_sequences_chunk_ids(
                rng, self.source_len, length, self.segment_len
            )
        else:
            draw = lambda: segmented_sequences_prefix_ids(
                rng, self.source_len, length, self.prefix_len, last=self.last
            )
        kept = np.stack([draw() for _ in range(batch)])
        return kept, kept


@register('cream_text', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class CreamText(SelectedText):
    """Language modelling whose training rows of N tokens have ids of `cream`, from 0 .. Nf-1.

    Head and tail of a row are the first and last h tokens of a text. If the text is long enough,
    the tokens at the middle ids stand between them, and some of these may belong to the tail too,
    as in the released code. Otherwise the q = N - 2h tokens before the tail stand there. Encode
    with `rope(freqs=pi(factor=...))` and without `cream`, which would draw ids again. The target at
    the end of a piece is the next token of the text; this is our choice, since the paper does not
    say. Validation and test data are those of `language`.

    Args:
      factor: f, the extended length relative to N.
      source_len: number of tokens of a text; None for N.
      dataset, data_dir, feature, tokenizer: as for `language`.

    Raises:
      ValueError: a factor that is no integer of at least 1; rows of 8f tokens or fewer, or longer
        than source_len.

    Reference: Wu, Zhao, Zheng, arXiv 2406.07138.

    Example:
      >>> task = CreamText(factor=2)
      >>> batch = task.sample(np.random.default_rng(0), 3, 24)
      >>> batch['positions'][:, [0, -1]].tolist()
      [[0, 47], [0, 47], [0, 47]]
    """

    factor: int
    source_len: int | None

    def __init__(
        self,
        factor: int,
        source_len: int | None = None,
        dataset: str = 'pydoc_topics',
        data_dir: str | None = None,
        feature: str | None = None,
        tokenizer: str | None = None,
    ):
        super().__init__(dataset, data_dir, 'stream', feature, tokenizer)
        cream_thresholds(factor)
        self._set(factor=factor, source_len=source_len)

    def source(self, length):
        cream_heads(length, self.factor)
        if self.source_len is not None and self.source_len < length:
            raise ValueError(
                f'cream_text: rows of {length} tokens do not fit texts of '
                f'source_len={self.source_len}'
            )
        return length if self.source_len is None else self.source_len

    def choose(self, rng, batch, length):
        head, source = cream_heads(length, self.factor)[rng.integers(2)], self.source(length)
        index, limits = np.arange(length), cream_thresholds(self.factor)
        alpha = 2 + np.searchsorted(limits, rng.random((batch, 1)), side='right')
        low, high = cream_bounds(alpha, head, length)
        end = rng.integers(low, high + 1)
        ids = cream_ids(end, head, length, self.factor, index)
        from_end = source - length + index
        kept = np.where(
            index < head, index, np.where((index < length - head) & (end < source), ids, from_end)
        )
        return kept, ids
