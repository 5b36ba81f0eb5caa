"""The spec language: what it reads. `spec_refused_test.py` has what it refuses."""

import pytest

from posenc_jax.language.spec import build, parse
from posenc_jax.protocol.errors import SpecError
from tests.language.probes import made

pytestmark = pytest.mark.usefixtures('probes')


@pytest.mark.parametrize(
    'argument, expected',
    [
        ('width=7', 7),
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
    value = made(f'probe({argument})').given[argument.split('=')[0]]
    assert value == expected and type(value) is type(expected)


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


def test_executable_looking_strings_stay_strings():
    text = "__import__('os').system('true')"
    assert made(f'probe(name="{text}")').given['name'] == text


def test_a_long_call_of_another_kind_is_shortened():
    with pytest.raises(SpecError, match="'rope' is registered as encoding") as found:
        parse(f'rope(base={"9" * 2000})', kinds=('extension', 'frequencies'))
    assert len(str(found.value)) < 400
