"""The two bounds of the position interpolation (PI) paper: how large a logit can be at a distance
beyond training, and how far it can deviate from a straight line between two trained distances.
"""

import numpy as np
from jaxtyping import Float, Num

from posenc_jax.lab.analyse.protocol import Analysis
from posenc_jax.lab.analyse.report import Report, doublings
from posenc_jax.methods.rope import rope_frequencies


def extrapolation_bound(
    distance: Num[np.ndarray, ' S'], theta: Float[np.ndarray, ' F']
) -> Float[np.ndarray, ' S']:
    """`B(s) / d`, where B bounds the logit of any query and key: `|logit(s)| <= 2 max|h| B(s)`.

    `logit(s) = Re sum_t h_t exp(i s theta_t)` with `h_t = q_t conj(k_t)`. `B(s) = sum_k |A_k(s)|`
    over k = 1 .. d/2 with `A_k(s) = sum_(t<k) exp(i s theta_t)`; d is twice the number of planes.
    Differs from the paper: nothing.

    Args:
      distance: s, in positions.
      theta: inverse frequencies, in radians per position.

    Reference: Chen, Wong, Chen, Tian, arXiv 2306.15595, section 2.3.

    Example:
      >>> extrapolation_bound(np.array([0, 2048]), rope_frequencies(128, 10000.0)).round(2).tolist()
      [16.25, 1.81]
    """
    partial = np.cumsum(np.exp(1j * np.asarray(distance, np.float64)[:, None] * theta), axis=1)
    return np.abs(partial).sum(1) / (2 * len(theta))


def interpolation_constant(theta: Float[np.ndarray, ' F']) -> float:
    """`C = sum_t theta_t^2 / 2`, which bounds a logit between neighbouring integers s1 and s2.

    `|logit(s) - chord(s)| <= C max|h| (s - s1)(s2 - s)`, where the chord is the straight line
    between the logits at s1 and s2. Differs from the paper: its C is d / (8 ln c), 1.737 for
    d = 128 and the base c = 10000. That is too small to be a bound: plane 0 alone adds 0.5 to the
    1.499 of the other planes.

    Example:
      >>> round(interpolation_constant(rope_frequencies(128, 10000.0)), 5)
      1.99915
    """
    return 0.5 * float((np.asarray(theta, np.float64) ** 2).sum())


def bound_report(
    head_dim: int = 128, base: float = 10000.0, train_len: int = 2048, longest: int = 8192
) -> Report:
    """Both bounds, divided by `d max|h|`: the table has the extrapolation bound over ranges of
    distances that double, the picture has it at every distance.

    The bound between integers is that of the point halfway between them, where it is largest.

    Args:
      head_dim, base: d, and the base of the frequencies.
      train_len: trained length, drawn as a dashed line.
      longest: number of distances.
    """
    theta = rope_frequencies(head_dim, base)
    distance = np.arange(longest)
    beyond = 2 * extrapolation_bound(distance, theta)
    between = interpolation_constant(theta) / 4 / head_dim
    starts = [0, *doublings(longest - 1)]
    rows = [
        (f'{first} to {end - 1}', float(beyond[first:end].max()), float(beyond[first:end].min()))
        for first, end in zip(starts, [*starts[1:], longest])
    ]

    def draw(figure):
        axis = figure.subplots()
        axis.plot(distance, beyond, linewidth=0.8, label='extrapolation: 2 B(s) / d')
        axis.axhline(between, color='C1', label='interpolation, halfway: C / (4 d)')
        axis.axvline(
            train_len, color='0.4', linestyle='--', linewidth=1, label=f'trained: {train_len}'
        )
        axis.set(xlabel='distance s, tokens', ylabel='deviation of a logit / (d max|h|)')
        axis.set_yscale('log')
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(frameon=False, fontsize=8)

    within = f'between integers at most C / (4 d) = {between:.4g}'
    times = beyond[train_len:].max(initial=0.0) / between
    return Report(
        key='pi_bound',
        columns=('distance', 'largest 2 B(s) / d', 'smallest 2 B(s) / d'),
        rows=rows,
        numbers={
            'head_dim': head_dim,
            'base': base,
            'train_len': train_len,
            'interpolation': between,
            'extrapolation': beyond,
        },
        draw=draw,
        title=f'How far a logit may go, d = {head_dim}, base {base:g}',
        size=(6.0, 3.8),
        remarks=[
            f'{within}: from distance {train_len} on, extrapolation may go up to {times:.0f} times '
            'as far'
            if train_len < longest
            else within
        ],
    )


ANALYSIS = Analysis(
    key='pi_bound',
    says='both bounds of the paper of position interpolation, in the same form, without a run',
    reports=lambda known, rest: [bound_report()],
)
