"""The data of segmented sequences: rows of pieces of longer texts, at their original positions."""

import dataclasses

import numpy as np

from posenc_jax.lab.tasks.language.selected import SelectedText
from posenc_jax.methods.segmented_sequences import check_chunks, check_prefix, chunk_ids, prefix_ids
from posenc_jax.protocol.registry import register


@register('segmented_text', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class SegmentedText(SelectedText):
    """Language modelling whose training rows are pieces of texts of `source_len` tokens.

    A row holds whole segments of `segment_len` tokens ('chunk' mode), or `prefix_len` single tokens
    followed by a run of consecutive ones ('prefix' mode). Tokens keep their positions in the text.
    The target at the end of a piece is the next token of the text. The paper does not publish how
    it samples; the two modes and their proportions are our choice. Validation and test data are
    those of `language`.

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
            draw = lambda: chunk_ids(rng, self.source_len, length, self.segment_len)
        else:
            draw = lambda: prefix_ids(rng, self.source_len, length, self.prefix_len, last=self.last)
        kept = np.stack([draw() for _ in range(batch)])
        return kept, kept
