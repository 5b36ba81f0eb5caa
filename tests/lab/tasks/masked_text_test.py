"""Masked text: which tokens are chosen, what becomes of them, and where the windows come from."""

import numpy as np
import pytest

from posenc_jax.lab.tasks.language import Language, MaskedText

MASK = 257


def batches(task, length, rows=100, count=10, split='train'):
    dataset = task.dataset(length=length, batch_size=rows, seed=0, split=split)
    drawn = [dataset[i] for i in range(count)]
    return {name: np.concatenate([batch[name] for batch in drawn]) for name in drawn[0]}


@pytest.mark.parametrize(
    'split', [pytest.param('train', marks=pytest.mark.full), 'validation', 'test']
)
def test_rows_are_windows_of_the_split_with_few_tokens_hidden(split):
    """A thousand rows, each taken apart: the targets occur in the text of the split, and an input
    differs from its target only where it bears loss.
    """
    text = Language().tokens(split).astype('<u2').tobytes()
    batch = batches(MaskedText(), 40, split=split)
    assert batch['tokens'].shape == (1000, 40) and batch['valid'].all()
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        assert text.find(targets.astype('<u2').tobytes()) % 2 == 0
        assert mask.sum() == 6  # 15 % of 40
        assert (tokens == targets)[mask == 0].all()


def test_chosen_tokens_are_masked_exchanged_or_kept():
    batch = batches(MaskedText(), 100)
    tokens, targets = (batch[name][batch['loss_mask'] == 1] for name in ('tokens', 'targets'))
    assert len(tokens) == 1000 * 15
    masked, kept = tokens == MASK, tokens == targets
    # A random token is the original one once in 257 times.
    assert abs(masked.mean() - 0.8) < 0.01 and abs(kept.mean() - 0.1 - 0.1 / 257) < 0.008
    exchanged = tokens[~masked & ~kept]
    assert abs(np.mean(exchanged) - 128) < 8 and len(set(exchanged)) > 230


def test_every_place_is_chosen_equally_often():
    share = batches(MaskedText(), 20)['loss_mask'].mean(axis=0)
    np.testing.assert_allclose(share, 3 / 20, atol=0.045)  # four standard deviations


def test_a_range_gives_rows_of_every_length():
    batch = batches(MaskedText(rate=0.5), (1, 8))
    counts = batch['valid'].sum(axis=1)
    np.testing.assert_allclose(np.bincount(counts)[1:] / 1000, 1 / 8, atol=0.04)
    for count, row, mask, targets in zip(
        counts, batch['valid'], batch['loss_mask'], batch['targets']
    ):
        assert row[:count].all() and not mask[count:].any() and not targets[count:].any()
        assert mask.sum() == max(1, np.rint(count / 2))


def test_windows_reach_both_ends_of_a_split(tmp_path):
    (tmp_path / 'short.txt').write_text('abcdefghijk')  # <bos>abcdefghi is for training
    task = MaskedText(f'text:{tmp_path}/short.txt')
    found = {task.text.decode(row) for row in batches(task, 9, count=1)['targets']}
    assert found == {'<bos>abcdefgh', 'abcdefghi'}
    with pytest.raises(ValueError, match='train split of .* has 10 tokens'):
        task.dataset(length=10, batch_size=2, seed=0)


def test_sizes_and_text():
    task = MaskedText()
    assert (task.vocab_size, task.output_size, task.predicts) == (258, 257, 'here')
    assert not task.is_language
    ids = np.concatenate([task.encode('ab'), [MASK, MASK], task.encode('c')[1:]])
    assert task.decode(ids) == '<bos>ab[MASK][MASK]c' and task.decode(ids[:0]) == ''
