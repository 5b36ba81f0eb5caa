import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import CodeMixed
from posenc_jax.methods.conflator import conflator_ids
from tests.lab.tasks.rows import sampled


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [24, (9, 20)])
def test_positions_are_those_of_the_languages_of_the_text(length):
    task = CodeMixed(letters=5, switches=4, ids='switches')
    batch = task.sample(np.random.default_rng(0), 50, length)
    for tokens, positions in zip(batch['tokens'], batch['positions']):
        end = np.argmax(tokens >= 10)
        lang = tokens // 5
        lang[end:] = lang[end - 1]
        np.testing.assert_array_equal(positions, conflator_ids(jnp.asarray(lang)))


def test_ids_change_nothing_else():
    plain, with_ids = (
        sampled(f'code_mixed(ids="{ids}")', (9, 20), 8) for ids in ('none', 'switches')
    )
    assert with_ids.pop('positions').shape == (*plain['tokens'].shape, 3)
    for name in plain:
        np.testing.assert_array_equal(plain[name], with_ids[name])


def test_text_for_people():
    task = CodeMixed(letters=2, switches=2)
    assert task.decode(np.array([0, 3, 1, 4, 5, 6])) == 'a0 b1 a1 1? 2? _'
