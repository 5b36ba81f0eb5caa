"""A registry with methods that have an argument of every type."""

import dataclasses
from typing import ClassVar, Literal

import pytest

from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol import registry
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import Frequencies
from posenc_jax.protocol.registry import register


@pytest.fixture
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
