"""Receptive fields: theoretical ones against closed forms and tables, empirical ones against
probabilities written out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.analyse.decay_kernel import (
    decay_kernel,
    field_of,
    theoretical_field,
    trained_field,
    undecided,
)
from posenc_jax.lab.analyse.receptive_field import attention_fields, receptive_field
from posenc_jax.lab.analyse.receptive_field_reports import (
    Compared,
    by_method,
    draw_decay,
    draw_profile,
    draw_ranks,
    rank_correlation,
)
from posenc_jax.lab.analyse.report import Report
from posenc_jax.methods.rpe_convergent import DIVERGENT, KERNELS
from posenc_jax.protocol.families import Bias, signed_distance
from tests.golden_files import golden, golden_suite
from tests.lab.analyse.by_hand import ids, layers_of, same_model_of

UNIFORM = golden('receptive_field')['values']['uniform']
TOKENS = ids(2, 9)
D = np.arange(200_000.0)


# The theoretical field.


def of_kernel(around, kernel):
    encoding = pj.make(f'rpe_convergent(kernel={kernel!r}, slopes=(1.0,))', heads=1)
    return [theoretical_field(encoding, 1, epsilon=epsilon)[0] for epsilon in around['epsilon']]


def of_slopes(around, slopes):
    """TRFs of alibi by slope and epsilon."""
    r = decay_kernel(pj.make(f'alibi(slopes={tuple(slopes)})', heads=len(slopes)), len(slopes))
    return np.stack([field_of(r, epsilon) for epsilon in around['epsilon']], 1)


def of_series(around, r):
    return [field_of(r, epsilon) for epsilon in around['alibi_by_slope']['epsilon']]


def of_kerple(around):
    encoding = pj.make('kerple()', heads=2)
    encoding.raw['p'][...] = jnp.array([around['r1'], 0.9])
    encoding.raw['a'][...] = jnp.full(2, around['r2'])
    field = lambda epsilon: theoretical_field(encoding, 2, reach=4_000_000, epsilon=epsilon)
    found = np.stack([field(epsilon) for epsilon in around['epsilon']], 1)
    assert (found[1] == np.inf).all()  # with an exponent below 1
    return found[0]


test_golden = golden_suite(
    'receptive_field',
    {
        'at_slope_one.type1': lambda around: of_kernel(around, 'type1'),
        'at_slope_one.type2': lambda around: of_kernel(around, 'type2'),
        'alibi_by_slope.trf': lambda around: of_slopes(around, around['slope']),
        'alibi_half.trf': lambda around: of_slopes(around, (0.5,))[0],
        # The sheet's sum has no end; that of 200,000 distances has 606 for 608.
        'squared_power': lambda around: of_series(around, -2 * np.log1p(np.arange(4e6))),
        'squared_log': lambda around: of_series(around, -(np.log1p(D) ** 2)),
    },
)
test_golden_of_whole_encodings = pytest.mark.full_but_one(
    golden_suite(
        'receptive_field',
        {
            'of_eight_slopes.*': lambda _, spec: theoretical_field(pj.make(spec, heads=8), 8),
            'kerple.trf': of_kerple,
        },
    )
)


@pytest.mark.parametrize('slope', [0.3, 0.011])
def test_fields_of_alibi_where_nothing_is_rounded_to_a_whole_number(slope):
    assert field_of(-slope * D, 0.05) == np.ceil(np.log(20) / slope)


@pytest.mark.parametrize('kernel', KERNELS)
def test_divergent_series_have_none(kernel):
    found = theoretical_field(pj.make(f'rpe_convergent(kernel={kernel!r})', heads=8), 8)
    assert (found == np.inf).all() if kernel in DIVERGENT else np.isfinite(found).all(), found


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding', ['nope()', 't5_rpe()', 'kerple(fixed=("p", "a"))', 'sandwich()', 'sandwich(dim=8)']
)
@pytest.mark.parametrize('heads', [1, 8])
def test_what_does_not_fall_off_has_none(encoding, heads):
    assert (theoretical_field(pj.make(encoding, heads=heads, head_dim=8), heads) == np.inf).all()


class Leaning(Bias):
    """ALiBi of a range of 0.02, steeper by a thousandth at every second place of 200,000."""

    def bias(self, q_pos, k_pos):
        slope = 1e-7 * (1.0 + 1e-3 * (q_pos // 200_000 % 2))[:, None, :, None]
        return -slope * jnp.abs(signed_distance(q_pos, k_pos))[:, None]


def test_a_small_dependence_on_the_place_is_not_taken_for_rounding():
    assert np.isfinite(theoretical_field(Leaning(), 1)).all()
    assert (theoretical_field(pj.make('alibi(slopes=(1e-7,))', heads=1), 1) == np.inf).all()


@pytest.mark.full
def test_a_slope_too_small_for_the_reach_is_told_from_a_field():
    encoding = pj.make('alibi(slopes=(1e-3, 1e-6))', heads=2)
    np.testing.assert_array_equal(theoretical_field(encoding, 2), [2996, np.inf])
    assert undecided(-1e-6 * D) and not undecided(-1e-6 * np.arange(2e7))


def test_a_prior_is_measured_with_the_values_it_has():
    flat = pj.make('bam(beta=(0.0, 0.5, 1.0, 2.0), scale=(1.0, 1.0, 1.0, 1.0))', heads=4)
    found = theoretical_field(flat, 4)
    expected = [field_of(-((D + 1e-5) ** beta)) for beta in (0.5, 1.0, 2.0)]
    np.testing.assert_array_equal(found, [np.inf, *expected])
    sharp, plain = (
        decay_kernel(pj.make(spec, heads=4), 4, 1000) for spec in ('bam() | ssmax()', 'bam()')
    )
    np.testing.assert_allclose(sharp, np.log(1000) * plain, rtol=1e-6)


@pytest.mark.full
def test_of_fire_the_row_is_measured_and_nothing_is_infinite():
    encoding = pj.make('fire(threshold=8)', heads=3)
    pos = jnp.arange(300)[None]
    row = np.asarray(encoding.bias(pos[:, -1:], pos), np.float64)[0, :, 0, ::-1]
    np.testing.assert_array_equal(theoretical_field(encoding, 3, reach=300), field_of(row))


def test_masks_end_a_field():
    encoding = pj.make('nope() | window(size=20)', causal=True)
    kernel = decay_kernel(encoding, 1, 100)[0]
    assert (kernel[:20] == 0).all() and (kernel[20:] == -np.inf).all()
    assert theoretical_field(encoding, 1, epsilon=0.06).tolist() == [19.0]


def test_pieces_of_distances_equal_the_whole():
    encoding = pj.make('rpe_convergent()', heads=3)
    pos = jnp.arange(20_000)[None]
    whole = np.asarray(encoding.bias(pos[:, -1:], pos))[0, :, 0, ::-1]
    np.testing.assert_allclose(decay_kernel(encoding, 3, 20_000), whole, rtol=1e-6)


# The empirical field.


def field_of_the_last_query(encoding, q, epsilon, block):
    """What the last query adds to the sums, where queries and keys are equal."""

    def widths(n):
        tok = pj.Tokens.of(length=n)
        return attention_fields(encoding, q[:, :n], q[:, :n], tok, tok, epsilon, block)[0]

    return np.asarray(widths(q.shape[1]) - widths(q.shape[1] - 1))


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [4, 64])
def test_uniform_attention(block):
    encoding = pj.make('nope()', causal=True)
    for n, epsilon, expected in zip(*(UNIFORM[name] for name in ('keys', 'epsilon', 'erf'))):
        found = field_of_the_last_query(encoding, jnp.zeros((1, n, 2, 8)), epsilon, block)
        np.testing.assert_array_equal(found, expected)


def reference(model, tokens, epsilon):
    """ERF and profile from probabilities of whole layers."""
    length = tokens.shape[1]
    tok, erf, profile = pj.Tokens.of(length=length), [], []
    for encoding, q, k, v in layers_of(model, tokens):
        q, k, v, tq, tk = encoding.project(q, k, v, tok, tok)
        q, k = (jnp.swapaxes(a, 1, 2) for a in (q, k))
        s, _, _ = pair_logits(encoding, q, k, tq, tk)
        p = np.asarray(jax.nn.softmax(jnp.where(encoding.mask(tq, tk), s, -jnp.inf)), np.float64)
        widths, at = np.zeros(p.shape[:3]), np.zeros((p.shape[1], length))
        for b, n, i in np.ndindex(*p.shape[:3]):
            near = p[b, n, i, i::-1]
            widths[b, n, i] = next(j for j in range(1, i + 2) if near[:j].sum() > 1 - epsilon)
            at[n, : i + 1] += near
        erf.append(widths.mean((0, 2)))
        profile.append(at / (len(tokens) * np.arange(length, 0, -1)))
    return np.stack(erf), np.stack(profile)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding', ['alibi()', 'rope()', 'cope(npos=8)', 'shaw()', 'urpe()', 'bam() | ssmax()']
)
def test_fields_and_profiles_of_a_model(encoding):
    model = same_model_of(encoding=encoding)
    found = receptive_field(model, TOKENS, epsilon=0.1, block=4)
    erf, profile = reference(model, TOKENS, 0.1)
    np.testing.assert_allclose(found.erf, erf, rtol=1e-6)
    np.testing.assert_allclose(found.profile, profile, atol=1e-6)


def test_fields_stand_in_the_order_of_the_layers():
    model = same_model_of(layers=4, pattern=('alibi()', 'rpe_convergent() | window(size=3)'))
    erf = receptive_field(model, TOKENS).erf
    assert (erf[1::2] <= 3).all() and (erf[::2].max(1) > 3).all()
    trf = trained_field(model)
    np.testing.assert_array_equal(trf[0], trf[2])
    np.testing.assert_array_equal(trf[1], [3, 3, 3, 3])
    assert (trf[0] > 3).all()


@pytest.mark.full
def test_with_equal_content_the_two_fields_agree():
    """The claim that links them: where queries and keys say nothing, a long row's ERF is the
    TRF.
    """
    encoding = pj.make(
        "rpe_convergent(kernel='type2', slopes=(1.0, 0.5, 0.25, 0.125))", heads=4, causal=True
    )
    trf = theoretical_field(encoding, 4, epsilon=0.1)
    erf = field_of_the_last_query(encoding, jnp.zeros((1, 2048, 4, 8)), 0.1, 256)
    np.testing.assert_allclose(erf, trf, rtol=0.01)
    assert trf[-1] > 30


# Both.


def test_ranks():
    rows = [
        Compared('a', 6.0, 5.0),
        Compared('b', np.nan, 1.0),
        Compared('c', np.inf, 30.0),
        Compared('d', 50.0, 20.0),
    ]
    assert rank_correlation(rows) == 1.0
    assert rank_correlation([*rows, Compared('e', np.inf, 0.5)]) < 0.5
    assert [row.label for row in by_method([*rows, *rows])] == ['a', 'b', 'c', 'd']


@pytest.mark.full
def test_pictures_are_written(tmp_path):
    specs = ['alibi()', 'nope()']
    kernels = {spec: decay_kernel(pj.make(spec, heads=2), 2, 100) for spec in specs}
    fields = {spec: theoretical_field(pj.make(spec, heads=2), 2, reach=100) for spec in specs}
    found = receptive_field(same_model_of(encoding='alibi()'), TOKENS)
    rows = [Compared('a', 6.0, 5.0), Compared('b', np.nan, 1.0), Compared('c', np.inf, 30.0)]
    for name, draw in {
        'several': lambda figure: draw_decay(figure, kernels, fields),
        'one': lambda figure: draw_decay(figure, {'alibi()': kernels['alibi()']}, fields),
        'profile': lambda figure: draw_profile(figure, found),
        'ranks': lambda figure: draw_ranks(figure, rows),
    }.items():
        (path,) = Report(key=name, draw=draw).write(tmp_path)
        assert path.read_bytes().startswith(b'\x89PNG')
