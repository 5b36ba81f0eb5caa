"""The data of CREAM: head, middle and tail of longer texts, with ids from the extended range."""

import dataclasses

import numpy as np

from posenc_jax.lab.tasks.language.selected import SelectedText
from posenc_jax.methods.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from posenc_jax.protocol.registry import register


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
        head, source, index = (
            cream_heads(length, self.factor)[rng.integers(2)],
            self.source(length),
            np.arange(length),
        )
        alpha = 2 + np.searchsorted(
            cream_thresholds(self.factor), rng.random((batch, 1)), side='right'
        )
        low, high = cream_bounds(alpha, head, length)
        end = rng.integers(low, high + 1)
        ids = cream_ids(end, head, length, self.factor, index)
        from_end = source - length + index
        kept = np.where(
            index < head, index, np.where((index < length - head) & (end < source), ids, from_end)
        )
        return kept, ids
