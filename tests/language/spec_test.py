"""The spec language: what it reads, and that everything else is an error which says what was
wrong.
"""

import builtins
import dataclasses
import os
import subprocess
from typing import ClassVar, Literal

import pytest

import posenc_jax as pj
from posenc_jax.language.spec import CONTEXT, MAX_SPEC_CHARS, build, parse
from posenc_jax.protocol import registry
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.families import Frequencies
from posenc_jax.protocol.registry import register


@pytest.fixture(autouse=True)
def probes(monkeypatch):
    """A registry of its own with one encoding of every argument type, and two frequency rules."""
    registry.entries()  # which loads all methods
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))

    @register('probe', kind='encoding')
    class Probe(Encoding):
        def __init__(
            self,
            width: int = 3,
            rate: float = 0.5,
            flag: bool = False,
            style: Literal['half', 'interleaved'] = 'half',
            name: str = 'x',
            sections: tuple[int, ...] | None = None,
            pair: tuple[int, float] = (1, 2.0),
            freqs: Frequencies | None = None,
            inner: Encoding | None = None,
            heads: int = CONTEXT,
            rngs=CONTEXT,
        ):
            if width < 1:
                raise ValueError(f'width must be positive, got {width}')
            self.given = dict(
                width=width,
                rate=rate,
                flag=flag,
                style=style,
                name=name,
                sections=sections,
                pair=pair,
            )
            self.given |= dict(freqs=freqs, heads=heads)
            self.inner = inner

    @register('needy', kind='encoding')
    class Needy(Encoding):
        def __init__(self, size: int):
            self.size = size

    @register('slow', kind='frequencies')
    @dataclasses.dataclass(frozen=True)
    class Slow:
        spec_kind: ClassVar[str] = 'frequencies'
        factor: float
        beta: float = 1.0


def fails(spec, *words, kinds=('encoding',)):
    with pytest.raises(SpecError) as error:
        parse(spec, kinds)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


def made(spec):
    return build(parse(spec).nodes[0], {'heads': 4, 'rngs': None})


@pytest.mark.parametrize(
    'argument, expected',
    [
        ('width=7', 7),
        ('width=-7 + 0', None),
        ('rate=2', 2.0),
        ('rate=-1e-3', -1e-3),
        ('flag=True', True),
        ('style="interleaved"', 'interleaved'),
        ('name="a b|c(d)"', 'a b|c(d)'),
        ('sections=(1, 2, 3)', (1, 2, 3)),
        ('sections=[1, 2]', (1, 2)),
        ('sections=()', ()),
        ('sections=None', None),
        ('pair=(3, 4)', (3, 4.0)),
    ],
)
def test_values(argument, expected):
    name = argument.split('=')[0]
    if expected is None and 'None' not in argument:
        fails(f'probe({argument})', 'not a value of the spec language')
        return
    value = made(f'probe({argument})').given[name]
    assert value == expected and type(value) is type(expected)


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
    ],
)
def test_one_short_line(spec, capsys):
    message = fails(spec)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 1000
    assert not capsys.readouterr().err


def test_integers_serve_as_floats_and_stay_typed():
    assert type(made('probe(rate=3)').given['rate']) is float
    assert type(made('probe(pair=(3, 4))').given['pair'][1]) is float


def test_positional_arguments_follow_the_signature():
    assert made('probe(5, 0.25, True)').given['rate'] == 0.25


def test_context_fills_and_the_spec_may_repeat_it():
    assert made('probe()').given['heads'] == made('probe(heads=4)').given['heads'] == 4
    with pytest.raises(SpecError, match='heads=2, but the model has heads=4'):
        made('probe(heads=2)')
    with pytest.raises(SpecError, match='heads.*as argument'):
        build(parse('probe()').nodes[0], {'rngs': None})


def test_nested_calls():
    probe = made('probe(freqs=slow(factor=4), inner=probe(width=2) | needy(1))')
    assert probe.given['freqs'].factor == 4.0
    assert [type(part).__name__ for part in probe.inner.parts] == ['Probe', 'Needy']


@pytest.mark.parametrize(
    'spec',
    [
        'probe()',
        'probe',
        '  probe ( width = 2 ,)\n',
        'probe(width=2) | needy(size=3) | probe()',
        'probe(freqs=slow(factor=4), inner=probe(inner=needy(2)) | probe())',
        'probe(name="it\'s \\"quoted\\" | \\\\ ünï", sections=(1,), pair=(1, 1e-9), rate=-0.0)',
        'probe(name="", sections=())',
    ],
)
def test_round_trip(spec):
    parsed = parse(spec)
    assert parse(str(parsed)) == parsed
    assert str(parse(str(parsed))) == str(parsed)


def test_chain_order_is_kept():
    assert [node.entry.key for node in parse('needy(1) | probe() | needy(2)').nodes] == [
        'needy',
        'probe',
        'needy',
    ]


# Wrong input, one kind at a time.


def test_unknown_name_suggests():
    fails('alibbi()', "'alibbi'", "did you mean 'alibi'")
    fails('probe(freqs=slwo(factor=2))', "'slwo'", "'slow'")
    fails('probe() | ned()', "'ned'")
    fails('zzzzzzzz()', 'valid: ', "'alibi'")


def test_name_of_another_kind_says_so():
    fails('slow(factor=2)', "'slow' is registered as frequencies, not as encoding")
    fails('probe(freqs=probe())', "'probe' is registered as encoding, not as frequencies")
    fails('probe(inner=slow(factor=2))', 'frequencies, not as encoding')


def test_wrong_argument_name_shows_signature_and_nearest():
    fails(
        'probe(widht=2)',
        "no argument 'widht'",
        "did you mean 'width'",
        'signature: probe(width: int = 3',
    )
    fails('probe(freqs=slow(factr=2))', "slow has no argument 'factr'", 'slow(factor: float')


def test_rngs_cannot_be_given():
    fails('probe(rngs=3)', "no argument 'rngs'")
    assert 'rngs' not in fails('probe(x=3)').split('signature')[1]


def test_missing_and_repeated_arguments():
    fails('needy()', "needy needs 'size'", 'signature: needy(size: int)')
    fails('needy', "needs 'size'")
    fails('needy(1, size=2)', "'size' twice")
    fails('needy(1, 2)', 'at most 1', 'got 2', 'signature')
    fails('needy(size=1, size=2)')


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


@pytest.mark.parametrize(
    'argument',
    ['width=-True', 'rate=-True', 'flag=-True', 'rate=--1', 'rate=+1', 'rate=~1', 'rate=not 1'],
)
def test_only_minus_before_a_number(argument):
    fails(f'probe({argument})')


def test_nested_call_where_a_value_is_expected():
    fails('probe(width=needy(1))', 'a plain value is expected here (int)')
    fails('probe(name=probe)', 'a plain value is expected here (str)')
    fails('probe(sections=(needy(1),))', 'plain value')
    fails('probe(freqs=slow(factor=1) | slow(factor=2))', 'only encodings are joined')


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


def test_executable_looking_strings_stay_strings():
    text = "__import__('os').system('true')"
    assert made(f'probe(name="{text}")').given['name'] == text


@pytest.mark.parametrize(
    'spec', ['(' * 150 + 'probe()' + ')' * 150, 'probe(inner=' * 200 + 'probe()' + ')' * 200]
)
def test_nesting_is_either_read_or_refused(spec):
    try:
        assert parse(str(parse(spec))) == parse(spec)
    except SpecError:
        pass


@pytest.mark.parametrize(
    'spec',
    [
        '(' * 1900 + 'probe()' + ')' * 1900,
        'probe(inner=' * 300 + 'probe(width=x)' + ')' * 300,
        'probe(width=' + '-' * 3900 + '1)',
        'probe(sections=' + '(' * 1900 + ')' * 1900 + ')',
        'probe(sections=' + '[' * 1900 + ']' * 1900 + ')',
        'probe' + '.x' * 1900 + '()',
        'probe' + '()' * 1900,
        'probe(width=' + '9' * 3900 + '.x)',
        'probe(rate=' + '9' * 3900 + 'e9)',
    ],
)
def test_deep_nesting_is_refused(spec):
    assert len(spec) <= MAX_SPEC_CHARS
    fails(spec)


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


@pytest.mark.parametrize(
    'spec, near',
    [
        *((f'{name}()', 'rope') for name in ('RoPE', 'ROPE', 'Rope', 'ropee')),
        ('RoPE', 'rope'),
        ('Alibi()', 'alibi'),
        ('ALiBi', 'alibi'),
        ('NoPE', 'nope'),
        ('T5-RPE()', 't5_rpe'),
        ('rope-2d', 'rope'),
        ('rope-2d()', 'rope'),
        ('alibi() | rope-2d()', 'rope'),
        ('2d_rope', 'rope'),
        ('pj.rope()', 'rope'),
        ('rope() | Yarn(factor=4)', 'yarn'),
    ],
)
def test_other_spellings_name_the_nearest_key(spec, near):
    with pytest.raises(SpecError) as error:
        pj.make(spec, heads=2, head_dim=8)
    assert f"did you mean '{near}'" in str(error.value)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 200


@pytest.mark.parametrize(
    'spec, message',
    [
        ('rope() | yarn(factor=4)', "or extend(encoding, 'yarn(factor=4)', train_len="),
        ('rope() | yarn', 'write rope(freqs=yarn()), or'),
        ('rope() | dca(chunk=8)', 'write dca(encoding=rope()), or extend(encoding, "dca()")'),
        ('rope() | segmented_sequences(4)', "extend='segmented_sequences(4)'"),
        ('rope() | gru()', 'a mixer is a layer of a model'),
        ('siren()', 'make_field(...)'),
    ],
)
def test_what_is_no_encoding_says_how_it_is_written(spec, message):
    with pytest.raises(SpecError) as error:
        pj.make(spec, heads=2, head_dim=8)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_long_call_of_another_kind_is_shortened():
    with pytest.raises(SpecError, match="'rope' is registered as encoding") as found:
        parse(f'rope(base={"9" * 2000})', kinds=('extension', 'frequencies'))
    assert len(str(found.value)) < 400
