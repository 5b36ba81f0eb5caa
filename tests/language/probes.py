"""Specs of the probes of `conftest.py`: what they make, and how they fail."""

import pytest

from posenc_jax.language.spec import build, parse
from posenc_jax.protocol.errors import SpecError


def fails(spec, *words, kinds=('encoding',)):
    with pytest.raises(SpecError) as error:
        parse(spec, kinds)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


def made(spec):
    return build(parse(spec).nodes[0], {'heads': 4, 'rngs': None})
