import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import CodeMixed
from posenc_jax.methods.conflator import switching_ids


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [24, (9, 20)])
def test_positions_are_those_of_the_languages_of_the_text(length):
    task = CodeMixed(letters=5, switches=4, ids='switches')
    batch = task.sample(np.random.default_rng(0), 50, length)
    for tokens, positions in zip(batch['tokens'], batch['positions']):
        end = np.argmax(tokens >= 10)
        lang = tokens // 5
        lang[end:] = lang[end - 1]
        np.testing.assert_array_equal(positions, switching_ids(jnp.asarray(lang)))


def test_ids_change_nothing_else():
    plain, with_ids = (
        CodeMixed(ids=ids).sample(np.random.default_rng(0), 8, (9, 20))
        for ids in ('none', 'switches')
    )
    assert with_ids.pop('positions').shape == (*plain['tokens'].shape, 3)
    for name in plain:
        np.testing.assert_array_equal(plain[name], with_ids[name])


def test_text_for_people():
    assert (
        CodeMixed(letters=2, switches=2).decode(np.array([0, 3, 1, 4, 5, 6])) == 'a0 b1 a1 1? 2? _'
    )


def test_switching_points_lie_anywhere():
    tokens = CodeMixed(letters=2, switches=3).sample(np.random.default_rng(0), 200, 24)['tokens']
    after = np.diff(tokens[:, :24] // 2, axis=1, prepend=tokens[:, :1] // 2) != 0
    assert set(np.flatnonzero(after.any(axis=0))) == set(range(1, 24))
