"""A module of one's own, and the fixture `own`, which forgets such modules after a test."""

import sys

import pytest

from posenc_jax.lab.files import imports
from posenc_jax.lab.runs import trust
from posenc_jax.protocol import registry

TEXT = """
from posenc_jax import Encoding, register

@register('own_root', kind='encoding')
class Root(Encoding):
    number = {number}
"""


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """What a test imports and registers is forgotten after it."""
    registry.entries()  # which loads all methods
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    monkeypatch.setattr(imports, '_TEXTS', {})
    monkeypatch.setattr(imports, '_NAMES', set())
    monkeypatch.setattr(trust, '_SHOWN', set())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith('own_'):
            del sys.modules[name]


def forget():
    """As in another process."""
    for key in [key for key in registry._ENTRIES if key[1].startswith('own_')]:
        del registry._ENTRIES[key]
    for name in [name for name in sys.modules if name.startswith('own_')]:
        del sys.modules[name]
    imports._TEXTS.clear()
    imports._NAMES.clear()
    trust._SHOWN.clear()


def write(path, text=TEXT, number=1):
    path.write_text(text.replace('{number}', str(number)))
    return str(path)


def found():
    return registry.lookup('own_root', ('encoding',)).build
