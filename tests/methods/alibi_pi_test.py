"""ALiBi interpolated: scales, the three modes, what decoding does, and which part of a chain it
takes.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.alibi import VARIANTS
from posenc_jax.methods.alibi_pi import alibi_pi_scale
from posenc_jax.methods.extend import extend, extended_spec
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.models import decoded, model_of, read, text

GOLDEN = golden('alibi_pi')
L = GOLDEN['train_len']
CONTEXT = dict(heads=8, head_dim=4, train_len=L)
MODEL = dict(train_len=4, width=32, heads=4)
MODES = ['dynamic', 'per_row']


def bias_of(spec, length, tok=None):
    """What is added to the logits [N, T, S] of one row."""
    encoding = pj.make(spec, **CONTEXT)
    tok = pj.Tokens.of(length=length) if tok is None else tok
    q = jnp.zeros((1, length, 8, 4))
    *_, tq, tk = encoding.project(q, q, q, tok, tok)
    s = jnp.zeros((1, 8, length, length))
    return np.asarray(encoding.logits(s, None, None, tq, tk, None, ())[0][0])


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', GOLDEN['scales'])
def test_scales(length):
    scale, plain = GOLDEN['scales'][length], bias_of('alibi()', int(length))
    assert alibi_pi_scale(jnp.array(int(length)), L) == scale
    dynamic, per_row = (bias_of(f'alibi_pi(mode={mode!r})', int(length)) for mode in MODES)
    np.testing.assert_allclose(dynamic, plain / scale, rtol=1e-6)
    np.testing.assert_allclose(per_row[:, -1], plain[:, -1] / scale, rtol=1e-6)


@pytest.mark.parametrize('mode', MODES)
def test_the_row_of_the_tenth_token(mode):
    row = bias_of(f'alibi_pi(mode={mode!r})', 10)[0, 9]
    np.testing.assert_allclose(row, GOLDEN['row'], rtol=1e-6)


@pytest.mark.parametrize('mode', MODES)
def test_nothing_is_scaled_up_to_the_trained_length(mode):
    np.testing.assert_array_equal(bias_of(f'alibi_pi(mode={mode!r})', L), bias_of('alibi()', L))


@pytest.mark.parametrize('variant', VARIANTS)
def test_static_divides_the_bias_of_every_variant(variant):
    inner = f'alibi(variant={variant!r})'
    outer = f'alibi_pi(factor=2.5, encoding={inner})'
    np.testing.assert_allclose(bias_of(outer, 12), bias_of(inner, 12) / 2.5, rtol=1e-6)
    np.testing.assert_array_equal(bias_of('alibi_pi(factor=1.0)', 12), bias_of('alibi()', 12))


def test_no_penalty_exceeds_those_of_training():
    """The claim: however long the text, the largest penalty stays near that of the first token at
    the trained length.
    """
    trained = np.abs(bias_of('alibi()', L)).max()
    for mode, length in itertools.product(MODES, (10, 16, 64)):
        largest = np.abs(np.tril(bias_of(f'alibi_pi(mode={mode!r})', length))).max()
        np.testing.assert_allclose(largest, 0.5 * (length - 1) * L / length, rtol=1e-6)
        plain = np.abs(np.tril(bias_of('alibi()', length))).max()
        assert largest < trained * L / (L - 1) < plain


def test_real_tokens_of_a_document_are_counted():
    segment, valid = np.repeat([[0, 1]], (12, 8), axis=1), np.arange(20)[None] != 0
    tok = pj.Tokens.of(segment=segment, valid=valid, positions=np.arange(20)[None] + 90)
    plain = bias_of('alibi()', 20, tok)
    for mode in MODES:
        bias = bias_of(f'alibi_pi(mode={mode!r})', 20, tok)
        np.testing.assert_array_equal(bias[:, 12:, 12:], plain[:, 12:, 12:])  # eight tokens
        scale = 11 / L if mode == 'dynamic' else np.maximum(1, np.arange(1, 12) / L)[:, None]
        np.testing.assert_allclose(bias[:, 1:12], plain[:, 1:12] / scale, rtol=1e-6)


@pytest.mark.full
def test_decoding_equals_the_pass_over_the_prefix_per_row_alone():
    ids, last = text(1, 14), {}
    for mode in MODES:
        model = model_of(f'alibi_pi(mode={mode!r})', **MODEL)
        last[mode] = decoded(model, ids, 3)[:, -1], np.asarray(read(model, ids))[:, -1]
    np.testing.assert_allclose(*last['per_row'], atol=1e-5)
    assert np.abs(np.subtract(*last['dynamic'])).max() > 1e-4
    # While it decodes, the length is that of the row.
    np.testing.assert_allclose(last['dynamic'][0], last['per_row'][0], atol=1e-6)


def test_it_takes_the_alibi_part_of_a_chain():
    slopes = (1.0, 0.5, 0.25, 0.125, 1.0, 1.0, 1.0, 1.0)
    trained = pj.make(f'rope() | alibi(slopes={slopes})', causal=True, **CONTEXT)
    longer = extend(trained, "alibi_pi(mode='per_row')", **CONTEXT)
    names = [name_of(part) for part in parts_of(longer)]
    assert names == ['rope', 'alibi_pi', 'causal', 'document']
    assert longer.parts[1].encoding is trained.parts[1] and longer.parts[1].train_len == L
    symmetric = pj.make('alibi_symmetric()', causal=False, **CONTEXT)
    assert extend(symmetric, 'alibi_pi(2.0)', **CONTEXT).parts[0].factor == 2.0
    written = extended_spec('rope() | alibi()', 'alibi_pi(factor=2.0)')
    assert written == 'rope() | alibi_pi(encoding=alibi(), factor=2.0)'


@pytest.mark.full
def test_an_extended_model_keeps_its_slopes():
    model, ids = model_of('alibi(learn_slopes=True)', heads=4), text(1, 16)
    same, longer = model.extend('alibi_pi(factor=1.0)'), model.extend('alibi_pi(factor=2.0)')
    np.testing.assert_allclose(read(same, ids), read(model, ids), atol=1e-6)
    halved = nnx.clone(model)
    for part in (*halved.shared, *(part for block in halved.blocks for part in block.encodings)):
        if name_of(part) == 'alibi':
            part.log_slopes[...] = part.log_slopes[...] - jnp.log(2)
    np.testing.assert_allclose(read(longer, ids), read(halved, ids), atol=1e-5)


def test_the_mask_of_half_stays():
    inner, outer = "alibi(variant='half')", "alibi_pi(factor=2.0, encoding=alibi(variant='half'))"
    tok = pj.Tokens.of(length=6)
    masks = (pj.make(spec, **CONTEXT).mask(tok, tok) for spec in (outer, inner))
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize(
    'encoding',
    ['rope()', 'kerple()', 'nope() | causal()', 'alibi_pi(factor=2.0)', 'alibi() | alibi()'],
)
def test_a_chain_without_one_alibi_is_refused_by_name(encoding):
    found = 2 if encoding == 'alibi() | alibi()' else 0
    names = ' | '.join(name_of(part) for part in parts_of(pj.make(encoding, **CONTEXT)))
    with pytest.raises(SpecError) as error:
        extend(pj.make(encoding, **CONTEXT), 'alibi_pi(factor=2.0)', **CONTEXT)
    assert f'alibi_pi extends one alibi; found {found} in {names}' in str(error.value)
    with pytest.raises(SpecError, match=f'alibi_pi extends one alibi; found {found}'):
        extended_spec(encoding, 'alibi_pi(factor=2.0)')
