"""A public checkpoint is evaluated like a run: its own tokens, its declared scaling, extensions,
and clear refusals.
"""

import dataclasses
import math
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from posenc_jax.lab.config import protocols
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.evaluate.scoring import token_scores
from posenc_jax.lab.pretrained import export_pretrained, is_pretrained
from posenc_jax.lab.runs.prepare import home_of
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.language import Language
from tests.small_models import small_model


def byte_level(*merges):
    """A tokenizer of the 256 bytes, and of merged tokens behind them."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map(''.join, merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('public')
    tokenizer = byte_level(('t', 'h'), ('th', 'e'))
    sizes = dict(vocab_size=tokenizer.get_vocab_size(), train_len=16, layers=1, width=16, heads=2)
    model = small_model(**sizes, mlp='swiglu', mlp_width=16, encoding='rope()')
    export_pretrained(model, folder / 'model', tokenizer=tokenizer)
    (folder / 'a.txt').write_text('the theme of the thesis: über them. ' * 60)
    return folder, model


def overrides(folder, **more):
    own = {
        'data.dataset': 'text:a.txt',
        'data.data_dir': str(folder),
        'eval.lengths': (16, 32),
        'eval.stride': 8,
        'eval.tokens': 64,
    }
    return {**own, **more}


def test_language_reads_the_tokens_of_the_model(checkpoint):
    folder, _ = checkpoint
    task = Language('text:a.txt', str(folder), tokenizer=str(folder / 'model'))
    ids = task.encode('the thü')
    assert task.vocab_size == 258 and task.decode(ids) == 'the thü'
    assert task.bytes_of[ids].tolist() == [3, 1, 2, 1, 1]


def test_perplexity_and_bits_per_byte_are_those_of_the_model(checkpoint):
    folder, model = checkpoint
    assert is_pretrained(folder / 'model')
    asked = overrides(folder, **{'eval.protocols': ('nonoverlapping',)})
    (run,) = evaluate([folder / 'model'], asked).runs
    task = Language('text:a.txt', str(folder), tokenizer=str(folder / 'model'))
    stream = task.tokens('test')
    lengths = tuple(sorted({m.length for m in run.measurements}))
    first = next(m for m in run.measurements if m.length == lengths[0] == 16)
    plans = protocols.plan(len(stream) - 1, lengths, ('nonoverlapping',), tokens=64, stride=1)
    index = plans[0][2].start[:, None] + np.arange(16)
    assert first.tokens == index.size == 64
    nll, _ = token_scores(model, jnp.asarray(stream[index]), jnp.asarray(stream[index + 1]))
    total = float(np.asarray(nll, np.float64).sum())
    assert first.value == pytest.approx(math.exp(total / 64), rel=1e-4)
    count = task.bytes_of[stream[index + 1]].sum()
    assert first.bits_per_byte == pytest.approx(total / math.log(2) / count, rel=1e-4)


@pytest.mark.parametrize('task', ['passkey_text(digits=2)', 'kv_retrieval()'])
@pytest.mark.full
def test_text_tasks_read_its_tokens_at_every_depth(checkpoint, tmp_path, task):
    folder, model = checkpoint
    changes = {'task': task, 'eval.lengths': (400, 500), 'eval.depths': (0, 1), 'eval.samples': 3}
    results = evaluate([folder / 'model'], changes)
    (run,) = results.runs
    cells = [(m.length, m.depth, m.samples) for m in run.measurements]
    assert cells == [(n, d, 3) for n in (400, 500) for d in (0, 1)]
    tokenizer = str(folder / 'model')
    assert (run.task, run.dataset) == (task, '') and run.settings['data.tokenizer'] == tokenizer
    own = make_task(ConfigDict({'task': task, 'data': {'tokenizer': tokenizer}}))
    last, drawn = dataclasses.replace(own, depth=1.0), dict(batch_size=3, seed=SEED, split='test')
    batch = last.dataset(length=500, **drawn)[0]
    nll, _ = token_scores(model, jnp.asarray(batch['tokens']), jnp.asarray(batch['targets']))
    expected = float(nll[batch['loss_mask'] > 0].mean())
    assert run.measurements[-1].nll == pytest.approx(expected, rel=1e-4)
    written = [path.name for path in results.write(tmp_path)]
    assert written == ['results.json', 'results.csv', 'by_depth.png', 'pictures.md']


@pytest.mark.full
def test_extensions_apply_to_it(checkpoint):
    folder, _ = checkpoint
    path = folder / 'model'
    plain, longer = evaluate([path, f'{path} | yarn(factor=2.0)'], overrides(folder)).runs
    assert plain.encoding == longer.encoding == 'rope(base=10000.0)'
    assert longer.extend == 'yarn(factor=2.0)'
    value = lambda run: [m.value for m in run.measurements]
    assert len(value(plain)) == len(value(longer)) and value(plain) != value(longer)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'eval.lengths': (100000,)}, 'needs 100001 tokens'),
        ({'extend': 'yran(factor=2.0)'}, "did you mean 'yarn'"),
        ({'task': 'copy()'}, '258 token ids; copy.. has'),
        ({'data.tokenizer': ''}, '258 token ids; language.. has 257'),
        (
            {'eval.depths': (0.5,)},
            r'language\(\) has no depth; tasks with one: kv_retrieval, passkey, passkey_text',
        ),
    ],
)
def test_wrong_requests(checkpoint, change, message):
    folder, _ = checkpoint
    with pytest.raises(ValueError, match=message):
        evaluate([folder / 'model'], overrides(folder, **change))


def test_without_a_tokenizer_there_is_no_text(checkpoint, tmp_path):
    folder, model = checkpoint
    export_pretrained(model, tmp_path / 'bare')
    with pytest.raises(ValueError, match='bare has no tokenizer.json'):
        evaluate([tmp_path / 'bare'], overrides(folder))


def test_each_checkpoint_has_a_place_and_a_name_of_its_own(checkpoint, tmp_path, monkeypatch):
    folder, _ = checkpoint
    other = tmp_path / 'there' / 'model'
    shutil.copytree(folder / 'model', other)
    first, second = home_of(str(folder / 'model')), home_of(f'{other} | yarn(factor=2.0)')
    assert first != second and {place.parent.as_posix() for place in (first, second)} == {'runs'}
    assert all(re.fullmatch('model-[0-9a-f]{6}', place.name) for place in (first, second))
    (other / 'sub').mkdir()
    monkeypatch.chdir(other)
    for same in ('.', '../model', './', 'sub/..', str(other) + '/', f'{other}/.'):
        assert home_of(same) == second, same
    shutil.copytree(other, other / 'model-1.7B', ignore=shutil.ignore_patterns('model-*', 'sub'))
    assert home_of('model-1.7B').name.startswith('model-1.7B-')

    asked = overrides(folder, **{'data.tokenizer': str(other)})
    results = evaluate([folder / 'model', other, '../model', './'], asked)
    assert [run.run for run in results.runs] == [str(folder / 'model'), str(other)]
    assert len({series.label for series in results.series}) == 2
    assert all(len(series.runs) == 1 for series in results.series)
