"""The registry: one entry per key and kind, nearest names, and an import that costs nothing."""

import subprocess
import sys

import pytest

from posenc_jax.core import registry
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import Card, SpecError, check_choice, entries, lookup, nearest, register


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(registry, '_ENTRIES', {})


def card(**changes):
    fields = dict(title='T', arxiv='', door='none', equation='x', source='here', authors='A, B', year=2026, example='a()', name='A')
    return Card(**{**fields, **changes})


def test_a_key_is_taken_once_per_kind(empty):
    class First(Encoding):
        pass

    class Second(Encoding):
        pass

    register('a', kind='encoding')(First)
    register('a', kind='extension')(Second)
    with pytest.raises(ValueError, match="encoding 'a' is registered twice: .*First.*Second"):
        register('a', kind='encoding')(Second)
    assert lookup('a', ('encoding',)).build is First
    assert lookup('a', ('extension', 'encoding')).build is Second


def test_the_card_learns_its_key(empty):
    @register('a', kind='encoding', card=card())
    class A(Encoding):
        pass

    assert A.card.key == 'a' and lookup('a', ('encoding',)).card is A.card


def test_entries_are_sorted_and_filtered(empty):
    for key, kind in (('b', 'encoding'), ('a', 'task'), ('a', 'encoding')):
        register(key, kind=kind)(lambda: None)
    assert [(e.kind, e.key) for e in entries()] == [('encoding', 'a'), ('encoding', 'b'), ('task', 'a')]
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


def test_unknown_names():
    with pytest.raises(SpecError, match="unknown encoding 'alibbi'; did you mean 'alibi'"):
        lookup('alibbi', ('encoding',))
    with pytest.raises(SpecError, match="'alibi' is registered as encoding, not as task"):
        lookup('alibi', ('task',))
    with pytest.raises(SpecError, match="style is 'haff'; did you mean 'half'"):
        check_choice('style', 'haff', ('half', 'interleaved'))
    assert check_choice('style', 'half', ('half',)) == 'half'
    assert nearest('qqq', ['b', 'a', 'a']) == "valid: 'a', 'b'"


def test_importing_the_package_touches_no_device_and_loads_nothing_heavy():
    code = (
        'import sys, posenc_jax\n'
        'from jax._src import xla_bridge\n'
        'assert not xla_bridge._backends, xla_bridge._backends\n'
        'heavy = {"optax", "orbax", "grain", "matplotlib", "tensorboardX", "tensorflow", "tensorflow_datasets", "rich"}\n'
        # Flax itself imports some of these; only what we add counts.
        'mine = heavy & set(sys.modules)\n'
        'print(sorted(mine))\n'
    )
    ours = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    flax = code.replace('posenc_jax', 'flax.nnx')
    assert ours == subprocess.run([sys.executable, '-c', flax], capture_output=True, text=True, check=True).stdout
