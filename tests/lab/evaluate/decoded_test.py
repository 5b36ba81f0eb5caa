"""Scores of decoded answers: of a stand-in for generation that knows them, and of a tiny model."""

import numpy as np
import pytest

from configs import default
from posenc_jax.lab.config import answers
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.evaluate import decoded
from posenc_jax.lab.evaluate.generator import generator
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.evaluate.tasks import score_rows
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.retrieval.ruler_lite import RulerLite
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.small_models import small_model

SIZES = dict(vocab_size=11, train_len=8, layers=1, width=16, heads=2)
TASK = RulerLite('niah_multivalue', needles=2)


def test_the_share_of_references_that_are_written(monkeypatch):
    """Every answer is cut behind its first value, so that half of the references occur."""
    batch = TASK.dataset(length=700, batch_size=5, seed=SEED, split='test')[0]
    sizes = []

    def new_tokens(prompts, *, valid, max_new_tokens, **rest):
        rows = [TASK.decode(row[own][1:]) for row, own in zip(prompts, valid)]
        sizes.append(len(rows))
        new = np.full((len(rows), max_new_tokens), ord('.'))
        for row, text in zip(new, rows):
            key = text.split(' for ')[1].split(' is:')[0]
            value = text.split(f'{key} is: ')[1][:7]
            row[:8] = np.frombuffer(f' {value}'.encode(), np.uint8)
        return new

    monkeypatch.setattr(decoded, 'generator', lambda *_: new_tokens)
    found = decoded.decoded_match(None, TASK, 700, samples=5, rows=2)
    assert found.score == 50 and sizes == [2, 2, 2] and len(found.outputs) == 5
    # The questions are those of exact match.
    for row, references in enumerate(found.references):
        answer = TASK.decode(batch['targets'][row][batch['loss_mask'][row] > 0])
        assert answer == f' {", ".join(references)}'


@pytest.mark.full
def test_a_model_that_has_learned_nothing_scores_nothing():
    sizes = dict(vocab_size=TASK.vocab_size, train_len=64, layers=1, width=8, heads=1)
    model = small_model(**sizes, encoding='nope()')
    found = decoded.decoded_match(model, TASK, 500, samples=3, rows=3, max_new_tokens=6)
    assert found.score == 0 and len(found.outputs) == 3


@pytest.mark.parametrize(
    'given, error, message',
    [
        (dict(split='train'), SpecError, "split is 'train'; "),
        (dict(samples=0), ValueError, 'samples must be at least 1, got 0'),
        (dict(rows=0), ValueError, 'rows must be at least 1, got 0'),
    ],
)
def test_wrong_arguments(given, error, message):
    with pytest.raises(error, match=message):
        decoded.decoded_match(None, TASK, 700, **given)


def batch_of(model, prompts, new):
    """A batch whose answers are what the model decodes, padded on the right."""
    rows, width = [], max(map(len, prompts)) + new
    for prompt in prompts:
        text = generate(model, prompt[None], max_new_tokens=new, temperature=0.0)[0]
        rows.append(np.pad(np.asarray(text), (0, width - len(text))))
    column, first = np.arange(width - 1), np.array([[len(prompt) - 1] for prompt in prompts])
    mask = (column >= first) & (column < first + new)
    rows = np.stack(rows)
    return {'tokens': rows[:, :-1], 'targets': rows[:, 1:], 'loss_mask': mask.astype(np.float32)}


def test_decoded_rows_are_compared_with_their_targets():
    model = small_model(**SIZES, encoding='alibi()')
    rng = np.random.default_rng(0)
    batch = batch_of(model, [rng.integers(0, 11, n) for n in (4, 7, 5)], new=3)
    assert decoded.decoded_rows(generator(model), batch, rows=2).all()
    assert score_rows(scorer(model), batch, 3)[1].all()  # one pass says the same
    batch['targets'][1, 7] += 1  # the second token of the second answer
    found = decoded.decoded_rows(generator(model), batch, rows=3)
    assert found.tolist() == [[True] * 3, [True, False, True], [True] * 3]


def test_answers_to_a_source_are_decoded():
    reads = dict(kind='encoder_decoder', source_size=7, source_len=6)
    model, rng = small_model(**SIZES, **reads, encoding='rope()'), np.random.default_rng(0)
    source = rng.integers(0, 7, (3, 6))
    valid = np.arange(6) < np.array([[6], [3], [4]])
    given = model.encoded(source, Tokens.of(valid=valid))
    begin = np.zeros((3, 1), np.int32)
    rows = np.asarray(generate(model, begin, max_new_tokens=4, temperature=0.0, source=given))
    batch = {
        'tokens': rows[:, :-1], 'targets': rows[:, 1:], 'loss_mask': np.ones((3, 4), np.float32),
        'source': source, 'source_valid': valid,
    }  # fmt: skip
    assert decoded.decoded_rows(generator(model), batch, rows=2).all()
    batch['targets'] = (batch['targets'] + np.eye(3, 4, dtype=int)) % 11
    found = decoded.decoded_rows(generator(model), batch, rows=3)
    np.testing.assert_array_equal(found, 1 - np.eye(3, 4))


@pytest.mark.parametrize(
    ('task', 'positions', 'message'),
    [
        ('language()', 'first', 'language.. predicts a whole text'),
        ("chomsky15(name='odds_first')", 'first', "at its place .'here'."),
        ('copy()', 'sampled', "use eval.positions='first'"),
    ],
)
def test_tasks_and_rules_without_decoding_are_refused(task, positions, message):
    config = default.get_config()
    config.task, config.eval.decode, config.eval.positions = task, True, positions
    with pytest.raises(SpecError, match=message):
        answers.check(config, make_task(config))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'positions': np.zeros((2, 4))}, 'have positions; use eval.decode=False'),
        ({'positions': np.zeros((2, 4)), 'segment': np.zeros((2, 4))}, 'have positions, segment'),
        ({'loss_mask': np.array([[0, 1, 1, 0], [1, 0, 1, 0]])}, '2 tokens between 0 and 3 of a'),
        ({'loss_mask': np.zeros((2, 4))}, '0 tokens between 0 and 4 of a row'),
    ],
)
def test_rows_that_cannot_be_decoded_are_refused(changes, message):
    batch = {'loss_mask': np.array([[0, 1, 1, 0], [0, 0, 0, 1]])}
    answers.check_decodable(batch)
    with pytest.raises(SpecError, match=message):
        answers.check_decodable({**batch, **changes})
