"""A public model without positions: the windows that it reads, the model that sees few tokens, and
what the claims ask for.
"""

import types

import jax
import numpy as np
import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import public_drope
from posenc_jax.lab.conversion.drope import drop
from posenc_jax.lab.model.tiny import tiny_model
from tests.evidence.written import table


@pytest.fixture
def public(monkeypatch):
    """Files whose tokens are their bytes: those of training are above 100, those of test below."""
    texts = {
        'train': [bytes(range(101, 127)), bytes(range(110, 121))],
        'test': [bytes(range(1, 40)), bytes(range(50, 70))],
    }
    monkeypatch.setattr(public_drope, 'stdlib_code', dict)
    monkeypatch.setattr(public_drope, 'split_documents', lambda _, split: texts[split])
    return types.SimpleNamespace(encode=lambda text: np.frombuffer(text.encode(), np.uint8))


def test_rows_are_pieces_of_files_and_no_token_is_read_twice(public):
    rows = public_drope.rows_of(public, 'train', 0, 7, 5)
    assert rows.shape == (7, 5) and (np.diff(rows.astype(int)) == 1).all() and rows.min() > 100
    assert len({tuple(row) for row in rows}) == 7
    one = public_drope.rows_of(public, 'test', 0, 2, 5, each_file=1)
    assert sorted(row[0] >= 50 for row in one) == [False, True]
    orders = [public_drope.rows_of(public, 'train', seed, 7, 5).tolist() for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_too_few_files_are_one_line(public, capsys):
    with pytest.raises(SystemExit):
        public_drope.rows_of(public, 'test', 0, 3, 5, each_file=1)
    assert 'test files have 2 windows of 5 tokens, fewer than 3' in capsys.readouterr().err


def test_all_losses_are_of_the_same_tokens_and_few_are_seen(monkeypatch):
    monkeypatch.setattr(public_drope, 'LOCAL', 2)
    model = drop(tiny_model('rope()', vocab_size=9, layers=2))
    texts = np.array(jax.random.randint(jax.random.key(0), (3, 17), 0, 9))
    read = lambda model: [value for *_, value in public_drope.losses('a', model, texts, 4)]
    far, few = read(model), read(public_drope.local(model))
    assert np.ptp(few) < 1e-5 < 1e-3 < np.ptp(far)  # two layers see two tokens back
    chances = jax.nn.log_softmax(model(texts[:, -5:-1]))[:, -2:]
    by_hand = -np.take_along_axis(np.asarray(chances), texts[:, -2:, None], axis=-1).mean()
    assert far[0] == pytest.approx(by_hand, rel=1e-5)


def effects(folder, drope, window, far):
    values = {
        ('dropped', 256): 6.0, ('tuned', 256): 2.0, ('drope', 256): drope, ('window', 256): window,
        ('drope, scaled', 1024): far, ('window', 1024): window,
    }  # fmt: skip
    rows = [('loss', name, x, 0, value) for (name, x), value in values.items()]
    table(folder, rows)
    return [CLAIMS[name].how.effects(ResultRows(folder))[0] for name in ('FL17', 'FL18')]


def test_a_model_that_reads_few_tokens_must_be_worse(tmp_path):
    assert effects(tmp_path / 'a', 3.0, 3.4, 2.9) == pytest.approx([0.1, 0.12])
    assert effects(tmp_path / 'b', 3.0, 3.0, 3.0) == pytest.approx([0.0, 0.0])
    assert effects(tmp_path / 'c', 5.0, 5.9, 5.5) == pytest.approx([-0.25, -0.48])
