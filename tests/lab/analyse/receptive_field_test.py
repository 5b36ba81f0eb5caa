"""Receptive fields: theoretical ones against closed forms and tables, empirical ones against
probabilities written out.
"""

import functools

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
from posenc_jax.lab.analyse.field_reports import (
    Compared,
    by_method,
    draw_decay,
    draw_profile,
    draw_ranks,
    rank_correlation,
)
from posenc_jax.lab.analyse.receptive_field import _fields, attention_fields, receptive_field
from posenc_jax.lab.analyse.report import Report
from posenc_jax.methods.rpe_convergent import DIVERGENT, KERNELS
from posenc_jax.protocol.families import Bias, signed_distance
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('receptive_field')['values']
BASE = dict(
    vocab_size=13, train_len=16, layers=2, width=32, heads=4, kv_heads=2, encoding='alibi()'
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 13)
D = np.arange(200_000.0)


model_of = functools.partial(small_model, **BASE)


# The theoretical field.


@pytest.mark.full_but_one
@pytest.mark.parametrize('spec', GOLDEN['of_eight_slopes'])
def test_fields_of_eight_heads(spec):
    np.testing.assert_array_equal(
        theoretical_field(pj.make(spec, heads=8), 8), GOLDEN['of_eight_slopes'][spec]
    )


@pytest.mark.parametrize('kernel', ['type1', 'type2'])
def test_fields_at_slope_one(kernel):
    encoding, case = (
        pj.make(f'rpe_convergent(kernel={kernel!r}, slopes=(1.0,))', heads=1),
        GOLDEN['at_slope_one'],
    )
    found = [theoretical_field(encoding, 1, epsilon=epsilon)[0] for epsilon in case['epsilon']]
    np.testing.assert_array_equal(found, case[kernel])


def test_fields_of_alibi():
    case = GOLDEN['alibi_by_slope']
    r = decay_kernel(pj.make(f'alibi(slopes={tuple(case["slope"])})', heads=4), 4)
    np.testing.assert_array_equal(
        np.stack([field_of(r, epsilon) for epsilon in case['epsilon']], 1), case['trf']
    )
    half = GOLDEN['alibi_half']
    np.testing.assert_array_equal(
        [field_of(r[0], epsilon) for epsilon in half['epsilon']], half['trf']
    )
    for slope in (0.3, 0.011):  # the closed form, where nothing is rounded to a whole number
        assert field_of(-slope * D, 0.05) == np.ceil(np.log(20) / slope)


def test_fields_of_powers_and_logarithms():
    epsilons = GOLDEN['alibi_by_slope']['epsilon']
    far = np.arange(
        4e6
        # the sheet's sum has no end; that of 200000 distances lacks 5e-6 of 1.6, which is 606 for
        # 608
    )
    np.testing.assert_array_equal(
        [field_of(-2 * np.log1p(far), e) for e in epsilons], GOLDEN['squared_power']
    )
    np.testing.assert_array_equal(
        [field_of(-(np.log1p(D) ** 2), e) for e in epsilons], GOLDEN['squared_log']
    )


@pytest.mark.full
def test_fields_of_kerple():
    case, encoding = GOLDEN['kerple'], pj.make('kerple()', heads=2)
    encoding.raw['p'][...], encoding.raw['a'][...] = (
        jnp.array([case['r1'], 0.9]),
        jnp.full(2, case['r2']),
    )
    for epsilon, expected in zip(case['epsilon'], case['trf']):
        np.testing.assert_array_equal(
            theoretical_field(encoding, 2, reach=4_000_000, epsilon=epsilon), [expected, np.inf]
        )


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
    sharp = decay_kernel(pj.make('bam() | ssmax()', heads=4), 4, 1000)
    np.testing.assert_allclose(
        sharp, np.log(1000) * decay_kernel(pj.make('bam()', heads=4), 4, 1000), rtol=1e-6
    )


@pytest.mark.full
def test_of_fire_the_row_is_measured_and_nothing_is_infinite():
    encoding = pj.make('fire(threshold=8)', heads=3)
    pos = jnp.arange(300)[None]
    row = np.asarray(encoding.bias(pos[:, -1:], pos), np.float64)[0, :, 0, ::-1]
    np.testing.assert_array_equal(theoretical_field(encoding, 3, reach=300), field_of(row))


def test_masks_end_a_field():
    kernel = decay_kernel(pj.make('nope() | window(size=20)', causal=True), 1, 100)[0]
    assert (kernel[:20] == 0).all() and (kernel[20:] == -np.inf).all()
    assert theoretical_field(
        pj.make('nope() | window(size=20)', causal=True), 1, epsilon=0.06
    ).tolist() == [19.0]


def test_pieces_of_distances_equal_the_whole():
    encoding = pj.make('rpe_convergent()', heads=3)
    pos = jnp.arange(20_000)[None]
    whole = np.asarray(encoding.bias(pos[:, -1:], pos))[0, :, 0, ::-1]
    np.testing.assert_allclose(decay_kernel(encoding, 3, 20_000), whole, rtol=1e-6)


# The empirical field.


@pytest.mark.full_but_one
@pytest.mark.parametrize('block', [4, 64])
def test_uniform_attention(block):
    keys = GOLDEN['uniform']['keys']
    q = jnp.zeros((1, max(keys), 2, 8))
    tok = pj.Tokens.of(length=max(keys))
    encoding = pj.make('nope()', causal=True)
    for n, epsilon, expected in zip(keys, GOLDEN['uniform']['epsilon'], GOLDEN['uniform']['erf']):
        upto, before = (
            attention_fields(encoding, q[:, :m], q[:, :m], *[tok.slice(0, m)] * 2, epsilon, block)[
                0
            ]
            for m in (n, n - 1)
        )
        np.testing.assert_array_equal(upto - before, expected)  # what the last query adds


def reference(model, tokens, epsilon):
    """ERF and profile from probabilities of whole layers."""
    tok = pj.Tokens.of(length=tokens.shape[1])
    x, length = model.embed(tokens, model.place(tok)), tokens.shape[1]
    erf, profile = [], []
    for layer_type, block in model.layers():
        encoding = model.encoding(layer_type, block)
        q, k, v = block.attention.qkv(block.attention_norm(x))
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
        x = block(x, tok, encoding)
    return np.stack(erf), np.stack(profile)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding', ['alibi()', 'rope()', 'cope(npos=8)', 'shaw()', 'urpe()', 'bam() | ssmax()']
)
def test_fields_and_profiles_of_a_model(encoding):
    model = model_of(encoding=encoding)
    found = receptive_field(model, TOKENS, epsilon=0.1, block=4)
    erf, profile = reference(model, TOKENS, 0.1)
    np.testing.assert_allclose(found.erf, erf, rtol=1e-6)
    np.testing.assert_allclose(found.profile, profile, atol=1e-6)


@pytest.mark.full
def test_batches_merge_and_padding_and_documents_do_not_count():
    model = model_of()
    whole, first, second = (
        receptive_field(model, tokens) for tokens in (TOKENS, TOKENS[:1], TOKENS[1:])
    )
    merged = first.merge(second)
    np.testing.assert_allclose(merged.erf, whole.erf, rtol=1e-6)
    np.testing.assert_allclose(merged.profile, whole.profile, atol=1e-6)
    padded = receptive_field(
        model, jnp.pad(TOKENS, ((0, 0), (3, 0))), pj.Tokens.of(valid=np.arange(12)[None] >= 3)
    )
    np.testing.assert_allclose(padded.erf, whole.erf, rtol=1e-6)
    np.testing.assert_allclose(padded.profile[..., :9], whole.profile, atol=1e-6)
    assert not padded.profile[..., 9:].any()
    packed = receptive_field(
        model, TOKENS.reshape(1, 18), pj.Tokens.of(segment=np.arange(18)[None] // 9)
    )
    np.testing.assert_allclose(packed.erf, whole.erf, rtol=1e-6)
    np.testing.assert_allclose(packed.profile[..., :9], whole.profile, atol=1e-6)


def test_fields_stand_in_the_order_of_the_layers():
    model = model_of(layers=4, pattern=('alibi()', 'rpe_convergent() | window(size=3)'))
    assert (receptive_field(model, TOKENS).erf[1::2] <= 3).all() and (
        receptive_field(model, TOKENS).erf[::2].max(1) > 3
    ).all()
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
    tok, q = pj.Tokens.of(length=2048), jnp.zeros((1, 2048, 4, 8))
    last = lambda n: attention_fields(
        encoding, q[:, :n], q[:, :n], *[tok.slice(0, n)] * 2, 0.1, 256
    )[0]
    erf = np.asarray(last(2048) - last(2047))
    np.testing.assert_allclose(erf, trf, rtol=0.01)
    assert trf[-1] > 30


def test_memory_grows_with_the_length_and_not_with_its_square():
    model = model_of(implementation='blocked', block=64, layers=1)
    shape = lambda length: jax.ShapeDtypeStruct((1, length), jnp.int32)
    size = lambda n: (
        _fields.lower(model, shape(n), None, fixed=(0.05, 64))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    assert size(1024) < 2.5 * size(512)


# Both.


def test_ranks():
    rows = [
        Compared('a', 6.0, 5.0),
        Compared('b', np.nan, 1.0),
        Compared('c', np.inf, 30.0),
        Compared('d', 50.0, 20.0),
    ]
    assert (
        rank_correlation(rows) == 1.0
        and rank_correlation([*rows, Compared('e', np.inf, 0.5)]) < 0.5
    )
    assert [row.label for row in by_method([*rows, *rows])] == ['a', 'b', 'c', 'd']
    with pytest.raises(ValueError, match='needs two methods that have a TRF, got 1 of 2'):
        rank_correlation(rows[:2])


@pytest.mark.full
def test_pictures_are_written(tmp_path):
    pytest.importorskip('matplotlib')
    specs = ['alibi()', 'nope()']
    kernels = {spec: decay_kernel(pj.make(spec, heads=2), 2, 100) for spec in specs}
    fields = {spec: theoretical_field(pj.make(spec, heads=2), 2, reach=100) for spec in specs}
    found = receptive_field(model_of(), TOKENS)
    rows = [Compared('a', 6.0, 5.0), Compared('b', np.nan, 1.0), Compared('c', np.inf, 30.0)]
    for name, draw in {
        'several': lambda figure: draw_decay(figure, kernels, fields),
        'one': lambda figure: draw_decay(figure, {'alibi()': kernels['alibi()']}, fields),
        'profile': lambda figure: draw_profile(figure, found),
        'ranks': lambda figure: draw_ranks(figure, rows),
    }.items():
        (path,) = Report(key=name, draw=draw).write(tmp_path)
        assert path.read_bytes().startswith(b'\x89PNG')


@pytest.mark.full
def test_errors():
    for spec, message in [
        ('rope()', "rope opens 'project' as well"),
        ('alibi() | sinusoidal()', "sinusoidal opens 'embed'"),
        ('urpe()', "urpe opens 'collect'"),
        ('randomized_pe(max_len=99) | alibi()', "randomized_pe opens 'place'"),
    ]:
        with pytest.raises(ValueError, match=message):
            theoretical_field(pj.make(spec, heads=2, head_dim=8, model_dim=16, train_len=8), 2)
    for epsilon in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=rf'in \(0, 1\), got {epsilon}'):
            theoretical_field(pj.make('alibi()', heads=2), 2, epsilon=epsilon)
        with pytest.raises(ValueError, match=rf'in \(0, 1\), got {epsilon}'):
            receptive_field(model_of(), TOKENS, epsilon=epsilon)
    with pytest.raises(ValueError, match='at least 4 distances and 1 head, got 3 and 2'):
        decay_kernel(pj.make('alibi()', heads=2), 2, 3)
    with pytest.raises(ValueError, match='block must be at least 1, got 0'):
        receptive_field(model_of(), TOKENS, block=0)
    with pytest.raises(ValueError, match='defined for causal attention'):
        receptive_field(model_of(encoding='alibi() | full()'), TOKENS)
    one = receptive_field(model_of(), TOKENS)
    with pytest.raises(ValueError, match='cannot be merged'):
        one.merge(receptive_field(model_of(), TOKENS, epsilon=0.1))
    with pytest.raises(ValueError, match='cannot be merged'):
        one.merge(receptive_field(model_of(), TOKENS[:, :5]))
