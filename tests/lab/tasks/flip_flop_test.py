import numpy as np
import pytest

from posenc_jax.lab.tasks.formal import FlipFlop


@pytest.mark.parametrize('ignore', [0.1, 0.8, 0.98])
def test_what_is_read_is_what_was_written_last(ignore):
    task = FlipFlop(ignore)
    batch = task.sample(np.random.default_rng(0), 200, (3, 20))
    assert task.width((3, 20)) == batch['tokens'].shape[1] == 39
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        words = task.decode(np.append(tokens, targets[-1])).replace('_', '').split()
        pairs = list(zip(words[::2], words[1::2]))
        assert (
            3 <= len(pairs) <= 20
            and pairs[0][0] == 'w'
            and pairs[-1][0] == 'r'
            and mask.sum() == sum(a == 'r' for a, _ in pairs)
        )
        memory, read = None, []
        for instruction, bit in pairs:
            memory = bit if instruction == 'w' else memory
            assert instruction != 'r' or bit == memory
            read += [bit] if instruction == 'r' else []
        assert task.decode(targets[mask == 1]).split() == read


def test_instructions_have_their_probabilities_and_bits_are_fair():
    batch = FlipFlop(0.5).sample(np.random.default_rng(0), 400, 50)
    instructions = batch['tokens'][:, 2:-2:2]
    shares = [(instructions == token).mean() for token in (2, 3, 4)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.02)
    ignored = batch['targets'][batch['tokens'] == 4]
    assert abs(ignored.mean() - 0.5) < 0.02
