import json
import re
import uuid

import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import KVRetrieval, kv_retrieval, text


def texts(task, length, batch=4):
    """(prompt, answer) of each row."""
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        scored = np.flatnonzero(mask)
        yield task.decode(tokens[1 : scored[0] + 1]), task.decode(targets[scored])


FORM = re.compile(
    r'Extract the value corresponding to the specified key in the JSON object below\.\n\nJSON '
    r'data:\n(\{.*\})\n\n'
    r'Key: "([0-9a-f-]{36})"\nCorresponding value: "',
    re.DOTALL,
)


@pytest.mark.parametrize('depth, place', [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 7)])
def test_the_text_is_that_of_the_sheet(depth, place):
    for prompt, answer in texts(KVRetrieval(depth=depth), 850):
        data, key = FORM.fullmatch(prompt).groups()
        pairs = json.loads(data)
        assert list(pairs).index(key) == place and pairs[key] == answer
        ids = [*pairs, *pairs.values()]
        assert len(set(ids)) == len(ids) == 16
        assert all(str(uuid.UUID(i)) == i and uuid.UUID(i).version == 4 for i in ids)
        lines = data.split('\n')
        pair = r'"[0-9a-f-]{36}": "[0-9a-f-]{36}"'
        assert re.fullmatch(r'\{' + pair + ',', lines[0]) and re.fullmatch(
            ' ' + pair + r'\}', lines[-1]
        )
        assert all(re.fullmatch(' ' + pair + ',', line) for line in lines[1:-1])


def test_depths_ask_for_the_same_pair_among_the_same_others():
    found = [
        [FORM.fullmatch(prompt).groups() for prompt, _ in texts(KVRetrieval(depth=d), 850)]
        for d in (0.0, 0.6, 1.0)
    ]
    for one, *others in zip(*found):
        assert all(
            key == one[1] and json.loads(data) == json.loads(one[0]) and data != one[0]
            for data, key in others
        )


def test_places_are_uniform_without_depth():
    places = [
        list(json.loads(FORM.fullmatch(p)[1])).index(FORM.fullmatch(p)[2])
        for p, _ in texts(KVRetrieval(), 520, 2000)
    ]
    np.testing.assert_allclose(np.bincount(places) / 2000, 1 / 4, atol=0.03)


def test_too_short_a_length_says_which_is_long_enough():
    with pytest.raises(
        ValueError, match='fixed text of this task in bytes must be at least 356, got 355'
    ):
        KVRetrieval().width(355)
    (prompt, _), *_ = texts(KVRetrieval(), 356)
    assert len(json.loads(FORM.fullmatch(prompt)[1])) == 2


def test_an_example_that_needs_more_than_others_says_so(monkeypatch):
    class Uneven:
        """Digits are two tokens each, so that an identifier with many of them is long."""

        size = 257

        def encode(self, text):
            return np.frombuffer(re.sub(rb'(\d)', rb'\1\1', text), np.uint8).astype(np.int32)

    monkeypatch.setattr(text, 'open_vocabulary', lambda path: Uneven())
    task = KVRetrieval('somewhere')
    with pytest.raises(ValueError, match=r'must be at least (\d+)') as error:
        task.width(1)
    shortest = int(re.search(r'at least (\d+)', str(error.value))[1])
    with pytest.raises(
        ValueError,
        match=rf'this example needs a length of \d+ with the least filler, got {shortest}',
    ):
        task.sample(np.random.default_rng(1), 200, shortest)


def test_pairs_of_a_seed_begin_alike():
    assert kv_retrieval._pairs(7, 20)[:3] == kv_retrieval._pairs(7, 3) != kv_retrieval._pairs(8, 3)
