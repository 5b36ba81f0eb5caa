"""Scores of decoded answers: of a stand-in for generation that knows them, and of a tiny model."""

import numpy as np
import pytest
from flax import nnx

from posenc_jax.core.registry import SpecError
from posenc_jax.evaluation import decoded
from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.transformer import Transformer
from posenc_jax.run.job import SEED
from posenc_jax.tasks.retrieval.ruler_lite import RulerLite

TASK = RulerLite('niah_multivalue', needles=2)


def test_the_share_of_references_that_are_written(monkeypatch):
    """Every answer is cut behind its first value, so that half of the references occur."""
    batch = TASK.dataset(length=700, batch_size=5, seed=SEED, split='test')[0]
    sizes = []

    def generate(model, prompts, *, valid, max_new_tokens, **rest):
        rows = [TASK.decode(row[own][1:]) for row, own in zip(prompts, valid)]
        sizes.append(len(rows))
        new = np.full((len(rows), max_new_tokens), ord('.'))
        for row, text in zip(new, rows):
            key = text.split(' for ')[1].split(' is:')[0]
            value = text.split(f'{key} is: ')[1][:7]
            row[:8] = np.frombuffer(f' {value}'.encode(), np.uint8)
        return np.concatenate([prompts, new], axis=1)

    monkeypatch.setattr(decoded, 'generate', generate)
    found = decoded.decoded_match(None, TASK, 700, samples=5, rows=2)
    assert found.score == 50 and sizes == [2, 2, 2] and len(found.outputs) == 5
    # The questions are those of exact match.
    for row, references in enumerate(found.references):
        answer = TASK.decode(batch['targets'][row][batch['loss_mask'][row] > 0])
        assert answer == f' {", ".join(references)}'


@pytest.mark.full
def test_a_model_that_has_learned_nothing_scores_nothing():
    cfg = TransformerConfig(
        vocab_size=TASK.vocab_size, train_len=64, layers=1, width=8, heads=1, encoding='nope()'
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
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
