"""Retrieval in plain text: the texts of the sheets, how much filler fits, where answers begin."""

import json
import re
import uuid

import numpy as np
import pytest

from posenc_jax.lab.tasks.language import BOS
from posenc_jax.lab.tasks.retrieval import KVRetrieval, PasskeyText, kv_retrieval, text
from tests.smollm2 import needs_smollm2, smollm2

GRASS = ' The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.'
BEGIN = (
    'There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. '
    'I will quiz you about the important information there.'
)
FORM = re.compile(
    r'Extract the value corresponding to the specified key in the JSON object below\.\n\nJSON '
    r'data:\n(\{.*\})\n\nKey: "([0-9a-f-]{36})"\nCorresponding value: "',
    re.DOTALL,
)
TOKENIZERS = [None, pytest.param(smollm2(), marks=needs_smollm2, id='smollm2')]
KINDS = [PasskeyText, KVRetrieval]


def rows(task, length, batch=3):
    """(text that is read and answered, scored text, number of tokens that are read, first scored
    one) of each row.
    """
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        scored = np.flatnonzero(mask)
        assert (np.diff(scored) == 1).all()
        size = scored[-1] + 1
        assert not tokens[size + 1 :].any() and not targets[size:].any()
        whole = task.decode(np.append(tokens[:size], targets[size - 1]))
        yield whole, task.decode(targets[scored]), size, scored[0]


def pairs(task, length, batch=4):
    """(JSON, key, answer) of each row of key-value retrieval."""
    for whole, answer, *_ in rows(task, length, batch):
        assert whole.startswith('<bos>')
        yield *FORM.fullmatch(whole[len('<bos>') :].removesuffix(answer)).groups(), answer


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('depth, before', [(0.0, 0), (0.5, 2), (0.8, 3), (1.0, 4)])
def test_the_text_of_passkeys_is_that_of_the_sheet(tokenizer, depth, before):
    length = 179 if tokenizer else 620
    for whole, answer, _, _ in rows(PasskeyText(tokenizer, depth=depth), length):
        key = answer[1:]
        assert answer[0] == ' ' and len(key) == 5 and key.isdecimal() and key[0] != '0'
        hidden = f' The pass key is {key}. Remember it. {key} is the pass key.'
        end = f' What is the pass key? The pass key is {key}'
        expected = BEGIN + GRASS * before + hidden + GRASS * (4 - before) + end
        assert whole == ('' if tokenizer else '<bos>') + expected


@pytest.mark.parametrize('depth, place', [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 7)])
def test_the_text_of_pairs_is_that_of_the_sheet(depth, place):
    for data, key, answer in pairs(KVRetrieval(depth=depth), 850):
        found = json.loads(data)
        assert list(found).index(key) == place and found[key] == answer
        ids = [*found, *found.values()]
        assert len(set(ids)) == len(ids) == 16
        assert all(str(uuid.UUID(i)) == i and uuid.UUID(i).version == 4 for i in ids)
        pair = r'"[0-9a-f-]{36}": "[0-9a-f-]{36}"'
        assert re.fullmatch(rf'\{{{pair}(,\n {pair})*\}}', data)


@pytest.mark.full_but_one
@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('kind', KINDS)
def test_the_length_is_never_exceeded_and_nearly_reached(tokenizer, kind):
    task = kind(tokenizer)
    for length in (400, 401, 777, 2000):
        assert all(length - 90 < size <= length for _, _, size, _ in rows(task, length))
    sizes = [size for _, _, size, _ in rows(task, (400, 2000), batch=30)]
    assert max(sizes) <= 2000 and min(sizes) < 900 < 1500 < max(sizes)


def test_one_token_less_makes_one_sentence_less():
    sizes = {length: next(rows(PasskeyText(), length, 1))[2] for length in (521, 520, 431, 430)}
    assert sizes == {521: 521, 520: 431, 431: 431, 430: 341}


def test_the_shortest_lengths_have_no_filler_and_two_pairs():
    assert [size for _, _, size, _ in rows(PasskeyText(), 251)] == [251] * 3
    assert all(len(json.loads(data)) == 2 for data, *_ in pairs(KVRetrieval(), 356))


@pytest.mark.parametrize('kind', KINDS)
def test_depths_share_what_is_hidden(kind):
    depths = [rows(kind(depth=depth), 700) for depth in (0.0, 0.3, 1.0, None)]
    answers = [[answer for _, answer, *_ in found] for found in depths]
    assert answers == answers[:1] * 4 and len(set(answers[0])) == 3


def test_depths_ask_for_the_same_pair_among_the_same_others():
    found = [list(pairs(KVRetrieval(depth=depth), 850)) for depth in (0.0, 0.6, 1.0)]
    for (data, key, _), *others in zip(*found):
        for more, again, _ in others:
            assert key == again and json.loads(data) == json.loads(more) and data != more


def test_places_are_uniform_without_depth():
    places = [list(json.loads(data)).index(key) for data, key, _ in pairs(KVRetrieval(), 520, 2000)]
    np.testing.assert_allclose(np.bincount(places) / 2000, 1 / 4, atol=0.03)


@pytest.mark.full
def test_places_of_passkeys_are_uniform_without_depth():
    found = rows(PasskeyText(), 620, batch=4000)
    places = [whole.partition(' The pass key')[0].count(GRASS) for whole, *_ in found]
    np.testing.assert_allclose(np.bincount(places, minlength=5) / 4000, 0.2, atol=0.025)


def test_bytes_begin_with_bos_and_nothing_is_scored_twice():
    data = PasskeyText(digits=12).sample(np.random.default_rng(0), 5, 600)
    assert (data['tokens'][:, 0] == BOS).all() and (data['loss_mask'].sum(1) == 13).all()
    assert PasskeyText().vocab_size == 257


def test_pairs_of_a_seed_begin_alike():
    assert kv_retrieval._pairs(7, 20)[:3] == kv_retrieval._pairs(7, 3) != kv_retrieval._pairs(8, 3)


@needs_smollm2
@pytest.mark.parametrize('kind, end', zip(KINDS, ['The pass key is', 'Corresponding value: "']))
def test_the_answer_begins_where_the_tokens_of_the_prompt_end(kind, end):
    task = kind(smollm2())
    for whole, answer, size, first in rows(task, 500):
        prompt = whole.removesuffix(answer)
        assert prompt.endswith(end)
        given, ids = (task.vocabulary.encode(part.encode()) for part in (prompt, whole))
        assert len(given) == first + 1 and len(ids) == size + 1
        np.testing.assert_array_equal(ids[: first + 1], given)
    assert task.vocab_size == 49152


@pytest.mark.full
@needs_smollm2
def test_exact_match_is_that_of_greedy_decoding():
    """SmolLM2 finds a number at the beginning, and repeats the words before the question where it
    stands at the end.
    """
    pytest.importorskip('gguf')
    import jax.numpy as jnp

    from posenc_jax.lab.decoding.generate import generate
    from posenc_jax.lab.evaluate.scoring import scorer
    from posenc_jax.lab.evaluate.tasks import score_rows
    from posenc_jax.lab.pretrained import load_pretrained

    model, batches = load_pretrained(smollm2()).model, []
    for depth in (0.0, 1.0):
        batches.append(PasskeyText(smollm2(), depth=depth).sample(np.random.default_rng(0), 1, 128))
    batch = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    _, correct, scored = score_rows(scorer(model), batch, rows=2)
    assert scored.all()
    (start,) = {int(np.flatnonzero(mask)[0]) for mask in batch['loss_mask']}
    new = generate(
        model, jnp.asarray(batch['tokens'][:, : start + 1]), max_new_tokens=6, temperature=0.0
    )[:, start + 1 :]
    greedy = (np.asarray(new) == batch['targets'][:, start : start + 6]).all(axis=1)
    assert correct.all(axis=1).tolist() == greedy.tolist() == [True, False]


class Rewriting:
    """Bytes of a text in which a pattern is replaced by another one."""

    size = 257

    def __init__(self, pattern, other):
        self.pattern, self.other = pattern, other

    def encode(self, text):
        return np.frombuffer(re.sub(self.pattern, self.other, text), np.uint8).astype(np.int32)


def test_a_token_across_prompt_and_answer_is_refused(monkeypatch):
    monkeypatch.setattr(text, 'open_vocabulary', lambda path: Rewriting(b'is ', b'I'))
    said = r"token across the end of the prompt '.*pass key is' and the answer ' \d{5}'"
    with pytest.raises(ValueError, match=said):
        PasskeyText('somewhere').sample(np.random.default_rng(0), 1, 600)


def test_an_example_that_needs_more_than_others_says_so(monkeypatch):
    """Digits are two tokens each, so that an identifier with many of them is long."""
    monkeypatch.setattr(text, 'open_vocabulary', lambda path: Rewriting(rb'(\d)', rb'\1\1'))
    task = KVRetrieval('somewhere')
    shortest = task.shortest
    said = rf'this example needs a length of \d+ with the least filler, got {shortest}'
    with pytest.raises(ValueError, match=said):
        task.sample(np.random.default_rng(1), 200, shortest)


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(FileNotFoundError, match='no such checkpoint: nowhere'):
        PasskeyText('nowhere')
