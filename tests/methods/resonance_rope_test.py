"""Resonance RoPE: wavelengths that are whole numbers, on top of other rules too, and angles that
repeat.
"""

import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.base.double import Double
from posenc_jax.base.phases import phase
from posenc_jax.methods.dynamic_ntk import DynamicNTK
from posenc_jax.methods.longrope import LongRoPE
from posenc_jax.methods.p_rope import PRoPE
from posenc_jax.methods.resonance_rope import ResonanceRoPE, resonance_rope_frequencies
from posenc_jax.methods.yarn import YaRN
from tests.golden_files import golden_suite


def wavelengths(given, width):
    found = 2 * np.pi / ResonanceRoPE()(int(width), 1e4)[0]
    np.testing.assert_allclose(found, found.round(), rtol=1e-14)
    return found.round()[: len(given[width])]


test_golden = golden_suite('resonance_rope') | {
    'wavelengths.*': wavelengths,
    'frequencies': (lambda: ResonanceRoPE()(8, 1e4)[0], {'rtol': 3e-6}),
}


def test_halves_are_rounded_to_even():
    waves = np.array([2.5, 3.5, 4.5, 100.5])
    found = 2 * np.pi / resonance_rope_frequencies(2 * np.pi / waves)
    np.testing.assert_allclose(found, [2, 4, 4, 100], rtol=1e-14)


def test_angles_repeat_beyond_a_wavelength():
    inv_freq, _ = ResonanceRoPE()(8, 1e4)
    pos = jnp.arange(0, 50_000, 997)[None]
    for plane, wave in enumerate((6, 63, 628, 6283)):
        own = inv_freq[plane : plane + 1]
        far, near = phase(pos + 300 * wave, own), phase(pos % wave, own)
        np.testing.assert_allclose(np.cos(far), np.cos(near), atol=1e-6)
        np.testing.assert_allclose(np.sin(far), np.sin(near), atol=1e-6)
    plain = phase(pos + 300 * 63, np.array([0.1]))
    assert np.abs(np.cos(plain) - np.cos(phase(pos % 63, np.array([0.1])))).max() > 0.1


def test_it_rounds_behind_another_rule_and_keeps_its_temperature():
    rule = YaRN(factor=4.0, train_len=64)
    inv_freq, temperature = ResonanceRoPE(rule)(16, 1e4)
    scaled, m = rule(16, 1e4)
    np.testing.assert_allclose(inv_freq, 2 * np.pi / np.round(2 * np.pi / scaled), rtol=1e-14)
    assert temperature == m and not ResonanceRoPE(rule).uses_length


def test_planes_that_do_not_rotate_stay():
    inv_freq, _ = ResonanceRoPE(PRoPE(p=0.5))(8, 1e4)
    assert inv_freq[2:].tolist() == [0.0, 0.0] and (inv_freq[:2] > 0).all()


def test_rules_that_follow_the_length_are_rounded_at_every_length():
    """A wavelength beyond 2**24, which float32 does not hold, is rounded to a whole number too."""
    lengths = jnp.array([[8, 100, 4000]])
    rule = ResonanceRoPE(DynamicNTK(factor=2.0, train_len=64))
    found = np.asarray(rule(16, 1e9, lengths)[0])
    waves = 2 * np.pi / np.asarray(DynamicNTK(factor=2.0, train_len=64)(16, 1e9, lengths)[0])
    np.testing.assert_allclose(2 * np.pi / found, waves.round(), rtol=3e-13)
    assert waves.max() > 2**24 and rule.uses_length
    np.testing.assert_allclose(found[0, 0], ResonanceRoPE()(16, 1e9)[0], rtol=3e-13)
    part = pj.make('rope(freqs=resonance_rope(freqs=dynamic_ntk()))', head_dim=8, train_len=64)
    assert part.cached == 'raw'
    far = np.array([2**24 + 3.0, 2**25 + 7.0])  # wavelengths between the numbers of float32
    again = 2 * np.pi / np.asarray(resonance_rope_frequencies(Double.of(2 * np.pi / (far + 0.2))))
    np.testing.assert_allclose(again, far, rtol=1e-13)


def test_first_positions_and_the_switch_are_those_of_the_rule():
    lists = dict(long=(1.0, 2.0), factor=4.0, train_len=64)
    assert ResonanceRoPE(LongRoPE(**lists, start=3)).start == 3
    assert ResonanceRoPE(LongRoPE(**lists, short=(1.0, 1.0))).switch == 64
    assert (ResonanceRoPE().start, ResonanceRoPE().switch) == (0, None)
