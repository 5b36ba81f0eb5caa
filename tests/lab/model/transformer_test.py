"""The transformer: against an independent forward pass, and what it does with the encodings it is
given.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.model import Transformer, TransformerConfig, unrolling
from posenc_jax.layer.layers import unchanged
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.methods.sinusoidal import Sinusoidal
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.refusals import check_refused

BASE = dict(vocab_size=11, train_len=8, layers=4, width=16, heads=4, encoding='alibi()')
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 11)


def model_of(seed=0, **fields):
    return Transformer(TransformerConfig(**{**BASE, **fields}), rngs=nnx.Rngs(seed))


def count(model, kind=nnx.Param):
    return sum(a.size for a in jax.tree.leaves(nnx.state(model, kind)))


def plain_forward(model, tokens):
    """Written out with dense ALiBi attention, layer after layer, in float64."""
    f = lambda a: np.asarray(a[...], np.float64)
    cfg, block = model.cfg, model.blocks[0]

    def norm(x, module, layer):
        if module is unchanged:
            return x
        scale = f(module.scale)
        scale = scale if layer is None else scale[layer]
        if module.bias is None:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
        bias = f(module.bias)
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + (
            bias if layer is None else bias[layer]
        )

    def qk_normed(x, module, layer):  # [B, heads, T, H]
        rows = np.swapaxes(x, 1, 2)
        flat = rows.reshape(*rows.shape[:2], -1) if cfg.qk_norm == 'width' else rows
        return np.swapaxes(norm(flat, module, layer).reshape(rows.shape), 1, 2)

    x = f(model.embedding)[np.asarray(tokens)] * cfg.width**0.5
    length, group = tokens.shape[1], cfg.heads // cfg.kv_heads
    i, j = np.arange(length)[:, None], np.arange(length)[None]
    bias = -(2.0 ** (-8 * np.arange(1, cfg.heads + 1) / cfg.heads))[:, None, None] * abs(i - j)
    if cfg.kind == 'decoder':
        bias = np.where(j <= i, bias, -np.inf)
    for layer in range(cfg.layers):
        h = norm(x, block.attention_norm, layer)
        q, k, v = (
            np.einsum('btd,dnh->bnth', h, f(w)[layer])
            for w in (block.attention.w_q, block.attention.w_k, block.attention.w_v)
        )
        q, k = (
            qk_normed(q, block.attention.q_norm, layer),
            qk_normed(k, block.attention.k_norm, layer),
        )
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        s = np.einsum('bnth,bnsh->bnts', q, k) / np.sqrt(cfg.head_dim) + bias
        w = np.exp(s - s.max(-1, keepdims=True))
        out = np.einsum('bnts,bnsh->btnh', w / w.sum(-1, keepdims=True), v)
        out = norm(out, block.attention.head_norm, layer)
        out = np.einsum('btnh,nhd->btd', out, f(block.attention.w_out)[layer])
        x = x + norm(out, block.attention_norm_after, layer)
        h = norm(x, block.mlp_norm, layer)
        up = h @ f(block.mlp.w_in)[layer]
        if cfg.mlp == 'geglu':
            up = up * np.asarray(jax.nn.gelu(h @ f(block.mlp.w_gate)[layer]))
        elif cfg.mlp == 'swiglu':
            gate = h @ f(block.mlp.w_gate)[layer]
            up = gate / (1 + np.exp(-gate)) * up
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + norm(up @ f(block.mlp.w_out)[layer], block.mlp_norm_after, layer)
    x = norm(x, model.norm, None)
    logits = x @ (f(model.embedding).T if model.output is None else f(model.output))
    cap = cfg.output_cap
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'fields',
    [
        {},
        dict(
            kind='encoder',
            norm='layernorm',
            mlp='swiglu',
            kv_heads=2,
            tie=False,
            head_dim=6,
            mlp_width=20,
        ),
        dict(kv_heads=1, mlp='swiglu'),
        dict(norm_place='both', qk_norm='head', mlp='geglu', output_cap=2.0),
        dict(norm_place='after', qk_norm='width', kv_heads=2),
        dict(norm='layernorm', head_norm=True),
    ],
)
def test_logits_are_those_of_a_plain_forward_pass(fields):
    model = model_of(**fields)
    # Weights of norms are ones at first, which would hide where they stand.
    noisy = lambda a: a * (1 + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape))
    nnx.update(model, jax.tree.map(noisy, nnx.state(model, nnx.Param)))
    logits = model(TOKENS)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, plain_forward(model, TOKENS), atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('tie', [False, True])
def test_the_first_loss_is_that_of_no_knowledge_unless_the_output_is_tied(tie):
    logits = model_of(width=256, encoding='nope()', tie=tie)(TOKENS)
    others = jnp.arange(11) != TOKENS[..., None]
    loss = -jnp.where(others, jax.nn.log_softmax(logits), 0).sum() / others.sum()
    assert loss > 8 if tie else abs(loss - np.log(11)) < 1.5, loss


@pytest.mark.parametrize('remat', ['full', 'dots'])
@pytest.mark.full
def test_rematerialisation_changes_no_gradient(remat):
    def gradients(remat):
        graphdef, params, rest = nnx.split(
            model_of(remat=remat, encoding='alibi()'), nnx.Param, ...
        )
        loss = lambda params: (nnx.merge(graphdef, params, rest)(TOKENS) ** 2).mean()
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        return jax.tree.leaves(jax.grad(loss)(params)), text

    plain, text = gradients('none')
    again, remat_text = gradients(remat)
    assert remat_text.count('remat') > text.count('remat')
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_activations_keep_float32_parameters_and_logits():
    exact, rounded = model_of(), model_of(dtype='bfloat16')
    assert rounded.hidden(TOKENS).dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype('float32')}
    logits = rounded(TOKENS)
    assert logits.dtype == jnp.float32
    error = float(jnp.abs(logits - exact(TOKENS)).max())
    assert 1e-4 < error < 0.05 * float(jnp.abs(logits).max())  # rounded, and not by much


def test_parallel_branches_read_the_same_vectors():
    # Not a multiple of the vectors, which the norm behind it would undo.
    x, mix = jax.random.normal(jax.random.key(0), (2, 5, 16)), lambda h: h[..., ::-1]
    for parallel in (True, False):
        ((_, block),) = model_of(layers=1, parallel=parallel).layers()
        mixed = x + mix(block.attention_norm(x))
        expected = mixed + block.mlp(block.mlp_norm(x if parallel else mixed))
        np.testing.assert_allclose(block.around(x, mix), expected, atol=1e-6)


def test_hidden_and_logits_make_up_the_call_and_last_cuts_it():
    model = model_of()
    logits = model(TOKENS)
    np.testing.assert_array_equal(model.logits(model.hidden(TOKENS)), logits)
    np.testing.assert_allclose(model(TOKENS, last=2), logits[:, -2:], atol=1e-6)


def test_compiled_program_does_not_grow_with_depth():
    def program(layers):
        model = model_of(layers=layers, encoding='alibi()')
        return jax.jit(lambda m: m(TOKENS)).lower(model).as_text()

    assert len(program(24)) < 1.05 * len(program(9))
    # A CPU unrolls the loop over few layers.
    assert 'stablehlo.while' in program(9) and 'stablehlo.while' not in program(8)


def test_the_loop_over_layers_has_the_gradients_of_its_unrolled_form(monkeypatch):
    def gradients():
        model = model_of(layers=4, encoding='fire()', share='layer')
        graphdef, state = nnx.split(model)
        loss = lambda state: nnx.merge(graphdef, state)(TOKENS).var()
        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    unrolled = gradients()
    monkeypatch.setattr(unrolling, 'UNROLLED_LAYERS', 0)
    for one, other in zip(unrolled, gradients(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_padding_and_packing_change_nothing(toys):
    short = TOKENS[:, :6]
    model = model_of(encoding='toy_table() | toy_gate()')
    alone = model(short)
    forward = jax.jit(lambda tokens, valid: model(tokens, Tokens.of(valid=valid)))
    padded, valid = (
        jnp.pad(short, ((0, 0), (3, 0)), constant_values=7),
        jnp.broadcast_to(jnp.arange(9) >= 3, (2, 9)),
    )
    np.testing.assert_allclose(forward(padded, valid)[:, 3:], alone, atol=1e-5)
    np.testing.assert_allclose(
        forward(jnp.roll(padded, -3, 1), jnp.roll(valid, -3, 1))[:, :6], alone, atol=1e-5
    )
    model = model_of(encoding='toy_table() | toy_slope()')
    packed = jnp.concatenate([TOKENS[:, :4], short], axis=1)
    tok = Tokens.of(segment=jnp.array([[0] * 4 + [1] * 6]))
    np.testing.assert_allclose(model(packed, tok)[:, 4:], model(short), atol=1e-5)


# Parameters of encodings: once for the model, or once a layer.


def test_share_decides_where_parameters_live(toys):
    rest = count(model_of())
    assert count(model_of(encoding='toy_slope()')) - rest == 4  # its card says model
    assert count(model_of(encoding='toy_slope()', share='layer')) - rest == 4 * 4
    assert count(model_of(encoding='toy_gate()')) - rest == 4 * 16 * 4  # its card says layer
    assert count(model_of(encoding='toy_gate()', share='model')) - rest == 16 * 4
    assert (
        count(model_of(encoding='toy_table(rows=30)')) - rest == 30 * 16
    )  # the stem exists once, whatever the card says
    assert count(model_of(encoding='toy_slope()', share='layer'), Constant) == 4 * 4


@pytest.mark.full
def test_every_parameter_is_used_and_drawn_independently(toys):
    graphdef, params, rest = nnx.split(
        model_of(
            encoding='toy_table() | toy_gate() | toy_slope()',
            mlp='swiglu',
            norm='layernorm',
            tie=False,
        ),
        nnx.Param,
        ...,
    )
    grads = jax.grad(lambda p: (nnx.merge(graphdef, p, rest)(TOKENS)[..., 0] ** 2).mean())(params)
    for path, grad in nnx.to_flat_state(grads):
        assert jnp.abs(grad.get_value()).max() > 0, path
    drawn = [
        np.asarray(layer).ravel()[:16] / np.asarray(layer).std()
        for path, p in nnx.to_flat_state(params)
        if path[-1] not in ('scale', 'bias')
        for layer in (p.get_value() if path[0] == 'blocks' else [p.get_value()])
    ]
    assert (
        len({tuple(d[:4].round(4)) for d in drawn}) == len(drawn) == 2 + 4 * (4 + 3 + 1) + 2
    )  # embedding and output; four layers; table and slope


def test_pattern_cycles_over_the_layers_and_shares_equal_parts(toys):
    specs = ('toy_slope()', 'toy_slope() | window(size=2)')
    model = model_of(pattern=specs)
    assert count(model) == count(model_of()) + 4
    causal = jnp.tril(jnp.ones((9, 9), bool))
    masks = [
        model.encoding(layer_type, block).mask(*(Tokens.of(length=9),) * 2)
        for layer_type, block in model.layers()
    ]
    for layer, mask in enumerate(masks):
        band = causal if layer % 2 == 0 else causal & ~jnp.tril(causal, -2)
        np.testing.assert_array_equal(jnp.broadcast_to(mask[0, 0], (9, 9)), band)
    # The scan visits the layers in that order.
    x = model.embed(TOKENS, (tok := Tokens.of(length=9),) * 2)
    for layer_type, block in model.layers():
        x = block(x, tok, model.encoding(layer_type, block))
    np.testing.assert_allclose(model.norm(x), model.hidden(TOKENS), atol=1e-5)


# Randomness.


def test_key_places_positions_and_train_turns_dropout_on(toys):
    model = model_of(encoding='toy_shift() | toy_table()', dropout=0.3)
    key = jax.random.key(3)
    still = model(TOKENS)
    np.testing.assert_array_equal(still, model(TOKENS))
    moved = model(TOKENS, key=key)
    assert jnp.abs(moved - still).max() > 1e-3
    shift = jax.random.randint(jax.random.fold_in(jax.random.split(key, 3)[0], 0), (), 0, 30)
    shifted = Tokens.of(positions=jnp.arange(9)[None] + shift - 3)
    np.testing.assert_allclose(moved, model(TOKENS, shifted), atol=1e-5)
    trained = model(TOKENS, key=key, train=True)
    assert jnp.abs(trained - moved).max() > 1e-3
    np.testing.assert_array_equal(trained, model(TOKENS, key=key, train=True))


def test_layers_drop_different_entries():
    model = model_of(dropout=0.5)
    keys = []
    block_class = type(model.blocks[0])
    original = block_class.__call__

    def spy(self, x, tok, encoding, *, key=None, source=None):
        jax.debug.callback(
            lambda data: keys.append(tuple(np.asarray(data))), jax.random.key_data(key)
        )
        return original(self, x, tok, encoding, key=key, source=source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_class, '__call__', spy)
        model(TOKENS, key=jax.random.key(0), train=True).block_until_ready()
        jax.effects_barrier()
    assert len(set(keys)) == 4


# Extension.


def test_extension_changes_the_encoding_and_keeps_the_weights(toys):
    model = model_of(encoding='toy_slope() | rope()', heads=2)
    longer = model.extend('pi(factor=2.0)')
    assert count(longer) == count(model)
    doubled = Tokens.of(positions=2 * jnp.arange(9)[None])
    expected = model_of(encoding='rope()', heads=2)
    halved = expected.extend('pi(factor=2.0)')
    np.testing.assert_allclose(halved(TOKENS, doubled), expected(TOKENS), atol=1e-5)
    for a, b in zip(
        jax.tree.leaves(nnx.state(model, nnx.Param)),
        jax.tree.leaves(nnx.state(longer, nnx.Param)),
        strict=True,
    ):
        assert a is b or (a == b).all()


def test_extension_of_a_pattern_reaches_the_layers_that_have_something_to_extend():
    model = model_of(pattern=('rope()', 'nope()'), heads=2)
    longer = model.extend('pi(factor=2.0)')
    names = [
        [part.card.key for part in longer.encoding(layer_type, block).parts]
        for layer_type, block in longer.layers()[:2]
    ]
    assert names == [['rope', 'causal', 'document'], ['nope', 'causal', 'document']]
    assert jnp.abs(longer(TOKENS) - model(TOKENS)).max() > 1e-4
    with pytest.raises(SpecError, match='found 0'):
        model_of(encoding='nope()').extend('pi(factor=2.0)')


# Parts of its own for every layer.


@pytest.mark.parametrize('share', ['model', 'layer'])
@pytest.mark.parametrize(
    'pattern', [(), ('alibi()', 'window(size=3) | alibi()'), ('nope()', 'alibi()')], ids=str
)
@pytest.mark.full
def test_parts_of_a_class_become_one_a_layer(pattern, share):
    model = model_of(pattern=pattern, share=share)

    def steeper(part, layers):
        part.slopes = Constant(part.slopes[...] * (2.0 + layers)[:, None], axes=('heads',))
        return part

    before = jax.tree.map(np.asarray, nnx.state(model))
    mapped = model.map_parts(ALiBi, steeper)
    chex.assert_trees_all_equal(nnx.state(model), before)
    tok = Tokens.of(length=9)
    x = model.embed(TOKENS, model.place(tok))
    layers = list(zip(model.layers(), mapped.layers(), strict=True))
    for number, ((layer_type, block), (_, own)) in enumerate(layers):
        old, new = (
            parts_of(one.encoding(layer_type, at)) for one, at in ((model, block), (mapped, own))
        )
        expected = []
        for part, theirs in zip(old, new, strict=True):
            if isinstance(part, ALiBi):
                np.testing.assert_allclose(theirs.slopes[...], (2 + number) * part.slopes[...])
                part = ALiBi(
                    slopes=tuple(np.asarray((2 + number) * part.slopes[...]).tolist()), heads=4
                )
            expected.append(part)
        x = block(x, tok, chain(*expected))
    np.testing.assert_allclose(mapped(TOKENS), model.logits(model.norm(x)), atol=2e-5)
    assert not any(isinstance(part, ALiBi) for part in mapped.shared)
    once_more = mapped.map_parts(ALiBi, lambda part, layers: part)
    np.testing.assert_array_equal(once_more(TOKENS), mapped(TOKENS))


def test_parts_that_are_not_there_or_exist_once_cannot_be_mapped():
    calls = {
        r'has no alibi part; its layers have nope \| causal \| document': lambda: model_of(
            encoding='nope()'
        ).map_parts(ALiBi, lambda part, layers: part),
        "sinusoidal opens 'embed' and exists once": lambda: model_of(
            encoding='sinusoidal()'
        ).map_parts(Sinusoidal, lambda part, layers: part),
    }
    check_refused(calls)


# Wrong input.


@pytest.mark.parametrize(
    'message, fields',
    {
        '4 heads are not a multiple of 3 kv_heads': dict(kv_heads=3),
        'width 18 is not a multiple of 4 heads': dict(width=18),
        "norm is 'rms_norm'; did you mean 'rmsnorm'": dict(norm='rms_norm'),
        "mlp is 'swigelu'; did you mean 'swiglu'": dict(mlp='swigelu'),
        "norm_place is 'behind'": dict(norm_place='behind'),
        "qk_norm is 'heads'; did you mean 'head'": dict(qk_norm='heads'),
        'output_cap, 0 for none, must be at least 0, got -1.0': dict(output_cap=-1.0),
        'output_cap, 0 for none, must be at least 0, got nan': dict(output_cap=float('nan')),
        "bias='all' is not defined for mlp='geglu'": dict(mlp='geglu', bias='all'),
        "did you mean 'decoder'": dict(kind='decodr'),
        "did you mean 'model'": dict(share='models'),
        "did you mean 'full'": dict(remat='ful'),
        "did you mean 'bfloat16'": dict(dtype='bfloat'),
        "did you mean 'blocked'": dict(implementation='block'),
        'dropout must be at least 0 and below 1, got 1.0': dict(dropout=1.0),
        'layers must be at least 1 and below 2147483648, got 0': dict(layers=0),
        '4 layers are not a multiple of the pattern of 3 encodings': dict(
            pattern=('alibi()', 'nope()', 'nope()')
        ),
    }.items(),
)
def test_wrong_sizes_and_names_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**BASE, **fields})


def test_ids_that_the_vocabulary_lacks_are_errors_and_nan_where_they_are_traced():
    model, size = model_of(), BASE['vocab_size']
    for wrong in (size, -1):
        tokens = np.asarray(TOKENS).copy()
        tokens[1, 4] = wrong
        with pytest.raises(
            ValueError,
            match=rf'token ids lie in 0 .. {size - 1} \(vocab_size\), got .*{abs(wrong)}',
        ):
            model(jnp.asarray(tokens))
        out = jax.jit(lambda tokens: model(tokens))(jnp.asarray(tokens))
        assert np.isnan(out[1]).any() and np.isfinite(out[0]).all()
        padding = Tokens.of(valid=np.asarray(tokens) != wrong)
        assert np.isfinite(model(jnp.asarray(tokens), padding)).all()


def test_wrong_calls_are_errors():
    model = model_of()
    calls = {
        r'integers \[B, T\], got int32 \(9,\)': lambda: model(TOKENS[0]),
        'got float32': lambda: model(TOKENS.astype(float)),
        r'\(2, 9\) do not fit .* \(1, 8\)': lambda: model(TOKENS, Tokens.of(length=8)),
        'needs a key': lambda: model(TOKENS, train=True),
        r'1 \.\. 9, got 10': lambda: model(TOKENS, last=10),
        "did you mean 'alibi'": lambda: model_of(encoding='alibo()'),
    }
    check_refused(calls)


def test_config_of_a_run_gives_the_model_config():
    from configs.default import get_config

    config = get_config()
    config.train.length, config.pattern = 32, ['rope()', 'nope()']
    cfg = TransformerConfig.from_config(config, 17)
    assert (cfg.vocab_size, cfg.train_len, cfg.kv_heads, cfg.head_dim, cfg.mlp_width) == (
        17,
        32,
        8,
        32,
        1024,
    )
    assert cfg.specs == ('rope()', 'nope()')
    # What the class fills in by itself is what the configs say; a task sets the other sizes.
    elsewhere = (
        'pattern',
        'share',
        'cross',
        'source_encoding',
        'source_pattern',
        'output_size',
        'pool',
    )
    for field in dataclasses.fields(TransformerConfig):
        if field.default is not dataclasses.MISSING and field.name not in (
            *elsewhere, 'source_size', 'source_len', 'channels', 'features'
        ):  # fmt: skip
            assert field.default == get_config().model[field.name], field.name
