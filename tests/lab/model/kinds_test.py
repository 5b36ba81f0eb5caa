"""Encoders, models that predict a class, and encoder-decoders: from the forward pass to decoding,
on a mesh, through extensions, adapters and a whole run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.duo_attention.cache import streaming
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recurrence import read_segment
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.layers import pooled
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.refusals import check_refused

BASE = dict(vocab_size=11, train_len=8, layers=2, width=16, heads=2, encoding='rope()')
SOURCE = dict(kind='encoder_decoder', source_size=7, source_len=6)
TARGETS = np.random.default_rng(0).integers(0, 11, (2, 8))
TEXT = np.random.default_rng(1).integers(0, 7, (2, 6))
UNEQUAL = Tokens.of(valid=np.arange(6) < np.array([[6], [4]]))


@functools.lru_cache
def model_of(**fields):
    return Transformer(TransformerConfig(**{**BASE, **fields}), rngs=nnx.Rngs(0))


def two_sided(**fields):
    return model_of(**{**SOURCE, **fields})


def logits_of(model, text=TEXT, tok=UNEQUAL, targets=TARGETS, **given):
    return model(targets, source=model.encoded(text, tok), **given)


def test_an_encoder_has_outputs_of_its_own_number_that_see_all_tokens():
    model = model_of(kind='encoder', output_size=5)
    out = model(TARGETS)
    assert out.shape == (2, 8, 5)
    changed = model(np.where(np.arange(8) == 7, (TARGETS + 1) % 11, TARGETS))
    assert np.abs(out - changed)[:, 0].max() > 1e-4


@pytest.mark.parametrize('pool, at', [('first', 1), ('last', 2), ('mean', None)])
def test_a_class_is_predicted_from_the_valid_tokens(pool, at):
    valid = np.array([[False, True, True, False]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)), jnp.float32)
    expected = x[:, 1:3].mean(1) if at is None else x[:, at]
    np.testing.assert_allclose(pooled(x, Tokens.of(valid=valid), pool)[:, 0], expected, atol=1e-6)
    model = model_of(kind='encoder', output_size=3, pool=pool)
    padded = np.pad(TARGETS, ((0, 0), (0, 3)))
    tok = Tokens.of(valid=np.arange(11)[None] < 8)
    assert model(TARGETS).shape == (2, 1, 3)
    np.testing.assert_allclose(model(padded, tok), model(TARGETS), atol=1e-5)


@pytest.mark.full_where(condition=lambda cross: cross != 'rope()')
@pytest.mark.parametrize('cross', ['nope()', 'rope()', 'alibi_symmetric()', 't5_rpe()'])
def test_decoding_equals_the_whole_pass_with_unequal_sources(cross):
    model = two_sided(cross=cross)
    whole = logits_of(model)
    # The padding of a source is not read, and neither is another row.
    alone = model(TARGETS[1:], source=model.encoded(TEXT[1:, :4]))
    np.testing.assert_allclose(whole[1:], alone, atol=1e-5)
    cache = init_cache(model, Tokens.of(length=8), model.encoded(TEXT, UNEQUAL))
    first, cache = prefill(model, cache, TARGETS[:, :3])
    rows = [first]
    for place in range(3, 8):
        logits, cache = decode_step(model, cache, TARGETS[:, place])
        rows.append(logits[:, None])
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, atol=1e-5)


def test_no_token_sees_a_later_one_but_all_see_the_source():
    model = two_sided()
    later = logits_of(model, targets=np.where(np.arange(8) < 5, TARGETS, 0))
    np.testing.assert_array_equal(later[:, :5], logits_of(model)[:, :5])
    other = logits_of(model, text=np.where(np.arange(6) == 3, (TEXT + 1) % 7, TEXT))
    assert np.abs(other - logits_of(model)).max(axis=(0, 2)).min() > 1e-6


@pytest.mark.parametrize('rows', [1, pytest.param(2, marks=pytest.mark.full)])
def test_generation_reads_the_source_once(rows):
    model = two_sided(cross='rope()')
    source = model.encoded(TEXT[:rows], Tokens.of(valid=UNEQUAL.valid[:rows]))
    out = generate(model, TARGETS[:rows, :2], max_new_tokens=4, temperature=0.0, source=source)
    for place in range(2, 6):
        whole = model(np.asarray(out)[:, :place], source=source)
        np.testing.assert_array_equal(out[:, place], jnp.argmax(whole[:, -1], -1))


@pytest.mark.full
def test_forms_of_the_model_for_decoding_compute_the_same():
    model = two_sided(lora_rank=2)
    for block in (*model.blocks, *model.encoder.blocks):
        for holder in filter(None, (block, block.cross)):
            for adapter in holder.attention.adapters.values():
                adapter.up[...] = jnp.full_like(adapter.up[...], 0.05)
    whole = logits_of(model)
    for other in (model.merged(), model.unstacked(), model.for_decoding()):
        np.testing.assert_allclose(logits_of(other), whole, atol=1e-5)
    assert model.merged().cfg.lora_rank == model.merged().encoder.cfg.lora_rank == 0
    for block in (*model.blocks, *model.encoder.blocks):  # the model is shared by the tests
        for holder in filter(None, (block, block.cross)):
            for adapter in holder.attention.adapters.values():
                adapter.up[...] = jnp.zeros_like(adapter.up[...])


def test_an_extension_reaches_both_sides():
    model = two_sided()
    extended = model.extend('pi(factor=2.0)')
    for stack in (extended, extended.encoder):
        (rope,) = [
            p for p in stack.encoding(0, stack.layers()[0][1]).parts if 'rotates' in p.traits
        ]
        assert rope.freqs.factor == 2.0
    assert np.abs(logits_of(extended) - logits_of(model)).max() > 1e-4
    learned = two_sided(encoding='nope()', source_encoding='rope()')
    assert np.abs(logits_of(learned.extend('pi(factor=2.0)')) - logits_of(learned)).max() > 1e-5
    with pytest.raises(SpecError, match='pi'):
        two_sided(encoding='nope()').extend('pi(factor=2.0)')


@pytest.mark.full
def test_sharded_equals_unsharded():
    model = two_sided(cross='alibi_symmetric()')
    whole = logits_of(model)
    with jax.set_mesh(make_mesh(data=2, tensor=2, devices=jax.devices()[:4])):
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda state: logits_of(nnx.merge(graphdef, state)))
        np.testing.assert_allclose(run(state), whole, atol=1e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('remat', ['none', pytest.param('full', marks=pytest.mark.full)])
def test_gradients_reach_both_sides(dtype, remat):
    model = two_sided(dtype=dtype, remat=remat, dropout=0.1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model, key = nnx.merge(graphdef, params, rest), jax.random.key(0)
        source = model.encoded(TEXT, UNEQUAL, key=key, train=True)
        return model(TARGETS, key=key, train=True, source=source).var()

    grads = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for _, g in grads)


@pytest.mark.parametrize(
    'message, fields',
    {
        "cross is 'rope\\(\\)', but kind is 'decoder'": dict(cross='rope()'),
        "source_size is 7, but kind is 'decoder'": dict(source_size=7),
        'needs source_size of at least 1': dict(kind='encoder_decoder'),
        "pool must be ''": dict(**SOURCE, pool='mean'),
        'source_pattern must name': dict(**SOURCE, pattern=('rope()', 'nope()')),
        "source_pattern is .*, but kind is 'decoder'": dict(source_pattern=('rope()',)),
        'source_pattern: 3 la': dict(
            **SOURCE, source_layers=3, source_pattern=('rope()', 'nope()')
        ),
        'leave one of them': dict(**SOURCE, source_encoding='rope()', source_pattern=('nope()',)),
        "did you mean 'encoder_decoder'": dict(kind='encoder_decode'),
        '11 inputs for 5 outputs': dict(tie=True, output_size=5),
        "pool is 'max'": dict(pool='max'),
    }.items(),
)
def test_fields_that_do_not_fit_the_kind(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**BASE, **fields})


@pytest.mark.parametrize(
    'message, cross',
    {
        "learned_absolute .* opens 'place'": 'learned_absolute(max_len=9)',
        "opens 'place'": 'randomized_pe(max_len=64) | rope()',
        'path': 'path()',
        'cable': 'cable()',
        'depend on other tokens': 'rope(freqs=dynamic_ntk())',
        'hides keys by their index': 'causal()',
        'window.*hides keys by their index': 'window(size=2)',
    }.items(),
)
def test_encodings_that_cross_attention_refuses(cross, message):
    with pytest.raises(SpecError, match=message):
        model_of(**SOURCE, cross=cross)


def test_a_source_is_given_where_it_is_read():
    model, plain = two_sided(), model_of()
    calls = {
        "'encoder_decoder' needs source": lambda: model(TARGETS),
        "kind 'decoder' reads no source": lambda: plain.encoded(TEXT),
        "'decoder' reads no source": lambda: plain(TARGETS, source=model.encoded(TEXT)),
        '2 rows of tokens, but 1 of the source': lambda: model(
            TARGETS, source=model.encoded(TEXT[:1])
        ),
        'ids lie in 0 .. 6': lambda: model.encoded(TEXT + 1),
        'needs source': lambda: generate(model, TARGETS, max_new_tokens=1, temperature=0.0),
        'cross-attention needs a source': lambda: read_segment(model, TARGETS, length=4),
        '11 inputs and 5 outputs|needs a decoder': lambda: init_cache(
            model_of(kind='encoder', output_size=5), Tokens.of(length=4)
        ),
        '12 outputs': lambda: init_cache(model_of(output_size=12), Tokens.of(length=4)),
        'table|at most|position': lambda: two_sided(
            source_encoding='learned_absolute(max_len=6)'
        ).encoded(np.zeros((1, 9), int)),
    }
    check_refused(calls)


def test_methods_without_a_source_refuse():
    model = two_sided(encoding='duo_attention(sink=1, recent=2)', source_encoding='rope()')
    source = model.encoded(TEXT)
    with pytest.raises(ValueError, match='source'):
        generate(
            model, TARGETS, max_new_tokens=1, temperature=0.0, source=source,
            decoding=streaming(model),
        )  # fmt: skip


def test_the_order_of_the_translation_does_not_reach_cross_attention():
    model = two_sided(source_encoding='xlpe()', encoding='rope()', cross='rope()')
    order = np.stack([np.arange(6), np.arange(6)[::-1]], axis=-1)[None]
    source = model.encoded(TEXT, Tokens.of(positions=order))
    np.testing.assert_array_equal(source.tok.pos, np.arange(6)[None])
    assert model(TARGETS, source=source).shape == (2, 8, 11)


def test_the_layers_of_a_source_have_a_pattern():
    """XL PE acts in the first layer of the source alone, as in its paper."""
    pattern = ('xlpe(level="head", missing="identity")', 'nope()')
    model = two_sided(source_pattern=pattern, source_layers=2)
    keys = [
        [part.card.key for part in model.encoder.encoding(*at).parts if hasattr(part, 'card')]
        for at in model.encoder.layers()
    ]
    assert 'xlpe' in keys[0] and 'xlpe' not in keys[1]
    every = two_sided(source_encoding=pattern[0], source_layers=2)
    assert model.encoded(TEXT, UNEQUAL).x.shape == every.encoded(TEXT, UNEQUAL).x.shape


def test_adapters_and_norms_of_queries_need_a_layer_with_attention():
    with pytest.raises(SpecError, match='lora_rank is 2, .* no layer of cheems.* set it to 0'):
        model_of(encoding='cheems(chunk=4)', lora_rank=2)
    with pytest.raises(SpecError, match="qk_norm is 'head', .* no layer of .* set it to 'none'"):
        model_of(encoding='cheems(chunk=4)', qk_norm='head')
    with pytest.raises(SpecError, match='head_norm is True, .* no layer of .* set it to False'):
        model_of(encoding='cheems(chunk=4)', head_norm=True)
