import numpy as np

from posenc_jax.lab.tasks.formal import FlipFlop


def test_instructions_have_their_probabilities_and_bits_are_fair():
    batch = FlipFlop(0.5).sample(np.random.default_rng(0), 400, 50)
    instructions = batch['tokens'][:, 2:-2:2]
    shares = [(instructions == token).mean() for token in (2, 3, 4)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.02)
    ignored = batch['targets'][batch['tokens'] == 4]
    assert abs(ignored.mean() - 0.5) < 0.02
