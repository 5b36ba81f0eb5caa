"""The registry: one entry per key and kind, nearest names, and an import that costs nothing."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from posenc_jax.language.catalog import catalog
from posenc_jax.protocol import registry
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError, check_choice, check_number, nearest
from posenc_jax.protocol.registry import Card, entries, lookup, register


@pytest.fixture
def empty(monkeypatch):
    registry.entries()  # which loads all methods
    monkeypatch.setattr(registry, '_ENTRIES', {})


def card(**changes):
    paper = dict(title='T', source='here', authors='A, B', year=2026)
    return Card(name='A', example='a()', door='none', equation='x', **paper, **changes)


def test_a_key_is_taken_once_per_kind(empty):
    class First(Encoding):
        pass

    class Second(Encoding):
        pass

    register('a', kind='encoding')(First)
    register('a', kind='extension')(Second)
    with pytest.raises(
        ValueError, match="'a' is registered already, by .*First; register .*Second u"
    ):
        register('a', kind='encoding')(Second)
    assert lookup('a', ('encoding',)).build is First
    assert lookup('a', ('extension', 'encoding')).build is Second


def test_the_same_definition_replaces_itself_and_says_so(empty, capsys):
    cell = """
@register('a', kind='encoding', card=card)
class A(Encoding):
    number = {}
"""
    names = dict(register=register, card=card(), Encoding=Encoding, __name__='__main__')
    exec(cell.format(1), names)
    first = lookup('a', ('encoding',)).build
    assert capsys.readouterr().out == ''
    exec(cell.format(2), names)
    assert (first.number, lookup('a', ('encoding',)).build.number) == (1, 2)
    line = "encoding 'a' is registered again; the new __main__.A replaces the old\n"
    assert capsys.readouterr().out == line
    with pytest.raises(ValueError, match='by __main__.A; register own.A under another name'):
        exec(cell.format(3), {**names, '__name__': 'own'})
    assert lookup('a', ('encoding',)).build.number == 2


def test_the_card_learns_its_key(empty):
    @register('a', kind='encoding', card=card())
    class A(Encoding):
        pass

    assert A.card.key == 'a' and lookup('a', ('encoding',)).card is A.card


def test_entries_are_sorted_and_filtered(empty):
    for key, kind in (('b', 'encoding'), ('a', 'task'), ('a', 'encoding')):
        register(key, kind=kind)(lambda: None)
    assert [(e.kind, e.key) for e in entries()] == [
        ('encoding', 'a'),
        ('encoding', 'b'),
        ('task', 'a'),
    ]
    assert [e.key for e in entries('task')] == ['a']


def test_parameters_hide_self_and_variadics(empty):
    def function(a: int, *rest, b: float = 1.0, **more):
        pass

    class Method(Encoding):
        def __init__(self, size: int = 3):
            pass

    register('f', kind='extension')(function)
    register('m', kind='encoding')(Method)
    assert list(lookup('f', ('extension',)).parameters) == ['a', 'b']
    assert list(lookup('m', ('encoding',)).parameters) == ['size']


@pytest.mark.parametrize(
    'key, kind, build, message',
    [
        ('x y', 'encoding', None, "must be a Python name like my_rope, got 'x y'"),
        ('m', 'encodin', None, "no kind is 'encodin'; did you mean 'encoding'"),
        ('m', 'encoding', 3, "encoding 'm' must be a class or a function, got 3"),
    ],
)
def test_wrong_registrations_are_refused(empty, key, kind, build, message):
    with pytest.raises(SpecError, match=message):
        register(key, kind=kind)(build)


def test_without_a_card_a_method_prints_as_its_spec_and_is_in_the_catalogue(empty):
    @register('root', kind='encoding')
    class Root(Encoding):
        """Adds a root."""

        def __init__(self, scale: float = 1.0):
            self.scale = scale

    assert repr(Root(scale=2.0)) == 'root(scale=2.0)'
    assert 'root' in str(catalog()) and 'root' in str(catalog('encoding'))
    assert 'without a Card' in catalog('encoding')._repr_html_()
    assert 'root(scale=1.0)' in str(catalog('root')) and 'Adds a root.' in str(catalog('root'))


UNKNOWN = {
    ('alibbi', 'encoding'): "unknown encoding 'alibbi'; did you mean 'alibi'",
    ('alibi', 'task'): "'alibi' is registered as encoding, not as task",
    ('geo_sh', 'graph'): "as coordinates, not as graph; valid: .*'lap_pe', 'lcp', .*, 'rwse'",
    ('passkey', 'encoding'): "as task, not as encoding; the nearest encoding is 'papeft'$",
    ('rope', 'task'): "as encoding, not as task; did you mean 'copy'",
    ('yarn', 'encoding'): r'not as encoding; write rope\(freqs=yarn\(\)\), or extend',
}


@pytest.mark.parametrize('name', UNKNOWN, ids=str)
def test_unknown_names(name):
    key, kind = name
    with pytest.raises(SpecError, match=UNKNOWN[name]):
        lookup(key, (kind,))


def test_unknown_choices():
    with pytest.raises(SpecError, match="style is 'haff'; did you mean 'half'"):
        check_choice('style', 'haff', ('half', 'interleaved'))
    assert check_choice('style', 'half', ('half',)) == 'half'
    assert nearest('qqq', ['b', 'a', 'a']) == "valid: 'a', 'b'"


def test_importing_the_package_touches_no_device_and_loads_nothing_heavy():
    code = (
        'import sys, posenc_jax\n'
        'from jax._src import xla_bridge\n'
        'assert not xla_bridge._backends, xla_bridge._backends\n'
        'heavy = {"optax", "orbax", "grain", "matplotlib", "tensorboardX", "tensorflow", '
        '"tensorflow_datasets", "rich"}\n'
        # Flax itself imports some of these; only what we add counts.
        'mine = heavy & set(sys.modules)\n'
        'print(sorted(mine))\n'
    )
    ours = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout
    flax = code.replace('posenc_jax', 'flax.nnx')
    assert (
        ours
        == subprocess.run(
            [sys.executable, '-c', flax], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.parametrize(
    'value, bound, message',
    [
        (0, dict(above=0), 'size must be positive, got 0'),
        (float('nan'), dict(above=0), 'size must be positive, got nan'),
        (1.5, dict(above=2), 'size must be above 2, got 1.5'),
        (-1.0, dict(least=0), 'size must be at least 0, got -1.0'),
        (float('nan'), {}, 'size must be a finite number of 32 bits, at most 3.403e[+]38, got nan'),
        (float('inf'), dict(least=0), 'size must be a finite number'),
        (1e39, dict(above=0), 'size must be a finite number'),
    ],
)
def test_numbers_outside_their_bounds_are_named(value, bound, message):
    with pytest.raises(ValueError, match=message):
        check_number('size', value, **bound)


def test_the_largest_number_of_32_bits_is_one():
    assert (
        check_number('size', float(np.finfo(np.float32).max), above=0) == np.finfo(np.float32).max
    )


@pytest.mark.parametrize(
    'key, given',
    [
        ('fire', dict(threshold=np.nan)),
        ('ssmax', dict(gain=np.inf)),
        ('bam', dict(loc=np.inf)),
        ('bam', dict(beta=(1.0, np.nan))),
        ('cable', dict(scale=np.inf)),
        ('tra', dict(threshold=np.inf)),
        ('rope_alibi_harmonic', dict(weight=np.inf)),
        ('nope_temperature', dict(slope=np.inf)),
        ('transformer_xl', dict(std=np.nan)),
        ('t5_rpe', dict(std=np.nan)),
        ('shaw', dict(std=np.inf)),
        ('urpe', dict(std=np.nan)),
    ],
)
def test_classes_refuse_numbers_that_are_none(key, given):
    build, sizes = (
        lookup(key, ('encoding', 'extension')).build,
        dict(heads=2, kv_heads=2, head_dim=4, model_dim=8, train_len=8, causal=True),
    )
    wanted = inspect.signature(build.__init__).parameters
    context = {name: size for name, size in sizes.items() if name in wanted} | (
        {'rngs': nnx.Rngs(0)} if 'rngs' in wanted else {}
    )
    (name,) = given
    with pytest.raises(ValueError, match=rf'{key}:? {name}.*got (nan|inf)'):
        build(**given, **context)
