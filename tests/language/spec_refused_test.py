"""The spec language: everything that it does not read is an error which says what was wrong."""

import builtins
import os
import subprocess

import pytest

import posenc_jax as pj
from posenc_jax.language.spec import MAX_SPEC_CHARS, parse
from posenc_jax.protocol import registry
from posenc_jax.protocol.errors import SpecError
from tests.language.probes import fails, made

pytestmark = pytest.mark.usefixtures('probes')


@pytest.mark.parametrize(
    'spec, message',
    [
        ('probe(rate=1' + '0' * 400 + ')', 'rate=1000.* is not float; signature: probe'),
        ('probe(rate={})', "rate: '{}' .* is not a value of the spec language; signature: probe"),
        ('probe(rate=probe())', 'rate: .* a plain value is expected here .*; signature: probe'),
    ],
)
def test_every_wrong_value_shows_the_signature(spec, message):
    with pytest.raises(SpecError, match=message):
        parse(spec)


DEEP = [  # not too long, but nested too deeply
    '(' * 1900 + 'probe()' + ')' * 1900,
    'probe(inner=' * 300 + 'probe(width=x)' + ')' * 300,
    'probe(width=' + '-' * 3900 + '1)',
    'probe(sections=' + '(' * 1900 + ')' * 1900 + ')',
    'probe(sections=' + '[' * 1900 + ']' * 1900 + ')',
    'probe' + '.x' * 1900 + '()',
    'probe' + '()' * 1900,
    'probe(width=' + '9' * 3900 + '.x)',
    'probe(rate=' + '9' * 3900 + 'e9)',
]


@pytest.mark.parametrize(
    'spec',
    [
        'probe(name=' + '"x' * 1999 + '")',
        'probe(' + 'x' * 3000 + '=3)',
        'p' * 3999,
        'probe(width=0x' + 'f' * 3900 + ')',
        'probe(width=' + '9' * 3900 + ')',
        'probe(sections=(0x' + 'f' * 3900 + ',))',
        'probe(name="a\nb\0", width="a\nb\u2028")',
        'probe(name="a\nb',
        'probe(style="a\\nb")',
        '(' * 2000,
        '(' * 90 + ')' * 90,
        'probe(sections=' + '[' * 90 + ']' * 90 + ')',
        'probe(inner=' * 60 + 'probe(rate="x")' + ')' * 60,
        'probe(inner=' * 300 + 'probe()' + ')' * 300,
        '-' * 3000 + '1',
        ' ' * 10,
        'probe(5rate=1)',
        5 * ['probe()'] * 500,
        *DEEP,
    ],
)
def test_one_short_line(spec, capsys):
    assert spec not in DEEP or len(spec) <= MAX_SPEC_CHARS
    message = fails(spec)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 1000
    assert not capsys.readouterr().err


REFUSED = {  # spec -> what the message says
    'alibbi()': ["'alibbi'", "did you mean 'alibi'"],
    'probe(freqs=slwo(factor=2))': ["'slwo'", "'slow'"],
    'probe() | ned()': ["'ned'"],
    'zzzzzzzz()': ['valid: ', "'alibi'"],
    'slow(factor=2)': ["'slow' is registered as frequencies, not as encoding"],
    'probe(freqs=probe())': ["'probe' is registered as encoding, not as frequencies"],
    'probe(inner=slow(factor=2))': ['frequencies, not as encoding'],
    'probe(widht=2)': [
        "no argument 'widht'",
        "did you mean 'width'",
        'signature: probe(width: int = 3',
    ],
    'probe(freqs=slow(factr=2))': ["slow has no argument 'factr'", 'slow(factor: float'],
    'probe(rngs=3)': ["no argument 'rngs'"],
    'needy()': ["needy needs 'size'", 'signature: needy(size: int)'],
    'needy': ["needs 'size'"],
    'needy(1, size=2)': ["'size' twice"],
    'needy(1, 2)': ['at most 1', 'got 2', 'signature'],
    'needy(size=1, size=2)': [],
    'probe(width=-True)': [],
    'probe(rate=-True)': [],
    'probe(flag=-True)': [],
    'probe(rate=--1)': [],
    'probe(rate=+1)': [],
    'probe(rate=~1)': [],
    'probe(rate=not 1)': [],
    'probe(width=-7 + 0)': ['not a value of the spec language'],
    'probe(width=needy(1))': ['a plain value is expected here (int)'],
    'probe(name=probe)': ['a plain value is expected here (str)'],
    'probe(sections=(needy(1),))': ['plain value'],
    'probe(freqs=slow(factor=1) | slow(factor=2))': ['only encodings are joined'],
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_specs_are_refused(spec):
    fails(spec, *REFUSED[spec])


def test_random_numbers_are_no_argument():
    assert 'rngs' not in fails('probe(x=3)').split('signature')[1]


@pytest.mark.parametrize(
    'argument, expected',
    [
        ('width="7"', 'is not int'),
        ('width=7.0', 'is not int'),
        ('width=True', 'is not int'),
        ('width=None', 'is not int'),
        ('rate="fast"', 'is not float'),
        ('rate=True', 'is not float'),
        ('rate=1e999', 'is not float'),
        ('flag=1', 'is not bool'),
        ('flag="True"', 'is not bool'),
        ('style="haff"', "is not one of 'half', 'interleaved'; did you mean 'half'?; signature"),
        ('style="round"', "is not one of 'half', 'interleaved'; signature"),
        ('style=0', "is not one of 'half'"),
        ('name=3', 'is not str'),
        ('sections=3', 'is not tuple[int, ...]'),
        ('sections=(1, 2.5)', 'is not tuple[int, ...]'),
        ('pair=(1,)', 'is not tuple[int, float]'),
        ('freqs=3', 'is not a call of kind frequencies'),
        ('inner="alibi()"', 'is not a call of kind encoding'),
        ('heads=2.5', 'is not int'),
    ],
)
def test_mistyped_arguments(argument, expected):
    fails(f'probe({argument})', expected, argument.split('=')[0], 'signature: probe(')


def test_constructor_rejections_name_the_call():
    with pytest.raises(SpecError, match=r'probe\(width=0\): width must be positive, got 0'):
        made('probe(width=0)')


@pytest.mark.parametrize('spec', [None, 3, b'probe()', ['probe()'], ('probe()',)])
def test_not_a_string(spec):
    fails(spec, 'a spec is a string', type(spec).__name__)


INJECTIONS = [
    '__import__("os").system("touch pwned")',
    '__import__("os")',
    'eval("1")',
    'exec("1")',
    'open("pwned", "w")',
    'probe.__class__()',
    'probe().__init__()',
    'probe(width=probe.width)',
    'probe(name="x".upper())',
    'probe(name=f"{open(chr(112), chr(119))}")',
    'probe(name=f"x")',
    'probe(name="a" + "b")',
    'probe(name="%s" % 1)',
    'probe(width=(lambda: 1)())',
    'probe(inner=lambda: 1)',
    'lambda: probe()',
    '(lambda: probe)()()',
    'probe(width:=3)',
    '(probe := 1)',
    'probe(**{"width": 3})',
    'probe(**probe)',
    'probe(*(1, 2))',
    'probe(*[1])',
    'probe(sections=(*(1, 2),))',
    'probe(width=1 if True else 2)',
    'probe() if True else needy(1)',
    'probe(width=[x for x in (1,)][0])',
    'probe(x for x in (1,))',
    '[probe() for _ in (1,)]',
    'probe(width=(1)[0])',
    'probe[0]()',
    'probe()()',
    'probe(width=3 ** 9)',
    'probe(width=10 ** 10 ** 10)',
    'probe(width=1 << 99)',
    'probe(width=1 | 2)',
    'probe() & probe()',
    'probe() or probe()',
    'probe() + probe()',
    'not probe()',
    '-probe()',
    'probe() < needy(1)',
    'probe(name={"a": 1})',
    'probe(name={1})',
    'probe(name=b"bytes")',
    'probe(rate=1j)',
    'probe(rate=...)',
    'probe(width=await x)',
    'probe(width=(yield))',
    'probe(); probe()',
    'import os',
    'x = probe()',
    'probe()\nprobe()',
    'del probe',
    '"probe()"',
    '3',
    '()',
    '(probe(), probe())',
    '[probe()]',
    '',
    '   ',
    '|',
    'probe() |',
    '| probe()',
    'probe() || probe()',
    'probe(',
    'probe)',
    'probe(width=)',
    'probe(=3)',
    'probe(,)',
    'probe(width 3)',
    'probe() # | needy(1)\n | alibi',
    'probe\x00()',
    '\ud800()',
    'probe(name="\ud800',
]


@pytest.mark.parametrize('spec', INJECTIONS)
def test_a_spec_is_data(spec, monkeypatch, tmp_path):
    """Nothing outside the language is accepted and nothing at all is executed."""
    monkeypatch.chdir(tmp_path)

    def forbidden(*args, **kwargs):
        raise AssertionError('executed')

    with monkeypatch.context() as patch:
        for module, name in (
            (builtins, 'eval'),
            (builtins, 'exec'),
            (os, 'system'),
            (subprocess, 'Popen'),
        ):
            patch.setattr(module, name, forbidden)
        with pytest.raises(SpecError) as error:
            parse(spec)
    assert str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'spec', ['(' * 150 + 'probe()' + ')' * 150, 'probe(inner=' * 200 + 'probe()' + ')' * 200]
)
def test_nesting_is_either_read_or_refused(spec):
    try:
        assert parse(str(parse(spec))) == parse(spec)
    except SpecError:
        pass


def test_huge_strings_are_refused_by_size():
    fails(
        'probe(name="' + 'a' * 10**7 + '")',
        f'at most {MAX_SPEC_CHARS}',
        str(10**7 + len('probe(name="")')),
    )
    long = ' | '.join(['probe()'] * 390)
    assert len(long) <= MAX_SPEC_CHARS and len(parse(long).nodes) == 390
    fails('probe(width=' + '9' * 10**5 + ')', f'at most {MAX_SPEC_CHARS}')


def test_errors_come_before_anything_is_built():
    """The last link is wrong, so the first (whose constructor would complain too) is never
    reached.
    """
    with pytest.raises(SpecError, match='unknown encoding'):
        pj.make('probe(width=0) | nonsense()', heads=4)


NEAREST = {  # spec -> the nearest key
    **dict.fromkeys(('RoPE()', 'ROPE()', 'Rope()', 'ropee()', 'RoPE', 'pj.rope()'), 'rope'),
    **dict.fromkeys(('rope-2d', 'rope-2d()', 'alibi() | rope-2d()', '2d_rope'), 'rope'),
    **dict.fromkeys(('Alibi()', 'ALiBi'), 'alibi'),
    'NoPE': 'nope',
    'T5-RPE()': 't5_rpe',
    'rope() | Yarn(factor=4)': 'yarn',
}
INSTEAD = {  # spec -> how it is written instead
    'rope() | yarn(factor=4)': "or extend(encoding, 'yarn(factor=4)', train_len=",
    'rope() | yarn': 'write rope(freqs=yarn()), or',
    'rope() | dca(chunk=8)': 'write dca(encoding=rope()), or extend(encoding, "dca()")',
    'rope() | segmented_sequences(4)': "extend='segmented_sequences(4)'",
    'rope() | gru()': 'a mixer is a layer of a model',
    'siren()': 'make_field(...)',
}


@pytest.mark.parametrize('spec', [*NEAREST, *INSTEAD])
def test_what_is_no_encoding_gets_one_line_with_what_was_meant(spec):
    with pytest.raises(SpecError) as error:
        pj.make(spec, heads=2, head_dim=8)
    message = str(error.value)
    assert INSTEAD.get(spec, f"did you mean '{NEAREST.get(spec)}'") in message
    assert len(message.splitlines()) == 1 and (spec in INSTEAD or len(message) < 200)


def test_an_argument_that_no_model_knows_is_named_with_the_nearest_one(monkeypatch):
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))

    @pj.register('of_heads', kind='encoding')
    class OfHeads(pj.Encoding):
        def __init__(self, head: int = pj.CONTEXT):
            self.head = head

    with pytest.raises(SpecError, match="'head' is CONTEXT, but a model .*; did you mean 'heads'"):
        pj.make('of_heads()', heads=4)
    assert repr(pj.make('of_heads(head=4)')) == 'of_heads(head=4)'
