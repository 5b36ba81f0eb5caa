import numpy as np
import pytest

from posenc_jax.lab.tasks.copy import Copy


@pytest.mark.parametrize('length', [5, (1, 8)])
def test_answer_is_the_string_and_loss_covers_it_and_the_end(length):
    task = Copy(symbols=10)
    batch = task.sample(np.random.default_rng(0), 200, length)
    seen = set()
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        whole = task.decode(np.append(tokens[:1], targets)).rstrip('_')
        assert whole[0] == whole[-1] == '$'
        question, answer = whole[1:-1].split('=')
        assert question == answer
        assert task.decode(targets[mask == 1]) == answer + '$'
        assert set(mask) <= {0, 1}
        seen.add(len(question))
    assert seen == ({5} if length == 5 else set(range(1, 9)))


def test_ids_of_the_spec_string():
    batch = Copy(ids='coupled').sample(np.random.default_rng(0), 2, 5)
    np.testing.assert_array_equal(batch['positions'], [[0, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]] * 2)
    batch = Copy(ids='plain').sample(np.random.default_rng(0), 2, 2)
    np.testing.assert_array_equal(batch['positions'], [[0, 1, 2, 3, 4, 5]] * 2)


@pytest.mark.parametrize('ids', ['plain', 'coupled'])
def test_padding_has_id_zero(ids):
    task = Copy(ids=ids)
    batch = task.sample(np.random.default_rng(0), 50, (1, 8))
    padding = batch['tokens'] == task.vocab_size - 1
    assert (
        padding.any()
        and (batch['positions'][padding] == 0).all()
        and (batch['loss_mask'][padding] == 0).all()
    )


def test_symbols_are_uniform_with_replacement():
    batch = Copy(symbols=4).sample(np.random.default_rng(0), 1000, 4)
    counts = np.bincount(batch['tokens'][:, 1:5].ravel(), minlength=4)
    assert abs(counts / 4000 - 0.25).max() < 0.03
    assert Copy(symbols=4).vocab_size == 7
