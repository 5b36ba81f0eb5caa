import numpy as np
import pytest

from posenc_jax.lab.tasks.language import BOS
from posenc_jax.lab.tasks.retrieval import KVRetrieval, PasskeyText, text
from tests.smollm2 import needs_smollm2, smollm2

GRASS = ' The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.'
BEGIN = (
    'There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. '
    'I will quiz you about the important information there.'
)


TOKENIZERS = [None, pytest.param(smollm2(), marks=needs_smollm2, id='smollm2')]


def rows(task, length, batch=3, seed=0):
    """(text that is read and answered, scored text, number of tokens that are read, first scored
    one) of each row.
    """
    data = task.sample(np.random.default_rng(seed), batch, length)
    assert all(array.shape == (batch, task.width(length)) for array in data.values())
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        scored = np.flatnonzero(mask)
        assert (np.diff(scored) == 1).all()
        size = scored[-1] + 1
        assert not tokens[size + 1 :].any() and not targets[size:].any()
        np.testing.assert_array_equal(tokens[1 : size + 1], targets[:size][: len(tokens) - 1])
        yield (
            task.decode(np.append(tokens[:size], targets[size - 1])),
            task.decode(targets[scored]),
            size,
            scored[0],
        )


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('depth, before', [(0.0, 0), (0.5, 2), (0.8, 3), (1.0, 4)])
def test_the_text_is_that_of_the_sheet(tokenizer, depth, before):
    length = 179 if tokenizer else 620
    for whole, answer, _, _ in rows(PasskeyText(tokenizer, depth=depth), length):
        key = answer[1:]
        assert answer[0] == ' ' and len(key) == 5 and key.isdecimal() and key[0] != '0'
        hidden = f' The pass key is {key}. Remember it. {key} is the pass key.'
        end = f' What is the pass key? The pass key is {key}'
        expected = BEGIN + GRASS * before + hidden + GRASS * (4 - before) + end
        assert whole.removeprefix('<bos>') == expected and whole.startswith('<bos>') == (
            not tokenizer
        )


@pytest.mark.full_but_one
@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('kind, unit', [(PasskeyText, 90), (KVRetrieval, 90)])
def test_the_length_is_never_exceeded_and_nearly_reached(tokenizer, kind, unit):
    task = kind(tokenizer)
    shortest = task.width(1000)
    for length in (400, 401, 777, 2000):
        for _, _, size, _ in rows(task, length):
            assert length - unit < size <= length
    sizes = [size for _, _, size, _ in rows(task, (400, 2000), batch=30)]
    assert max(sizes) <= 2000 and min(sizes) < 900 < 1500 < max(sizes)
    assert shortest == 1000


def test_one_token_less_makes_one_sentence_less():
    sizes = {length: next(rows(PasskeyText(), length, 1))[2] for length in (521, 520, 431, 430)}
    assert sizes == {521: 521, 520: 431, 431: 431, 430: 341}


@pytest.mark.parametrize('kind', [PasskeyText, KVRetrieval])
def test_depths_share_what_is_hidden(kind):
    answers = [
        [answer for _, answer, _, _ in rows(kind(depth=depth), 700)]
        for depth in (0.0, 0.3, 1.0, None)
    ]
    assert answers[0] == answers[1] == answers[2] == answers[3] and len(set(answers[0])) == 3


@pytest.mark.full
def test_places_are_uniform_without_depth():
    places = [
        whole.partition(' The pass key')[0].count(GRASS)
        for whole, *_ in rows(PasskeyText(), 620, batch=4000)
    ]
    np.testing.assert_allclose(np.bincount(places, minlength=5) / 4000, 0.2, atol=0.025)


def test_bytes_begin_with_bos_and_nothing_is_scored_twice():
    data = PasskeyText(digits=12).sample(np.random.default_rng(0), 5, 600)
    assert (data['tokens'][:, 0] == BOS).all() and (data['loss_mask'].sum(1) == 13).all()
    assert PasskeyText().vocab_size == 257


@needs_smollm2
@pytest.mark.parametrize(
    'kind, end', [(PasskeyText, 'The pass key is'), (KVRetrieval, 'Corresponding value: "')]
)
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


class Merging:
    """Bytes, but the last byte of a prompt becomes one token with the byte that follows."""

    size = 257

    def encode(self, text):
        return np.frombuffer(text.replace(b'is ', b'I'), np.uint8).astype(np.int32)


def test_a_token_across_prompt_and_answer_is_refused(monkeypatch):
    monkeypatch.setattr(text, 'open_vocabulary', lambda path: Merging())
    with pytest.raises(
        ValueError,
        match=r"token across the end of the prompt '.*pass key is' and the answer ' \d{5}'",
    ):
        PasskeyText('somewhere').sample(np.random.default_rng(0), 1, 600)


def test_too_short_a_length_says_which_is_long_enough():
    with pytest.raises(
        ValueError, match='fixed text of this task in bytes must be at least 251, got 250'
    ):
        PasskeyText().width(250)
    assert [size for _, _, size, _ in rows(PasskeyText(), 251)] == [251] * 3


def test_a_tokenizer_that_is_not_there():
    with pytest.raises(FileNotFoundError, match='no such checkpoint: nowhere'):
        PasskeyText('nowhere')
