"""Wrong input about kinds of models: ids outside a vocabulary or a source, and what eval.py refuses
in one line. Nothing is trained.
"""

import re

import pytest

from posenc_jax.lab.cli import eval as command
from posenc_jax.lab.tasks.translation import Translation
from tests.lab.config.refused_test import SMALL, TRANSLATION, planned
from tests.lab.evaluate.run_test import make_run


@pytest.mark.full
@pytest.mark.parametrize('source_encoding', ['xlpe()', 'dpe()'])
@pytest.mark.parametrize('place', [-1, 50])
def test_an_alignment_outside_the_source(monkeypatch, source_encoding, place):
    sample = Translation.sample

    def changed(self, rng, batch, length):
        out = sample(self, rng, batch, length)
        out['source_positions'][1:2, 0, 1] = place  # of the second row alone
        return out

    base = SMALL | TRANSLATION | {'task': 'translation(words=8, alignments=True)'}
    asked = f'source_encoding={source_encoding}'
    assert planned(base, asked).cfg.source_len == 8
    monkeypatch.setattr(Translation, 'sample', changed)
    message = 'Translation: alignments must lie in 0 .. 7 .words of the source., got '
    with pytest.raises(ValueError, match=message + '(-1 .. .|. .. 50)'):
        planned(base, asked)
    data = Translation(words=8, alignments=True).dataset(length=8, batch_size=4, seed=0)
    with pytest.raises(ValueError, match=message):
        data[3]


@pytest.mark.parametrize('name, size', [('tokens', 11), ('targets', 11), ('source', 9)])
def test_ids_of_a_task_outside_its_vocabulary(monkeypatch, name, size):
    """Such ids would become NaN, or a loss of a target that no logit stands for."""
    sample = Translation.sample

    def changed(self, rng, batch, length):
        out = sample(self, rng, batch, length)
        out[name][0, 0] = size
        return out

    monkeypatch.setattr(Translation, 'sample', changed)
    data = Translation(words=8).dataset(length=8, batch_size=2, seed=0)
    told = rf'Translation: {name} must lie in 0 .. {size - 1} \(.*_size\), got 0 .. {size}'
    with pytest.raises(ValueError, match=told):
        data[0]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    small = dict(layers=1, width=16, heads=2)
    sizes = dict(train={'length': 8}, eval={'lengths': (8,), 'samples': 4})
    make_run(
        root / 'both', encoding='nope()', source_encoding='learned_absolute(max_len=8)',
        task='translation(words=8)', model={**small, 'kind': 'encoder_decoder', 'tie': False},
        **sizes,
    )  # fmt: skip
    make_run(
        root / 'class', encoding='nope()', task='chomsky15("parity_check", readout="class")',
        model={**small, 'kind': 'encoder', 'tie': False}, **sizes,
    )  # fmt: skip
    return root


@pytest.mark.full
@pytest.mark.parametrize(
    'run, options, message',
    [
        ('both', ['eval.lengths=8,16'], 'the source of 16 tokens: learned_abs.* lengths that fit'),
        ('both', ['task=copy()'], 'trained on 11 token ids; copy.. has '),
        ('both', ['task=translation(words=16)'], 'trained on 11 token ids; .*16. has 19'),
        ('both', ['extend=pi(factor=2.0)'], 'pi extends one rotary encoding'),
        ('both', ['extend=yran(factor=2.0)'], "did you mean 'yarn'"),
        (
            'class',
            ['task=chomsky15("odds_first")'],
            'to predict the class of a row, but .* asks for tokens; use',
        ),
        ('class', ['task=chomsky15("even_pair", readout="class")'], "did you mean 'even_pairs'"),
        ('class', ['eval.depths=0,1'], 'has no depth; tasks with one'),
    ],
)
def test_what_eval_refuses(runs, capsys, run, options, message):
    typed = [f'--run={runs / run}', *(f'--config.{option}' for option in options)]
    assert command.main(typed) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('eval.py: ')
    assert re.search(message, said), said


def test_an_encoding_may_read_its_parameters_where_it_places_ids():
    task = 'addition(reverse_output=True, zero_pad=True, ids="coupled")'
    base = {'task': task, 'model.width': 8, 'model.heads': 2, 'model.layers': 1, 'train.length': 4}
    read = lambda asked: planned(SMALL | base, f'encoding={asked}').cfg.encoding
    assert read('seqpe(max_pos=64)') == 'seqpe(max_pos=64)'
    with pytest.raises(ValueError, match='seqpe'):  # ids beyond its positions are still refused
        read('seqpe(max_pos=3, transfer=0.0); train.length=9')
