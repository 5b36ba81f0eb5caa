"""What training refuses before it uses a device: wrong fields, typed on a command line. One line
says what was wrong, what was expected, and the nearest choice.
"""

import math

import pytest

from posenc_jax.lab.runs import initial
from posenc_jax.lab.runs.run import resolve
from tests.lab.train import tiny

AT_END = 'eval.at_end=True; encoding=nope(); '
COUPLED = 'task=addition(ids="coupled", reverse_output=True); '
SEGMENTED = 'task=segmented_text(source_len=128, segment_len=4); '
CREAM = 'task=cream_text(factor=2); '
# Fields, separated by semicolons -> what the message says.
TINY = {  # the usual small run
    'encoding=alibbi()': "unknown encoding or mixer 'alibbi'; did you mean 'alibi'",
    'encoding=alibi(slops=2)': 'alibi has no argument .*signature',
    'pattern=alibi(),nopee()': "encoding or mixer 'nopee'; did you mean 'nope'",
    'task=adition()': "unknown task 'adition'; did you mean 'addition'",
    'task=copy() | reverse()': 'cannot be joined',
    'data.dataset=pydoc_topic': "unknown dataset 'pydoc_topic'; did you mean 'pydoc_topics'",
    'data.packing=streams': "packing is 'streams'; did you mean 'stream'",
    'model.norm=layer_norm': "norm is 'layer_norm'; did you mean 'layernorm'",
    'model.heads=3': 'width 16 is not a multiple of 3 heads',
    'model.kv_heads=3': '4 heads are not a multiple of 3 kv_heads',
    'train.steps=0': 'train.steps must be at least 1, got 0',
    'train.segment=32': 'train.segment must be below train.length = 32, or 0, got 32',
    'train.segment=8; encoding=randomized_pe(max_len=64) | rope()': (
        'train.segment must be 0: randomized_pe assigns positions to whole texts, which'
    ),
    'mesh.data=0': 'mesh.data must be at least 1, or -1 for the devices left, got 0',
    'mesh.tensor=0': 'mesh.tensor must be at least 1, got 0',
    'train.memory=8': 'train.memory must be 0 where train.segment is 0, got 8',
    'train.segment=8; model.kind=encoder': (
        "train.segment must be 0 for a model of kind 'encoder', got 8"
    ),
    'train.warmup=25': 'train.warmup must be at most train.steps = 24, got 25',
    'train.batch=9; train.accumulate=2': (
        'train.batch must be a multiple of train.accumulate = 2, got 9'
    ),
    'train.lr=-1.0': 'train.lr must be positive',
    'seed=-1': 'seed must be between 0 and 4294967295, got -1',
    'eval.split=dev': "eval.split is 'dev'",
    'eval.lengths=0': r'eval.lengths must be whole numbers of at least 1, got \(0,\)',
    'mesh.cpu_devices=-1': 'mesh.cpu_devices must be at least 0',
    'cluster.start_timeout=0': 'cluster.start_timeout must be between 10 and 86400 seconds, got 0',
    'cluster.stop_status=2': 'cluster.stop_status must be between 3 and 125, .* or 0, got 2',
    'cluster.peer_timeout=9': (
        'cluster.peer_timeout must be between 10 and 86400 seconds, or 0 for none, got 9'
    ),
    'name=../there': 'name must be a folder within workdir',
    'eval.at_end=True; eval.stride=8': (
        'would fail: at length 64: learned_absolute: .*lengths that fit: .*lengths=32.*or '
        'train without it: --config.eval.at_end=False'
    ),
    AT_END + 'eval.lengths=64,1000000000': 'needs 1000000001 tokens, but the text has',
    AT_END + 'eval.stride=8; extend=yarn(factor=2.0)': 'would fail: .*yarn',
    'eval.protocols=slidin': "protocol is 'slidin'; did you mean 'sliding'",
    'eval.positions=some': "eval.positions is 'some'",
    'eval.samples=0': 'eval.samples must be at least 1, got 0',
    COUPLED + 'encoding=position_coupling(max_position=3); train.length=4': (
        'position_coupling: position . is not in 0 .. 3'
    ),
    SEGMENTED + 'encoding=learned_absolute(max_len=32)': (
        'learned_absolute: position 127 is not in 0 .. 31'
    ),
    SEGMENTED + 'encoding=position_coupling(max_position=32)': (
        'coupling: position 127 is not in 0 .. 32'
    ),
    SEGMENTED + 'encoding=randomized_pe(max_len=64) | rope()': (
        'randomized_pe: position 127 is not in 0 .. 63'
    ),
    CREAM + 'encoding=learned_absolute(max_len=32)': (
        'learned_absolute: position 63 is not in 0 .. 31'
    ),
    CREAM + 'encoding=cream(factor=2) | rope()': 'cream: position 63 is not in 0 .. 31',
    'model.kind=encoder; encoding=nope()': "model.kind is 'encoder': .*use 'decoder'",
    'encoding=rope() | full()': 'full lets queries see later tokens',
    'pattern=rope(),rope() | prefix(length=4)': 'prefix lets queries see later tokens',
    'task=passkey(); encoding=nope()': (
        r'train.length=32, train.min_length=1: .* at least 7, got \(1, 32\)'
    ),
    'task=mqar(); encoding=nope()': r'train.min_length=1: .* at least 16, got \(1, 32\)',
    'model.width=1000000000': (
        'a model of .*width=1000000000, .* would take 83.3 EiB; at most 16 TiB are accepted'
    ),
    'train.batch=1000000000': (
        'train.batch=1000000000 rows of 32 tokens would take 358 GiB, and this machine has'
    ),
    'train.length=1000000000': (
        'train.length=1000000000: .* rows of 1000000000 tokens, 11.2 GiB each; a row holds '
        'at most 4194304'
    ),
    'task=addition(); encoding=nope(); train.length=100000000': (
        r'length \(1, 100000000\) has rows of 3\d+ tokens, .* GiB each; a row'
    ),
    AT_END + 'task=copy(); train.length=8; eval.samples=1000000000; eval.lengths=8': (
        'would fail: at length 8: eval.samples=1000000000 rows of 18 tokens would take 201 '
        'GiB, and this machine has'
    ),
    AT_END + 'eval.stride=8; eval.batch=1000000000': (
        'would fail: eval.batch=1000000000 rows of 32 tokens'
    ),
    'encoding=cope(npos=1000000000)': 'cope: its variables would take 14.9 GiB',
    'model.layers=2147483648': 'model.layers must be a whole number of 32 bits, got 2147483648',
    'train.lr=1e999': 'train.lr must be a finite number of 32 bits, got inf',
    'pattern=1,2': r'pattern must hold spec strings, got \(1, 2\)',
    'pattern=' + 'rope(),' * 300 + '; model.layers=300': (
        'pattern must hold at most 256 spec strings, got 300'
    ),
    'name=a\x00b': r"name must be text of one line without control characters, got 'a\\x00b'",
    'name=' + 'a' * 300: 'name must be a folder within workdir, of at most 255 bytes',
    'train.segment=1; train.length=100': 'train.segment must be 0, or at least train.length / 64',
}
TEXT = {  # a decoder that is evaluated at the end
    'model.kind=encoder': (
        "'encoder': it sees the next tokens, which language.* to predict; use 'decoder'"
    ),
    'model.kind=encoder_decoder; task=copy()': (
        "copy.. has no source to read; use 'decoder', or a task with a source"
    ),
    'task=translation()': "'decoder', but translation.. has a source .* 'encoder_decoder'",
    'task=copy(); cross=rope()': "cross is 'rope..', but kind is 'decoder'; only an",
    'task=copy(); source_encoding=rope()': "source_encoding is 'rope..', but kind is 'dec",
    'task=copy(); model.source_layers=2': "source_layers is 2, but kind is 'decoder'; only",
    'task=copy(); encoding=lm_infinite(encoding=rope(), top_k=2)': (
        r'lm_infinite\(top_k=2\) shows .* to the last token .* alone, .* use eval.decode=True'
    ),
    'model.kind=encodr': "kind is 'encodr'; did you mean 'encoder'",
    'task=masked_text(); model.kind=encoder_decoder': "use 'encoder', or a task with a",
    "task=copy(); source_pattern=('rope()',)": "source_pattern is .*, but kind is 'dec",
    'model.kind=encoder_decoder; task=translation(words=8, alignments=True)': (
        'the source of 8 tokens: rope takes one position per token, got 2 components'
    ),
    'task=masked_text()': "hides tokens that are to be told from both sides; use 'encoder'",
    'task=copy(); model.pool=max': "model.pool is 'max'; did you mean 'mean'",
    'train.segment=4; encoding=cheems()': (
        'train.segment must be 0: layer 0 of the pattern is cheems, which has no attention'
    ),
    'train.segment=4; encoding=tape()': 'train.segment must be 0: tape carries a stream',
    'task=copy(); encoding=cheems() | rope()': 'cheems replaces attention, .* by pattern',
    'task=copy(); encoding=chems()': "unknown encoding or mixer 'chems'; did you mean 'chee",
    "task=copy(); pattern=('cheems()','rope()','nope()')": (
        '2 layers are not a multiple of the pattern of 3 encodings; nearest: 3'
    ),
}
ENCODER = {
    'task=masked_text(); eval.lengths=10000000; eval.samples=1': (
        'the end of training would fail: .* 10000000'
    ),
    'task=chomsky15("parity_check", readout="class"); model.pool=max': (
        "model.pool is 'max'; did you mean 'mean'"
    ),
    'task=chomsky15("odds_first", readout="class")': (
        "the output of odds_first has several symbols; use 'tape', or one of even_pairs, "
    ),
    'task=chomsky15("parity")': "did you mean 'parity_check'",
    'task=masked_text(); model.tie=True': '258 inputs for 257 .*; set tie=False',
    'task=chomsky15("parity_check", readout="class"); encoding=cheems()': (
        "left to right, .* not one of kind 'encoder'; use"
    ),
}
ENCODER_DECODER = {
    'cross=path()': r"cross: path is .* causal attention only; use e.g. 'nope\(\)'",
    'cross=rop()': "cross: unknown encoding or mixer 'rop'; did you mean 'rope'",
    'cross=cheems()': 'cross: cheems is a mixer; .* are attention with encod',
    'source_encoding=cheems()': 'source_encoding: cheems is a mixer; cross-attention',
    "source_pattern=('cheems()','rope()')": 'source_pattern: cheems is a mixer',
    "source_pattern=('rope()','nope()','rope()')": 'source_pattern: 2 layers are not',
    'encoding=cheems()': 'source_encoding or source_pattern: cheems reads tokens from',
    'source_encoding=rop()': "source_encoding: unknown .*'rop'; did you mean 'rope'",
    "pattern=('rope()','nope()')": 'must name the encodings of the source, e.g. sou',
    'train.segment=4': "segment must be 0 for a model of kind 'encoder_decoder', got 4",
    'source_encoding=learned_absolute(max_len=8); train.length=12': (
        'the source of 12 tokens: learned_absolute: .* position 11, which is not in 0 .. 7; use a'
    ),
    'source_encoding=learned_absolute(max_len=8)': (
        'the evaluation at the end of training would fail: at length 16: the source of 16 '
        'tokens: learned_absolute: .* not in 0 .. 7; .* lengths that fit: --config.eval.lengths=8'
    ),
    'source_encoding=xlpe()': 'the source of 8 tokens: xlpe needs .*missing="identity"',
    'cross=window(size=2)': 'hides keys by their index',
    'encoding=nope(); extend=pi(factor=2.0)': (
        'the end of training would fail: pi extends one rotary encoding; found 0 in nope'
    ),
}
FIELD = {  # a picture that a network is fitted to
    'encoding=alibi()': "encoding is 'alibi..', which is not read; model.kind is 'field'",
    'extend=yarn(factor=4.0)': 'extend is .* not read',
    "pattern=('rope()',)": 'pattern is .* not read',
    'model.layers=2': 'model.layers is 2, which is not read.* leave it at 6',
    'train.tune=norms': 'train.tune is .* not read',
    'init.source=runs/x': 'init.source is .* not read',
    'train.z_loss=0.1': 'z_loss is 0.1, but picture.* predicts value',
    'model.kind=decoder; field=mlp()': "field is 'mlp..', which a 'field' alone reads",
    'model.kind=decoder': "'decoder', but picture.* has points to read; use 'field'",
    'model.kind=feild': "model.kind is 'feild'; did you mean 'field'",
    'task=copy()': "'field', but copy.. has tokens to read; use 'decoder'",
    'field=sirren()': "unknown field 'sirren'; did you mean 'siren'",
    'field=siren() | mlp()': 'networks cannot be joined',
    'field=alibi()': "'alibi' is registered as encoding, not as field",
    'features=siren()': "'siren' is registered as field, not as coordinates",
    'features=shifted_basis()': 'with 1 coordinates; those of the task have 2',
    'features=mspe(features=8); field=poly_inr(width=8, levels=2, style=4)': (
        "reads the coordinates themselves; features must be '', got 'mspe"
    ),
    'field=bit_plane_inr(pins(levels=30))': 'levels must be at least 1 and at most 24, got 30',
    'train.length=0': 'train.length must be at least 1, got 0',
    'train.batch=100': 'train.batch is 100, but .* has 64 points; nearest: 64',
    'train.length=600; train.batch=8': 'has only 512 pixels along a side',
    'eval.lengths=8,0': 'eval.lengths must be whole numbers of at least 1',
    'eval.lengths=8,600': 'at length 600: .* lengths that fit: --config.eval.lengths=8',
    'task=picture("chna")': "picture name is 'chna'; did you mean 'china'",
    'task=bit_planes(copy())': 'bit_planes takes a picture',
    'task=bit_planes(picture("synthetic"), bits=12)': 'bits=12 is not one of 8, 16',
}

SMALL = {
    'model.layers': 2, 'model.width': 16, 'model.heads': 4, 'train.steps': 2, 'train.warmup': 0,
    'train.batch': 8, 'train.length': 8, 'eval.lengths': (8, 16), 'eval.samples': 8,
    'eval.stride': 8,
}  # fmt: skip
TRANSLATION = {'model.kind': 'encoder_decoder', 'task': 'translation(words=8)'}
PICTURE = {
    'model.kind': 'field', 'task': 'picture("synthetic")', 'train.steps': 12, 'train.batch': 64,
    'train.length': 8, 'train.warmup': 2, 'train.weight_decay': 0.0,
}  # fmt: skip
TABLES = (
    (tiny.FIELDS, TINY),
    (SMALL, TEXT),
    (SMALL | {'model.kind': 'encoder'}, ENCODER),
    (SMALL | TRANSLATION, ENCODER_DECODER),
    (PICTURE, FIELD),
)


def planned(base, fields, workdir='runs'):
    """What train.py does with typed fields before it uses a device."""
    typed = tiny.typed(workdir, *filter(None, fields.split('; ')), base=base)
    return resolve(initial.resolve(typed, None))


@pytest.mark.parametrize(
    'base, fields, message',
    [(base, fields, message) for base, rows in TABLES for fields, message in rows.items()],
)
def test_wrong_fields_are_one_line(base, fields, message, tmp_path):
    with tiny.refused(message):
        planned(base, fields, tmp_path)


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('train__steps', 10**5000, 'a whole number of 32 bits, got a whole number of 16610 bits'),
        ('model__epsilon', math.nan, 'model.epsilon must be a finite number of 32 bits, got nan'),
    ],
    ids=['a huge number', 'no number'],
)
def test_values_that_nobody_types(field, value, message, tmp_path):
    with tiny.refused(message):
        resolve(tiny.config(tmp_path, **{field: value}))
