import numpy as np

from posenc_jax.lab.tasks.retrieval import Passkeys


def test_depths_differ():
    task = Passkeys(keys=2, words=3, alphabet=9, fillers=5)
    tokens = task.sample(np.random.default_rng(0), 200, 40)['tokens']
    assert len(set(np.argmax(tokens == 0, axis=1))) > 5  # where the first key lies
