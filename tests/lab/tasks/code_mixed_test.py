import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import CodeMixed
from posenc_jax.methods.conflator import switching_ids


@pytest.mark.parametrize('length', [24, 7, (9, 20)])
@pytest.mark.parametrize('letters, switches', [(8, 6), (2, 3)])
def test_answers_are_the_letters_after_the_switches_counted_from_the_end(length, letters, switches):
    task = CodeMixed(letters, switches)
    batch = task.sample(np.random.default_rng(0), 200, length)
    lengths, places = set(), set()
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        asked = np.flatnonzero((tokens >= 2 * letters) & (tokens < task.vocab_size - 1))
        text = tokens[: asked[0]]
        lengths.add(len(text))
        assert text.max() < 2 * letters
        after = [i for i in range(1, len(text)) if text[i] // letters != text[i - 1] // letters]
        assert len(after) == switches
        places |= set(after)
        np.testing.assert_array_equal(np.flatnonzero(mask), asked)
        numbers = tokens[asked] - 2 * letters + 1
        assert sorted(numbers) == list(range(1, switches + 1))
        np.testing.assert_array_equal(targets[asked], [text[after[-k]] for k in numbers])
        np.testing.assert_array_equal(asked, len(text) + 2 * np.arange(switches))
    low, high = length if isinstance(length, tuple) else (length, length)
    assert lengths == set(range(low, high + 1)) and places == set(range(1, high))


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
