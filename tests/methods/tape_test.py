"""TAPE: by hand, RoPE at the start, a model against complex numbers in NumPy, equivariance, and the
stream through decoding, meshes, low precision and training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from configs import quickstart
from evidence.experiments import tape_addition
from posenc_jax.lab.config.overrides import replaced
from posenc_jax.lab.decoding.decode import append, decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recurrence import read_segment
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.runs.tuned import trained
from posenc_jax.lab.train.loop import train
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.methods.tape import TAPE, tape_attended, tape_fed, tape_start, tape_turn
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden
from tests.lab.train import tiny

GOLDEN = golden('tape')
BASE = dict(vocab_size=11, train_len=16, layers=2, width=16, heads=4, mlp='swiglu')
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 11)
GROUPED = dict(kv_heads=2)


def complexes(z):
    """The complex numbers of half-split pairs, float64."""
    real, imaginary = np.split(np.asarray(z, np.float64), 2, axis=-1)
    return real + 1j * imaginary


@functools.cache
def model_of(spec='tape()', *, moved=0.3, **fields):
    """A model; `moved` adds random numbers to the parameters of the encodings, which start near
    zero.
    """
    model = Transformer(TransformerConfig(encoding=spec, **{**BASE, **fields}), rngs=nnx.Rngs(0))
    for block in model.blocks:
        for number, part in enumerate(
            jax.tree.leaves(nnx.state(block.encodings), is_leaf=is_param)
        ):
            draw = np.random.default_rng(number + 5).standard_normal(part.shape, np.float32)
            part[...] = part[...] + moved * draw
    return model


def is_param(leaf):
    return isinstance(leaf, nnx.Variable)


def alike(model, spec, **fields):
    """A model with another encoding without parameters, and the other weights of `model`."""
    other = Transformer(TransformerConfig(encoding=spec, **{**BASE, **fields}), rngs=nnx.Rngs(1))
    state = dict(nnx.to_flat_state(nnx.state(model)))
    nnx.update(other, nnx.from_flat_state([
        (path, state[path]) for path, _ in nnx.to_flat_state(nnx.state(other))
    ]))  # fmt: skip
    return other


def through(model, tok, start=lambda z: z):
    """The layers of a model one after the other; returns the residual and the last stream."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state: _through(nnx.merge(graphdef, state), tok, start))(state)


def _through(model, tok, start):
    x = model.embed(TOKENS, (tok,))
    stream = start(model.begin_stream((tok,), len(x)))
    for layer_type, block in model.layers():
        mixer = model.mixer(layer_type, block)

        def mix(h, mixer=mixer):
            nonlocal stream
            y, stream = mixer.whole(h, tok, stream)
            return y

        def fed(m, mixer=mixer):
            nonlocal stream
            stream = mixer.feed(m, stream)

        x = block.around(x, mix, fed=fed)
    return x, stream


_run = jax.jit(lambda model, tokens, tok: model(tokens, tok))
prompted, step = jax.jit(prefill), jax.jit(decode_step)


def run(model, tokens=TOKENS, tok=None):
    """The logits, compiled."""
    return _run(model, tokens, tok)


# By hand, and against complex numbers.


def test_start_and_products_by_hand():
    z = tape_start(jnp.array([[3]]), rope_frequencies(4, 1e4) / 2)
    np.testing.assert_allclose(z.ravel(), GOLDEN['start'], atol=1e-6)
    x, z = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    turned = tape_turn(x[None, None, None], z[None, None, None])
    np.testing.assert_allclose(turned.ravel(), GOLDEN['turned'], atol=1e-6)


def test_position_attention_by_hand():
    golden = GOLDEN['two_tokens']
    mixer = pj.make('tape()', causal=True, heads=1, head_dim=2, model_dim=2, rngs=nnx.Rngs(0))
    part, tok, zeros = mixer.parts[0], Tokens.of(length=2), jnp.zeros((1, 2, 1, 2))
    part.weights[...] = jnp.full((1, 1), golden['gain'])
    stream = part.begin_stream(tok)
    seen = tok.with_feats(stream=stream)

    def attended(seen):
        projected = mixer.project(zeros, zeros, zeros, seen, seen)
        out = pj.attend(mixer, *projected, applied=pj.TOKEN_STAGE)
        return mixer.carry_stream(out, stream)

    out, carried = jax.jit(attended)(seen)
    assert out.shape == (1, 2, 1, 2)
    expected = np.stack([golden['real'], golden['imaginary']], axis=-1)
    np.testing.assert_allclose(carried[0, :, 0], expected, atol=1e-6)


def test_position_network_by_hand():
    golden = GOLDEN['network']
    z = jnp.array([[1.0, 0.0], [2.0, -1.0]])[None, None]
    w_up, w_down = jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [0.0]])
    fed = complexes(tape_fed(z, jnp.ones((1, 1, 1)), jnp.ones((1, 1)), w_up, w_down)[0, 0, :, 0:])
    expected = np.array(golden['real']) + 1j * np.array(golden['imaginary'])
    np.testing.assert_allclose(fed[:, 0], expected, atol=1e-6)
    assert jax.nn.silu(1.0) == pytest.approx(golden['gate'], abs=1e-6)


def reference(model, tokens, shift=0.0):
    """The residual behind the last layer and the last z, in float64 and complex numbers."""
    cfg = model.cfg
    kv, group = cfg.kv_heads, cfg.heads // cfg.kv_heads
    wide = lambda a: np.asarray(a, np.float64)
    norm = lambda x, own: (
        x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.epsilon) * wide(own.scale[...])
    )
    silu = lambda a: a / (1 + np.exp(-a))
    x = wide(model.embedding[...])[np.asarray(tokens)] * cfg.embedding_scale
    positions = np.arange(tokens.shape[1]) + shift
    theta = 10000.0 ** (-np.arange(cfg.head_dim // 2) * 2 / cfg.head_dim)
    z = np.exp(1j * positions[:, None] * theta)[None, :, None]
    z = np.broadcast_to(z, (*x.shape[:2], kv, cfg.head_dim // 2))
    later = np.triu(np.ones((x.shape[1],) * 2, bool), 1)
    for _, block in model.layers():
        part, own = block.encodings[0], block.attention
        y = norm(x, block.attention_norm)
        q, k, v = (np.einsum('bld,dnh->blnh', y, wide(w[...])) for w in (own.w_q, own.w_k, own.w_v))
        values, means = np.zeros_like(q), np.zeros((*q.shape[:3], z.shape[-1]), complex)
        for h in range(cfg.heads):
            g = h // group
            turned_q, turned_k = (
                complexes(q[:, :, h]) * z[:, :, g],
                complexes(k[:, :, g]) * z[:, :, g],
            )
            s = np.einsum('bif,bjf->bij', turned_q, turned_k.conj()).real / cfg.head_dim**0.5
            s = np.where(later, -np.inf, s)
            a = np.exp(s - s.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            values[:, :, h] = np.einsum('bij,bjh->bih', a, v[:, :, g])
            means[:, :, h] = np.einsum('bij,bjf->bif', a, z[:, :, g])
        x = x + np.einsum('blnh,nhd->bld', values, wide(own.w_out[...]))
        weights = wide(part.weights[...])
        if part.post_attn == 'mix':
            z = z + np.einsum('gn,blnf->blgf', weights, means)
        else:
            averages = means.reshape(*z.shape[:3], group, -1).mean(3)
            z = z + weights.sum(1)[:, None] * averages
        y = norm(x, block.mlp_norm)
        w_gate, w_in, w_out = (
            wide(w[...]) for w in (block.mlp.w_gate, block.mlp.w_in, block.mlp.w_out)
        )
        m = (silu(y @ w_gate) * (y @ w_in)) @ w_out
        hidden = silu(m @ wide(part.gate[...]))[..., None] * np.einsum(
            'he,blhf->blef', wide(part.up[...]), z
        )
        z = z + np.einsum('ge,blef->blgf', wide(part.down[...]), hidden)
        x = x + m
    return x, z


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec, fields', [('tape(post_attn="mix", position_size=3)', {}), ('tape()', GROUPED)]
)
def test_a_model_equals_complex_numbers(spec, fields):
    model = model_of(spec, **fields)
    expected, expected_z = reference(model, TOKENS)
    x, stream = through(model, Tokens.of(length=12))
    np.testing.assert_allclose(x, expected, atol=2e-5)
    np.testing.assert_allclose(complexes(stream), expected_z, atol=2e-5)
    np.testing.assert_allclose(run(model), model.logits(model.norm(x)), atol=2e-5)
    begun = complexes(model.begin_stream((Tokens.of(length=12),), 2))
    assert np.abs(expected_z - begun).max() > 0.5  # the state moved far from its start


# The limits, and what the equations promise.


def test_it_starts_as_rope():
    model = model_of(moved=0.0, **GROUPED)
    np.testing.assert_allclose(run(model), run(alike(model, 'rope()', **GROUPED)), atol=1e-6)
    assert np.abs(run(model) - run(alike(model, 'nope()', **GROUPED))).max() > 1e-2
    assert np.abs(run(model_of(**GROUPED)) - run(model)).max() > 1e-2


def test_scale_is_linear_interpolation_at_the_start():
    model = model_of('tape(scale=2.0)', moved=0.0)
    expected = run(alike(model, 'rope(freqs=pi(factor=2.0))'))
    np.testing.assert_allclose(run(model), expected, atol=1e-6)


def test_a_shift_of_all_positions_changes_nothing():
    model = model_of()
    shifted = run(model, TOKENS, Tokens.of(positions=np.arange(12)[None] + 1_000_003))
    np.testing.assert_allclose(shifted, run(model), atol=2e-5)
    exact, moved = reference(model, TOKENS)[0], reference(model, TOKENS, shift=1000.0)[0]
    np.testing.assert_allclose(moved, exact, atol=1e-11)
    stretched = run(model, TOKENS, Tokens.of(positions=2 * np.arange(12)[None]))
    assert np.abs(stretched - run(model)).max() > 1e-2


@pytest.mark.full
def test_phases_of_planes_rotate_the_state_and_nothing_else():
    model, tok = model_of('tape(post_attn="mix")'), Tokens.of(length=12)
    planes = model.cfg.head_dim // 2
    phases = jnp.arange(1.0, planes + 1)
    phase = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)])
    (x, stream), (turned_x, turned) = (
        through(model, tok),
        through(model, tok, lambda z: tape_turn(z, phase[None, None, None])),
    )
    np.testing.assert_allclose(turned_x, x, atol=2e-5)
    np.testing.assert_allclose(
        complexes(turned), complexes(stream) * np.exp(1j * np.asarray(phases)), atol=2e-5
    )
    own = jnp.arange(4.0)[:, None] * phases
    of_heads = jnp.concatenate([jnp.cos(own), jnp.sin(own)], axis=-1)[None, None]
    broken, _ = through(model, tok, lambda z: tape_turn(z, of_heads))
    assert np.abs(broken - x).max() > 1e-2


@pytest.mark.full
def test_an_encoder_follows_a_permutation_of_its_tokens():
    model, order = model_of(kind='encoder', output_size=5), np.random.default_rng(0).permutation(12)
    moved = run(model, TOKENS[:, order], Tokens.of(positions=order[None]))
    np.testing.assert_allclose(moved, run(model)[:, order], atol=2e-5)


@pytest.mark.full
def test_outside_a_model_it_is_rope():
    sizes = dict(width=16, heads=4, kv_heads=2)
    tape, rope = (pj.Attention(spec, **sizes, rngs=nnx.Rngs(0)) for spec in ('tape()', 'rope()'))
    for name in ('w_q', 'w_k', 'w_v', 'w_out'):
        getattr(tape.projections, name)[...] = getattr(rope.projections, name)[...]
    x = jax.random.normal(jax.random.key(0), (2, 9, 16))
    layer = jax.jit(lambda layer: layer(x))
    np.testing.assert_allclose(layer(tape), layer(rope), atol=1e-6)


# The stream on its way: the cache, padding, documents, meshes, precision, gradients.


@pytest.mark.parametrize('fields', [{}, GROUPED, dict(pattern=('tape()', 'alibi()'))], ids=str)
@pytest.mark.full_but_one
def test_token_by_token_is_the_whole_pass(fields):
    model = model_of(**fields, layers=2 * len(fields.get('pattern', 'x')))
    keep = np.arange(12)[None] >= np.array([[0], [3]])
    tok = Tokens.of(valid=keep)
    logits, cache = prompted(model, init_cache(model, tok), TOKENS[:, :5])
    rows = [logits]
    for number in range(5, 12):
        logits, cache = step(model, cache, TOKENS[:, number])
        rows.append(np.asarray(logits)[:, None])
    found = np.concatenate(rows, axis=1)
    expected = np.asarray(run(model, TOKENS, tok))
    np.testing.assert_allclose(found[keep], expected[keep], atol=2e-5)
    own = cache.layers[0]
    assert own.feats == {} and own.v.shape == (*own.k.shape[:3], 2 * own.k.shape[3])
    alone = run(model, TOKENS[1:, 3:])  # a padded row is the row without padding
    np.testing.assert_allclose(found[1, 3:], alone[0], atol=2e-5)


@pytest.mark.full
def test_a_layer_reads_the_text_in_any_pieces():
    model, tok = model_of(), Tokens.of(length=12)
    layer_type, block = model.layers()[0]
    mixer = model.mixer(layer_type, block)
    x = jax.random.normal(jax.random.key(3), (2, 12, 16))
    stream = jax.random.normal(jax.random.key(4), (2, 12, 4, 4))
    whole = jax.jit(mixer.whole)(x, tok, stream)
    fill, on = jax.jit(lambda *given: mixer.fill(*given, 12)), jax.jit(mixer.step)
    *first, state = fill(x[:, :3], tok.slice(0, 3), stream[:, :3])
    pieces = [first]
    for start, end in ((3, 8), (8, 9), (9, 12)):
        *piece, state = on(x[:, start:end], tok, stream[:, start:end], state, jnp.int32(start))
        pieces.append(piece)
    for found, expected in zip(
        map(functools.partial(jnp.concatenate, axis=1), zip(*pieces)), whole
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.full
def test_both_sides_of_an_encoder_decoder_have_a_state():
    sizes = dict(kind='encoder_decoder', source_size=7, source_len=6, source_encoding='tape()')
    model = model_of(cross='rope()', **sizes)
    text = np.random.default_rng(1).integers(0, 7, (2, 6))
    encoded = jax.jit(lambda model: model.encoded(text))
    read = jax.jit(lambda model, source: model(TOKENS, source=source))
    source = encoded(model)
    cache = init_cache(model, Tokens.of(length=12), source)
    first, cache = prompted(model, cache, TOKENS[:, :10])
    rows = [first]
    for number in (10, 11):
        logits, cache = step(model, cache, TOKENS[:, number])
        rows.append(logits[:, None])
    whole = read(model, source)
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, atol=2e-5)
    still = model_of(cross='rope()', moved=0.0, **sizes)
    assert np.abs(read(still, encoded(still)) - whole).max() > 1e-2


@pytest.mark.full
def test_packed_documents_do_not_see_each_other():
    model = model_of()
    packed = run(model, TOKENS, Tokens.of(segment=np.arange(12)[None] // 6 + np.zeros((2, 1), int)))
    np.testing.assert_allclose(packed[:, 6:], run(model, TOKENS[:, 6:]), atol=2e-5)


@pytest.mark.full
def test_generation_passes_the_state_on():
    model = model_of()
    text = np.asarray(generate(model, TOKENS[:, :6], max_new_tokens=4, temperature=0.0))
    expected = np.asarray(run(model, text)).argmax(-1)
    np.testing.assert_array_equal(expected[:, 5:9], text[:, 6:10])


def loss_and_gradients(model, tok, tokens=TOKENS):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        logits = nnx.merge(graphdef, params, rest)(tokens, tok)
        return -jax.nn.log_softmax(logits)[:, :-1, 3].mean()

    return jax.jit(jax.value_and_grad(loss)), params, rest


@pytest.mark.full
def test_a_mesh_of_eight_devices_gives_the_same():
    mesh = make_mesh(1, 2, 2, 2, devices=jax.devices()[:8])
    model = model_of(**GROUPED, remat='full')
    tok = Tokens.of(valid=np.arange(12)[None] >= [[0], [3]])
    grad, params, rest = loss_and_gradients(model, tok)
    loss, grads = grad(params, rest)
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        found, found_grads = loss_and_gradients(model, tok)[0](place(params), place(rest))
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.full
def test_gradients_reach_all_but_the_last_state():
    model, tok = model_of(), Tokens.of(length=12)
    grad, params, rest = loss_and_gradients(model, tok)
    _, grads = grad(params, rest)
    for name, own in nnx.to_pure_dict(grads)['blocks'][0]['encodings'][0].items():
        assert np.abs(own[0]).max() > 1e-6, name
        assert not np.asarray(own[1]).any(), name  # the state behind the last layer is not read
    # A central difference along a random direction.
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
    direction = jax.tree.unflatten(
        jax.tree.structure(params),
        [jax.random.normal(key, a.shape) for key, a in zip(keys, jax.tree.leaves(params))],
    )
    at = lambda t: grad(jax.tree.map(lambda a, d: a + t * d, params, direction), rest)[0]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    np.testing.assert_allclose((at(3e-3) - at(-3e-3)) / 6e-3, slope, rtol=2e-2)


@pytest.mark.full
def test_recomputed_layers_and_tiles_have_the_same_gradients():
    tok = Tokens.of(length=12)
    grad, params, rest = loss_and_gradients(model_of(), tok)
    loss, grads = grad(params, rest)
    for fields in (dict(remat='full'), dict(implementation='blocked', block=4)):
        other, other_grads = loss_and_gradients(model_of(**fields), tok)[0](params, rest)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        for one, two in zip(jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.full
def test_the_state_is_float32_in_a_model_of_bfloat16():
    model, low = model_of(), model_of(dtype='bfloat16')
    tok = Tokens.of(length=12)
    x, stream = through(low, tok)
    assert x.dtype == jnp.bfloat16 and stream.dtype == jnp.float32
    assert np.abs(run(low) - run(model)).max() < 0.1
    layer_type, block = low.layers()[0]
    *_, state = low.mixer(layer_type, block).fill(x, tok, low.begin_stream((tok,), 2), 12)
    assert (state.k.dtype, state.v.dtype) == (jnp.bfloat16, jnp.float32)
    # Positions far out would be whole radians off in bfloat16.
    far = run(low, TOKENS, Tokens.of(positions=np.arange(12)[None] + 100_000))
    assert np.abs(far - run(low)).max() < 0.1


# What is trained in a fine-tune.


def test_a_fine_tune_trains_the_encoding_the_norms_and_the_embedding():
    chosen = trained(model_of(), 'encodings+norms+embedding')
    paths = jax.tree_util.tree_leaves_with_path(chosen)
    names = {jax.tree_util.keystr(path, simple=True, separator='.'): on for path, on in paths}
    assert {name.split('.')[-1] for name, on in names.items() if on} == {
        'gate', 'up', 'down', 'weights', 'scale', 'embedding',
    }  # fmt: skip
    assert {name.split('.')[-1] for name, on in names.items() if not on} == {
        'output', 'w_q', 'w_k', 'w_v', 'w_out', 'w_in', 'w_gate',
    }  # fmt: skip
    with pytest.raises(ValueError, match="is 'norms.encodings', but the encodings have no param"):
        trained(alike(model_of(), 'rope()'), 'norms+encodings')
    with pytest.raises(ValueError, match="did you mean 'norms'"):
        trained(model_of(), 'encodings+norm')


# Refusals.


@pytest.mark.parametrize(
    'arguments, width, message',
    [
        ('', 7, 'a rotary width must be even and at least 2, got 7'),
        ('scale=0.0', 8, 'the scale of tape must be positive, got 0.0'),
        ('position_size=0', 8, 'position_size of tape must be at least 1, got 0'),
        ('post_attn="mean"', 8, "post_attn='mean' is not one of 'gain', 'mix'"),
    ],
)
def test_wrong_arguments(arguments, width, message):
    with pytest.raises(SpecError, match=message):
        pj.make(f'tape({arguments})', heads=2, head_dim=width, model_dim=4, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    'spec, message',
    [
        ('tape() | rope()', 'tape and rope both rotate queries and keys'),
        ('tape() | path()', 'tape carries a stream beside the values, and path rewrites cached'),
        (
            'tape() | toy_length()',
            'tape reads a stream of every layer that no cache keeps, and toy',
        ),
        ('tape() | tape()', "tape and tape both need the exclusive door 'begin_stream'"),
        ('per_head(tape(), nope(), 1)', "tape opens 'begin_stream', which heads share"),
        ('self_extend(encoding=tape())', 'self_extend extends a rotary encoding, got tape'),
    ],
)
def test_chains_that_break_the_stream(toys, spec, message):
    sizes = dict(heads=2, head_dim=8, model_dim=16, train_len=8)
    with pytest.raises(ValueError, match=message):
        pj.make(spec, **sizes, rngs=nnx.Rngs(0))


def test_cross_attention_has_no_stream():
    fields = {**BASE, 'kind': 'encoder_decoder', 'source_size': 7, 'source_len': 6}
    with pytest.raises(SpecError, match="cross: tape cannot encode .* it opens 'begin_stream'"):
        Transformer(
            TransformerConfig(**fields, encoding='rope()', cross='tape()'), rngs=nnx.Rngs(0)
        )


def test_methods_that_read_queries_and_keys_refuse_it():
    model = model_of()
    layer_type, block = model.layers()[0]
    with pytest.raises(ValueError, match='tape carries a stream from layer to layer, which this'):
        model.attention(layer_type, block)
    with pytest.raises(ValueError, match='tape carries a stream from layer to layer, which this'):
        read_segment(model, TOKENS, length=0)
    _, cache = prefill(model, init_cache(model, Tokens.of(length=4)), TOKENS[:, :3])
    with pytest.raises(ValueError, match=r'of this model, which only Decoding\(\) passes on'):
        append(model, cache, TOKENS[:, 3], lambda h, mixer, tok, own: (h, own))
    with pytest.raises(ValueError, match='reads a stream of the layer before it, which is not giv'):
        block(jnp.ones((1, 3, 16)), Tokens.of(length=3), model.encoding(layer_type, block))


def test_positions_of_several_components_are_refused():
    part = pj.make('tape()', heads=2, head_dim=4, model_dim=8, rngs=nnx.Rngs(0))
    assert isinstance(part, TAPE)
    with pytest.raises(ValueError, match='tape takes one position per token, got 2 components'):
        part.begin_stream(Tokens.of(positions=np.zeros((1, 3, 2))))


def test_head_groups_are_averaged():
    z, mean = jnp.zeros((1, 1, 1, 2)), jnp.array([[1.0, 2.0], [3.0, 6.0]])[None, None]
    weights = jnp.array([[1.0, 2.0]])
    assert tape_attended(z, mean, weights).ravel().tolist() == [6.0, 12.0]
    mixed = tape_attended(z, mean, weights, post_attn='mix')
    assert mixed.ravel().tolist() == [7.0, 14.0]


@pytest.mark.full
def test_a_run_learns_and_a_fine_tune_continues_a_run_of_rope(tmp_path):
    """Both loops end to end: from scratch, and from RoPE to twice its length, where the projections
    and the networks stay as they were.
    """
    fields = dict(train__length=16, model__dropout=0.0, train__save_every=24)
    train(tiny.config(tmp_path, name='scratch', encoding='tape()', **fields))
    source = train(tiny.config(tmp_path, name='source', encoding='rope()', **fields))
    fields |= dict(train__length=32, train__tune='encodings+norms+embedding')
    given = dict(encoding='tape(scale=2.0)', init__source=str(source))
    directory = train(tiny.config(tmp_path, name='tuned', **given, **fields))
    for name, most in (('scratch', 0.8), ('tuned', 1.0)):
        losses = [line['loss'] for line in read_lines(tmp_path / name / FILE) if 'loss' in line]
        assert np.mean(losses[-4:]) < most * np.mean(losses[:2]), losses
    flat = lambda run: {
        jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            nnx.to_pure_dict(nnx.state(restore_model(run)[1], nnx.Param))
        )
    }
    before, after = flat(source), flat(directory)
    moved = {name.split('.')[-1] for name in before if (before[name] != after[name]).any()}
    assert moved == {'embedding', 'scale'}
    assert {name.split('.')[-1] for name in after.keys() - before.keys()} == {
        'gate', 'up', 'down', 'weights',
    }  # fmt: skip
    assert all(after[name].any() for name in after.keys() - before.keys())


def test_the_sweep_is_valid_to_its_longest_sums():
    config = quickstart.get_config().unlock()
    settings = (*tape_addition.SETTINGS, 'eval.lengths=16')
    for name, encoding in tape_addition.ENCODINGS.items():
        given = replaced(config, {'encoding': encoding, **dict(s.split('=', 1) for s in settings)})
        made = validate(given)
        assert name.split('_')[0] in made.encoding and made.train.length == 8
