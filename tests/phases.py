"""Rotary phases in extended precision, for tests of precision at large positions."""

import numpy as np

FAR = np.array([1, 4096, 131071, 1_048_576, 1_999_993, 2_000_000])


def wide(a):
    return np.asarray(a).astype(np.longdouble)


def error(angles, pos, inv_freq):
    """Largest distance on the circle to the product in extended precision; pos [...], inv_freq and
    angles [..., F].
    """
    turn = 2 * (np.longdouble(np.pi) + np.longdouble('1.2246467991473531772e-16'))
    away = wide(angles) - wide(pos)[..., None] * wide(inv_freq)
    return float(np.abs(away - turn * np.round(away / turn)).max())


def wide_theta(rotary_dim, base):
    """`base^(-2t / rotary_dim)`."""
    return wide(base) ** (-wide(np.arange(0, rotary_dim, 2)) / rotary_dim)
