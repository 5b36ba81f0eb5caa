"""What networks refuse in spec strings and in calls, and what the message says."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.fields import make_field
from posenc_jax.fields.bit_plane_inr import bits_of
from posenc_jax.fields.spder import spder_activation
from posenc_jax.protocol.errors import SpecError

REFUSED = {  # spec -> what the message says
    'doh(poly_inr(width=4, levels=2, style=4), latent=8)': 'poly_inr has styles',
    'doh(doh(linear(), latent=4), latent=8)': 'doh has ',
    'doh(pins(width=4, levels=2), latent=8)': 'pins has heads.1',
    'doh(siren(width=1024, layers=2), latent=4096)': '1 GiB',
    'doh(linear(), latent=8, seed=-1)': 'seed must be at least 0',
    'fcnet(dropout=1.0)': 'dropout must be at least 0 and below 1, got 1.0',
    'finer(first_bias=0.0)': 'first_bias must be positive, got 0.0; None is accepted too',
    'gauss(scale=0.0)': 'scale must be positive, got 0.0',
    'mlp(width=0)': 'mlp width must be at least 1 and at most 65536, got 0',
    'mlp(layers=65)': 'layers must be at least 1 and at most 64, got 65',
    'pins(levels=13, bands=2)': 'at most 24',
    "pins(encoding='rff', sigma=0.0)": 'sigma must be positive',
    'pins(sigma=3.0)': "sigma=3.0 is of encoding='rff', got encoding='nerf'",
    'poly_inr(slope=1.5)': 'slope must be at least 0 and at most 1, got 1.5',
    'poly_inr(levels=0)': 'levels must be at least 1 and at most 64, got 0',
    'siren(layers=0)': 'layers must be at least 1 and at most 64, got 0',
    'siren(first=0.0)': 'first must be positive',
    "siren(preset='sine')": 'one of',
    'siren() | mlp()': 'cannot be joined',
    'siren(width=0)': 'width must be at least 1 and at most 65536, got 0',
    'sirren()': 'did you mean',
    "spder(damping='sqr')": "did you mean 'sqrt'",
    'spder(omega=0.0)': 'omega must be positive',
    "wire(form='2d')": "one of 'wire', 'wire2d'",
    'wire(scale=0.0)': 'a scale above 0, or layers=1',
    'wire(omega=-1.0)': 'omega must be at least 0, got -1.0',
    'wire(scale=-1.0)': 'scale must be at least 0, got -1.0',
    'wire(width=1)': 'width must be at least 2 and at most 65536, got 1',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_specs_are_refused(spec):
    with pytest.raises(SpecError, match=re.escape(REFUSED[spec])):
        make_field(spec, features=2, outputs=1)


CALLS = {  # what the message says -> the call
    '8 bits lie in 0 .. 255, got 0 .. 256': lambda: bits_of(np.array([0, 256]), 8),
    'bits must lie in 1 .. 16, got 17': lambda: bits_of(np.array([0]), 17),
    'beside the coordinates': lambda: make_field('bit_plane_inr(linear())', features=1, outputs=1),
    'spder damping': lambda: spder_activation(jnp.zeros(1), 'root'),
    'has levels 0 .. 3, got 4': lambda: make_field('pins()', features=2, outputs=1).levels(
        jnp.zeros((1, 2)), last=4
    ),
}


@pytest.mark.parametrize('message', CALLS)
def test_wrong_calls_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CALLS[message]()
