"""Wrong input about kinds of models, typed into train.py and eval.py: one line says what was wrong,
what was expected, and the nearest choice. Nothing is trained.
"""

import re

import pytest

from posenc_jax.lab.cli import eval as command
from posenc_jax.lab.config import config_file
from posenc_jax.lab.runs import initial
from posenc_jax.lab.runs.run import resolve
from posenc_jax.lab.tasks.translation import Translation
from tests.lab.evaluate.run_test import make_run

SIZES = (
    'model.layers=2', 'model.width=16', 'model.heads=4', 'train.steps=2', 'train.warmup=0',
    'train.batch=8', 'train.length=8', 'eval.lengths=8,16', 'eval.samples=8', 'eval.stride=8',
)  # fmt: skip
ENCODER = ('model.kind=encoder',)
BOTH = ('model.kind=encoder_decoder', 'task=translation(words=8)')
ALIGNED = ('model.kind=encoder_decoder', 'task=translation(words=8, alignments=True)')
PARITY = 'task=chomsky15("parity_check", readout="class")'
AT = 'the evaluation at the end of training would fail: at length 16: the source of 16 tokens: '

WRONG = [
    (ENCODER, "'encoder': it sees the next tokens, which language.* to predict; use 'decoder'"),
    (
        ('model.kind=encoder_decoder', 'task=copy()'),
        "copy.. has no source to read; use 'decoder', or a task with a source",
    ),
    (('task=translation()',), "'decoder', but translation.. has a source .* 'encoder_decoder'"),
    (('task=copy()', 'cross=rope()'), "cross is 'rope..', but kind is 'decoder'; only an"),
    (('task=copy()', 'source_encoding=rope()'), "source_encoding is 'rope..', but kind is 'dec"),
    (('task=copy()', 'model.source_layers=2'), "source_layers is 2, but kind is 'decoder'; only"),
    (
        ('task=copy()', 'encoding=lm_infinite(encoding=rope(), top_k=2)'),
        r'lm_infinite\(top_k=2\) shows .* to the last token .* alone, .* use eval.decode=True',
    ),
    (('model.kind=encodr',), "kind is 'encodr'; did you mean 'encoder'"),
    ((*BOTH, 'cross=path()'), r"cross: path is .* causal attention only; use e.g. 'nope\(\)'"),
    ((*BOTH, 'cross=rop()'), "cross: unknown encoding or mixer 'rop'; did you mean 'rope'"),
    ((*BOTH, 'cross=cheems()'), "cross: cheems is a mixer; .* are attention with encod"),
    ((*BOTH, 'source_encoding=cheems()'), 'source_encoding: cheems is a mixer; cross-attention'),
    ((*BOTH, "source_pattern=('cheems()','rope()')"), 'source_pattern: cheems is a mixer'),
    ((*BOTH, "source_pattern=('rope()','nope()','rope()')"), 'source_pattern: 2 layers are not'),
    ((*BOTH, 'encoding=cheems()'), 'source_encoding or source_pattern: cheems reads tokens from'),
    ((*BOTH, 'cross=path()'), 'cross: path'),
    (('task=masked_text()', 'model.kind=encoder_decoder'), "use 'encoder', or a task with a"),
    (('task=copy()', "source_pattern=('rope()',)"), "source_pattern is .*, but kind is 'dec"),
    ((*BOTH, 'source_encoding=rop()'), "source_encoding: unknown .*'rop'; did you mean 'rope'"),
    ((*BOTH, "pattern=('rope()','nope()')"), 'must name the encodings of the source, e.g. sou'),
    ((*BOTH, 'train.segment=4'), "segment must be 0 for a model of kind 'encoder_decoder', got 4"),
    (
        (*BOTH, 'source_encoding=learned_absolute(max_len=8)', 'train.length=12'),
        'the source of 12 tokens: learned_absolute: .* position 11, which is not in 0 .. 7; use a',
    ),
    (
        (*BOTH, 'source_encoding=learned_absolute(max_len=8)'),
        AT + 'learned_absolute: .* not in 0 .. 7; .* lengths that fit: --config.eval.lengths=8',
    ),
    ((*ALIGNED,), 'the source of 8 tokens: rope takes one position per token, got 2 components'),
    ((*BOTH, 'source_encoding=xlpe()'), 'the source of 8 tokens: xlpe needs .*missing="identity"'),
    (('task=masked_text()',), "hides tokens that are to be told from both sides; use 'encoder'"),
    (
        (*ENCODER, 'task=masked_text()', 'eval.lengths=10000000', 'eval.samples=1'),
        'the end of training would fail: .* 10000000',
    ),
    (('task=copy()', 'model.pool=max'), "model.pool is 'max'; did you mean 'mean'"),
    (
        ('train.segment=4', 'encoding=cheems()'),
        'train.segment must be 0: layer 0 of the pattern is cheems, which has no attention',
    ),
    (('train.segment=4', 'encoding=tape()'), 'train.segment must be 0: tape carries a stream'),
    ((*BOTH, 'cross=window(size=2)'), 'hides keys by their index'),
    ((*ENCODER, PARITY, 'model.pool=max'), "model.pool is 'max'; did you mean 'mean'"),
    (
        (*ENCODER, 'task=chomsky15("odds_first", readout="class")'),
        "the output of odds_first has several symbols; use 'tape', or one of even_pairs, ",
    ),
    ((*ENCODER, 'task=chomsky15("parity")'), "did you mean 'parity_check'"),
    ((*ENCODER, 'task=masked_text()', 'model.tie=True'), '258 inputs for 257 .*; set tie=False'),
    (('task=copy()', 'encoding=cheems() | rope()'), 'cheems replaces attention, .* by pattern'),
    ((*ENCODER, PARITY, 'encoding=cheems()'), "left to right, .* not one of kind 'encoder'; use"),
    (('task=copy()', 'encoding=chems()'), "unknown encoding or mixer 'chems'; did you mean 'chee"),
    (
        ('task=copy()', "pattern=('cheems()','rope()','nope()')"),
        '2 layers are not a multiple of the pattern of 3 encodings; nearest: 3',
    ),
    (
        (*BOTH, 'encoding=nope()', 'extend=pi(factor=2.0)'),
        'the end of training would fail: pi extends one rotary encoding; found 0 in nope',
    ),
]  # fmt: skip


def planned(fields):
    """What train.py does with typed fields before it uses a device."""
    typed = [f'--config.{field}' for field in (*SIZES, *fields)]
    config = config_file.read('configs/default.py', typed)
    return resolve(initial.resolve(config, None))


@pytest.mark.parametrize('fields, message', WRONG)
def test_what_train_refuses(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        planned(fields)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.full
@pytest.mark.parametrize('source_encoding', ['xlpe()', 'dpe()'])
@pytest.mark.parametrize('place', [-1, 50])
def test_an_alignment_outside_the_source(monkeypatch, source_encoding, place):
    sample = Translation.sample

    def changed(self, rng, batch, length):
        out = sample(self, rng, batch, length)
        out['source_positions'][1:2, 0, 1] = place  # of the second row alone
        return out

    fields = (*ALIGNED, f'source_encoding={source_encoding}')
    assert planned(fields).cfg.source_len == 8
    monkeypatch.setattr(Translation, 'sample', changed)
    message = 'Translation: alignments must lie in 0 .. 7 .words of the source., got '
    with pytest.raises(ValueError, match=message + '(-1 .. .|. .. 50)'):
        planned(fields)
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
    task = 'task=addition(reverse_output=True, zero_pad=True, ids="coupled")'
    fields = ('encoding=seqpe(max_pos=64)', task, 'model.width=8')
    sizes = ('model.heads=2', 'model.layers=1', 'train.length=4')
    assert planned((*fields, *sizes)).cfg.encoding == 'seqpe(max_pos=64)'
    with pytest.raises(ValueError, match='seqpe'):  # ids beyond its positions are still refused
        planned((*fields[1:], *sizes, 'encoding=seqpe(max_pos=3, transfer=0.0)', 'train.length=9'))
