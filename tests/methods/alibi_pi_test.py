"""ALiBi interpolated: scales, the three modes, what decoding does, and which part of a chain it
takes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.alibi import VARIANTS, alibi_slopes
from posenc_jax.methods.alibi_pi import alibi_pi_scale
from posenc_jax.methods.extend import extend, extended_spec
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('alibi_pi')
L = GOLDEN['train_len']
CONTEXT = dict(heads=8, head_dim=4, train_len=L)


def bias_of(spec, length, tok=None, **context):
    """What is added to the logits [N, T, S] of one row."""
    encoding, tok = (
        pj.make(spec, **{**CONTEXT, **context}),
        pj.Tokens.of(length=length) if tok is None else tok,
    )
    q = jnp.zeros((1, length, 8, 4))
    _, _, _, tq, tk = encoding.project(q, q, q, tok, tok)
    return np.asarray(
        encoding.logits(jnp.zeros((1, 8, length, length)), None, None, tq, tk, None, ())[0][0]
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', GOLDEN['scales'])
def test_scales(length):
    scale, plain = GOLDEN['scales'][length], bias_of('alibi()', int(length))
    assert alibi_pi_scale(jnp.array(int(length)), L) == scale
    np.testing.assert_allclose(
        bias_of("alibi_pi(mode='dynamic')", int(length)), plain / scale, rtol=1e-6
    )
    np.testing.assert_allclose(
        bias_of("alibi_pi(mode='per_row')", int(length))[:, -1], plain[:, -1] / scale, rtol=1e-6
    )


@pytest.mark.parametrize('mode', ['dynamic', 'per_row'])
def test_the_row_of_the_tenth_token(mode):
    np.testing.assert_allclose(
        bias_of(f'alibi_pi(mode={mode!r})', 10)[0, 9], GOLDEN['row'], rtol=1e-6
    )


@pytest.mark.parametrize('mode', ['dynamic', 'per_row'])
def test_nothing_is_scaled_up_to_the_trained_length(mode):
    np.testing.assert_array_equal(bias_of(f'alibi_pi(mode={mode!r})', L), bias_of('alibi()', L))


@pytest.mark.parametrize('variant', VARIANTS)
def test_static_divides_the_bias_of_every_variant(variant):
    inner = f'alibi(variant={variant!r})'
    np.testing.assert_allclose(
        bias_of(f'alibi_pi(factor=2.5, encoding={inner})', 12), bias_of(inner, 12) / 2.5, rtol=1e-6
    )
    np.testing.assert_array_equal(bias_of('alibi_pi(factor=1.0)', 12), bias_of('alibi()', 12))


def test_no_penalty_exceeds_those_of_training():
    """The claim: however long the text, the largest penalty stays near that of the first token at
    the trained length.
    """
    trained = np.abs(bias_of('alibi()', L)).max()
    for mode in ('dynamic', 'per_row'):
        for length in (10, 16, 64):
            largest = np.abs(np.tril(bias_of(f'alibi_pi(mode={mode!r})', length))).max()
            np.testing.assert_allclose(largest, 0.5 * (length - 1) * L / length, rtol=1e-6)
            assert (
                largest < trained * L / (L - 1) < np.abs(np.tril(bias_of('alibi()', length))).max()
            )


def test_real_tokens_of_a_document_are_counted():
    segment, valid = np.repeat([[0, 1]], (12, 8), axis=1), np.arange(20)[None] != 0
    tok = pj.Tokens.of(segment=segment, valid=valid, positions=np.arange(20)[None] + 90)
    plain = bias_of('alibi()', 20, tok)
    for mode in ('dynamic', 'per_row'):
        bias = bias_of(f'alibi_pi(mode={mode!r})', 20, tok)
        np.testing.assert_array_equal(bias[:, 12:, 12:], plain[:, 12:, 12:])  # eight tokens
        scale = 11 / L if mode == 'dynamic' else np.maximum(1, np.arange(1, 12) / L)[:, None]
        np.testing.assert_allclose(bias[:, 1:12], plain[:, 1:12] / scale, rtol=1e-6)


read, step = jax.jit(prefill), jax.jit(decode_step)
logits_of = jax.jit(lambda model, tokens: model(tokens))


def decoded(model, tokens, prompt):
    tok = pj.Tokens.of(length=tokens.shape[1])
    logits, cache = read(model, init_cache(model, tok), tokens[:, :prompt])
    rows = [*np.moveaxis(np.asarray(logits), 1, 0)]
    for t in range(prompt, tokens.shape[1]):
        logits, cache = step(model, cache, tokens[:, t])
        rows.append(logits)
    return np.stack(rows, axis=1)


@pytest.mark.parametrize(
    'spec, layers, same',
    [("alibi_pi(mode='per_row')", 2, True), ("alibi_pi(mode='dynamic')", 2, False)],
)
@pytest.mark.full
def test_decoding_equals_the_pass_over_the_prefix_as_promised(spec, layers, same):
    cfg = TransformerConfig(
        vocab_size=11, train_len=4, layers=layers, width=32, heads=4, encoding=spec
    )
    model, tokens = (
        Transformer(cfg, rngs=nnx.Rngs(0)),
        jax.random.randint(jax.random.key(1), (1, 14), 0, 11),
    )
    last, whole = decoded(model, tokens, 3)[:, -1], np.asarray(logits_of(model, tokens))[:, -1]
    difference = np.abs(last - whole).max()
    assert (difference < 1e-5) == same and (difference > 1e-4) != same, difference


@pytest.mark.full
def test_decoding_with_dynamic_is_per_row():
    run = lambda mode: decoded(
        Transformer(
            TransformerConfig(
                vocab_size=11,
                train_len=4,
                layers=2,
                width=32,
                heads=4,
                encoding=f'alibi_pi(mode={mode!r})',
            ),
            rngs=nnx.Rngs(0),
        ),
        jnp.arange(14)[None] % 11,
        3,
    )
    np.testing.assert_allclose(run('dynamic'), run('per_row'), atol=1e-6)


def test_it_takes_the_alibi_part_of_a_chain():
    trained = pj.make(
        'rope() | alibi(slopes=(1.0, 0.5, 0.25, 0.125, 1.0, 1.0, 1.0, 1.0))', causal=True, **CONTEXT
    )
    longer = extend(trained, "alibi_pi(mode='per_row')", **CONTEXT)
    assert [name_of(part) for part in parts_of(longer)] == [
        'rope',
        'alibi_pi',
        'causal',
        'document',
    ]
    assert longer.parts[1].encoding is trained.parts[1] and longer.parts[1].train_len == L
    assert (
        extend(pj.make('alibi_symmetric()', causal=False, **CONTEXT), 'alibi_pi(2.0)', **CONTEXT)
        .parts[0]
        .factor
        == 2.0
    )
    written = extended_spec('rope() | alibi()', 'alibi_pi(factor=2.0)')
    assert written == 'rope() | alibi_pi(encoding=alibi(), factor=2.0)'
    np.testing.assert_allclose(
        bias_of(written.split(' | ')[1], 9), bias_of('alibi()', 9) / 2, rtol=1e-6
    )


@pytest.mark.full
def test_an_extended_model_keeps_its_slopes():
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=2, width=16, heads=4, encoding='alibi(learn_slopes=True)'
    )
    model, tokens = Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(16)[None] % 7
    same, longer = model.extend('alibi_pi(factor=1.0)'), model.extend('alibi_pi(factor=2.0)')
    np.testing.assert_allclose(logits_of(same, tokens), logits_of(model, tokens), atol=1e-6)
    halved = nnx.clone(model)
    for part in (*halved.shared, *(part for block in halved.blocks for part in block.encodings)):
        if name_of(part) == 'alibi':
            part.log_slopes[...] = jnp.broadcast_to(
                jnp.log(alibi_slopes(4) / 2), part.log_slopes[...].shape
            )
    np.testing.assert_allclose(logits_of(longer, tokens), logits_of(halved, tokens), atol=1e-5)


def test_the_mask_of_half_stays():
    inner, outer = "alibi(variant='half')", "alibi_pi(factor=2.0, encoding=alibi(variant='half'))"
    tok = pj.Tokens.of(length=6)
    np.testing.assert_array_equal(
        pj.make(outer, **CONTEXT).mask(tok, tok), pj.make(inner, **CONTEXT).mask(tok, tok)
    )
    with pytest.raises(
        SpecError, match='alibi_pi has heads that look at later keys only, which causal hides'
    ):
        pj.make(outer, causal=True, **CONTEXT)


@pytest.mark.parametrize(
    'spec, message',
    [
        ('alibi_pi(factor=0.5)', 'at least 1, got 0.5'),
        ('alibi_pi()', 'needs a factor'),
        ("alibi_pi(factor=2.0, mode='dynamic')", 'takes its scale from the length, got factor=2.0'),
        ("alibi_pi(mode='dinamic')", "'static', 'dynamic', 'per_row'"),
        ('alibi_pi(factor=2.0, encoding=rope())', 'alibi_pi extends ALiBi, got rope'),
        ('alibi_pi(factor=2.0, train_len=0)', 'length in tokens, must be at least 1, got 0'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, **CONTEXT)


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
