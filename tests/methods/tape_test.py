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
from posenc_jax.lab.decoding.decode import append, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recurrence import read_segment
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.tuned import trained
from posenc_jax.lab.train.loop import train
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.methods.tape import tape_attended, tape_fed, tape_start, tape_turn
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden_suite
from tests.lab.train import tiny
from tests.methods.models import model_of, read, token_by_token
from tests.methods.models import moved as scattered
from tests.refusals import refused

BASE = dict(train_len=16, heads=4, mlp='swiglu')
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 11)
TOK = Tokens.of(length=12)
PADDED = np.arange(12)[None] >= np.array([[0], [3]])
GROUPED = dict(kv_heads=2)


def complexes(z):
    """The complex numbers of half-split pairs, float64."""
    real, imaginary = np.split(np.asarray(z, np.float64), 2, axis=-1)
    return real + 1j * imaginary


@functools.cache
def tape_model(spec='tape()', *, moved=0.3, **fields):
    """A model; `moved` adds random numbers to the parameters of the encodings, which start near
    zero.
    """
    model = model_of(spec, **{**BASE, **fields})
    for block in model.blocks:
        scattered(block.encodings, moved, seed=5)
    return model


def alike(model, spec, **fields):
    """A model with another encoding without parameters, and the other weights of `model`."""
    other = model_of(spec, seed=1, **BASE, **fields)
    state = dict(nnx.to_flat_state(nnx.state(model)))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(other))]
    nnx.update(other, nnx.from_flat_state([(path, state[path]) for path in paths]))
    return other


def through(model, tok=TOK, start=lambda z: z):
    """The layers of a model one after the other; returns the residual and the last stream."""
    return jax.jit(lambda model: _through(model, tok, start))(model)


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


def run(model, tokens=TOKENS, tok=None):
    return read(model, tokens, tok)


def apart(a, b):
    return np.abs(a - b).max()


def assert_trees_close(found, expected, atol=2e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


# By hand, and against complex numbers.


def two_tokens(case):
    mixer = pj.make('tape()', causal=True, heads=1, head_dim=2, model_dim=2, rngs=nnx.Rngs(0))
    part, tok, zeros = mixer.parts[0], Tokens.of(length=2), jnp.zeros((1, 2, 1, 2))
    part.weights[...] = jnp.full((1, 1), case['gain'])
    stream = part.begin_stream(tok)
    seen = tok.with_feats(stream=stream)
    projected = mixer.project(zeros, zeros, zeros, seen, seen)
    out, carried = mixer.carry_stream(pj.attend(mixer, *projected, applied=pj.TOKEN_STAGE), stream)
    assert out.shape == (1, 2, 1, 2)
    return complexes(carried[0, :, 0])[:, 0]


def network(_):
    z = jnp.array([[1.0, 0.0], [2.0, -1.0]])[None, None]
    w_up, w_down = jnp.array([[0.0], [1.0]]), jnp.array([[3.0], [0.0]])
    return complexes(tape_fed(z, jnp.ones((1, 1, 1)), jnp.ones((1, 1)), w_up, w_down)[0, 0])[:, 0]


def turned(_):
    one = lambda *pair: jnp.array(pair)[None, None, None]
    return tape_turn(one(1.0, 2.0), one(3.0, -1.0)).ravel()


test_golden = golden_suite('tape', atol=1e-6) | {
    'start': lambda _: tape_start(jnp.array([[3]]), rope_frequencies(4, 1e4) / 2).ravel(),
    'turned': turned,
    'two_tokens.real': lambda case: two_tokens(case).real,
    'two_tokens.imaginary': lambda case: two_tokens(case).imag,
    'network.real': lambda case: network(case).real,
    'network.imaginary': lambda case: network(case).imag,
    'network.gate': lambda _: jax.nn.silu(1.0),
}


def reference(model, tokens, shift=0.0):
    """The residual behind the last layer and the last z, in float64 and complex numbers."""
    cfg = model.cfg
    kv, group = cfg.kv_heads, cfg.heads // cfg.kv_heads
    wide = lambda a: np.asarray(a[...], np.float64)
    silu = lambda a: a / (1 + np.exp(-a))

    def norm(x, own):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.epsilon) * wide(own.scale)

    x = wide(model.embedding)[np.asarray(tokens)] * cfg.embedding_scale
    positions = np.arange(tokens.shape[1]) + shift
    theta = 10000.0 ** (-np.arange(cfg.head_dim // 2) * 2 / cfg.head_dim)
    z = np.exp(1j * positions[:, None] * theta)[None, :, None]
    z = np.broadcast_to(z, (*x.shape[:2], kv, cfg.head_dim // 2))
    later = np.triu(np.ones((x.shape[1],) * 2, bool), 1)
    for _, block in model.layers():
        part, own, mlp = block.encodings[0], block.attention, block.mlp
        y = norm(x, block.attention_norm)
        q, k, v = (np.einsum('bld,dnh->blnh', y, wide(w)) for w in (own.w_q, own.w_k, own.w_v))
        values, means = np.zeros_like(q), np.zeros((*q.shape[:3], z.shape[-1]), complex)
        for h in range(cfg.heads):
            g = h // group
            at_q, at_k = complexes(q[:, :, h]) * z[:, :, g], complexes(k[:, :, g]) * z[:, :, g]
            s = np.einsum('bif,bjf->bij', at_q, at_k.conj()).real / cfg.head_dim**0.5
            s = np.where(later, -np.inf, s)
            a = np.exp(s - s.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            values[:, :, h] = np.einsum('bij,bjh->bih', a, v[:, :, g])
            means[:, :, h] = np.einsum('bij,bjf->bif', a, z[:, :, g])
        x = x + np.einsum('blnh,nhd->bld', values, wide(own.w_out))
        weights = wide(part.weights)
        if part.post_attn == 'mix':
            z = z + np.einsum('gn,blnf->blgf', weights, means)
        else:
            averages = means.reshape(*z.shape[:3], group, -1).mean(3)
            z = z + weights.sum(1)[:, None] * averages
        y = norm(x, block.mlp_norm)
        m = (silu(y @ wide(mlp.w_gate)) * (y @ wide(mlp.w_in))) @ wide(mlp.w_out)
        mixed = np.einsum('he,blhf->blef', wide(part.up), z)
        hidden = silu(m @ wide(part.gate))[..., None] * mixed
        z = z + np.einsum('ge,blef->blgf', wide(part.down), hidden)
        x = x + m
    return x, z


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'spec, fields', [('tape(post_attn="mix", position_size=3)', {}), ('tape()', GROUPED)]
)
def test_a_model_equals_complex_numbers(spec, fields):
    model = tape_model(spec, **fields)
    expected, expected_z = reference(model, TOKENS)
    x, stream = through(model)
    np.testing.assert_allclose(x, expected, atol=2e-5)
    np.testing.assert_allclose(complexes(stream), expected_z, atol=2e-5)
    np.testing.assert_allclose(run(model), model.logits(model.norm(x)), atol=2e-5)
    # The state moved far from its start.
    assert apart(expected_z, complexes(model.begin_stream((TOK,), 2))) > 0.5


# The limits, and what the equations promise.


def test_it_starts_as_rope():
    model = tape_model(moved=0.0, **GROUPED)
    np.testing.assert_allclose(run(model), run(alike(model, 'rope()', **GROUPED)), atol=1e-6)
    assert apart(run(model), run(alike(model, 'nope()', **GROUPED))) > 1e-2
    assert apart(run(tape_model(**GROUPED)), run(model)) > 1e-2


def test_scale_is_linear_interpolation_at_the_start():
    model = tape_model('tape(scale=2.0)', moved=0.0)
    expected = run(alike(model, 'rope(freqs=pi(factor=2.0))'))
    np.testing.assert_allclose(run(model), expected, atol=1e-6)


def test_a_shift_of_all_positions_changes_nothing():
    model = tape_model()
    shifted = run(model, TOKENS, Tokens.of(positions=np.arange(12)[None] + 1_000_003))
    np.testing.assert_allclose(shifted, run(model), atol=2e-5)
    exact, moved = reference(model, TOKENS)[0], reference(model, TOKENS, shift=1000.0)[0]
    np.testing.assert_allclose(moved, exact, atol=1e-11)
    stretched = run(model, TOKENS, Tokens.of(positions=2 * np.arange(12)[None]))
    assert apart(stretched, run(model)) > 1e-2


@pytest.mark.full
def test_phases_of_planes_rotate_the_state_and_nothing_else():
    model = tape_model('tape(post_attn="mix")')
    phases = jnp.arange(1.0, model.cfg.head_dim // 2 + 1)
    factors = lambda a: jnp.concatenate([jnp.cos(a), jnp.sin(a)], axis=-1)
    turned_by = lambda a: through(model, start=lambda z: tape_turn(z, factors(a)[None, None]))
    (x, stream), (turned_x, turned) = through(model), turned_by(phases[None])
    np.testing.assert_allclose(turned_x, x, atol=2e-5)
    expected = complexes(stream) * np.exp(1j * np.asarray(phases))
    np.testing.assert_allclose(complexes(turned), expected, atol=2e-5)
    of_heads, _ = turned_by(jnp.arange(4.0)[:, None] * phases)
    assert apart(of_heads, x) > 1e-2


@pytest.mark.full
def test_an_encoder_follows_a_permutation_of_its_tokens():
    model = tape_model(kind='encoder', output_size=5)
    order = np.random.default_rng(0).permutation(12)
    moved = run(model, TOKENS[:, order], Tokens.of(positions=order[None]))
    np.testing.assert_allclose(moved, run(model)[:, order], atol=2e-5)


@pytest.mark.full
def test_outside_a_model_it_is_rope():
    sizes = dict(width=16, heads=4, kv_heads=2)
    tape, rope = (pj.Attention(spec, **sizes, rngs=nnx.Rngs(0)) for spec in ('tape()', 'rope()'))
    for name in ('w_q', 'w_k', 'w_v', 'w_out'):
        getattr(tape.projections, name)[...] = getattr(rope.projections, name)[...]
    x = jax.random.normal(jax.random.key(0), (2, 9, 16))
    np.testing.assert_allclose(read(tape, x), read(rope, x), atol=1e-6)


# The stream on its way: the cache, padding, documents, meshes, precision, gradients.


@pytest.mark.parametrize('fields', [{}, GROUPED, dict(pattern=('tape()', 'alibi()'))], ids=str)
@pytest.mark.full_but_one
def test_token_by_token_is_the_whole_pass(fields):
    model = tape_model(**fields, layers=2 * len(fields.get('pattern', 'x')))
    tok = Tokens.of(valid=PADDED)
    found, cache = token_by_token(model, TOKENS, tok, prompt=5)
    np.testing.assert_allclose(found[PADDED], run(model, TOKENS, tok)[PADDED], atol=2e-5)
    own = cache.layers[0]
    assert own.feats == {} and own.v.shape == (*own.k.shape[:3], 2 * own.k.shape[3])
    alone = run(model, TOKENS[1:, 3:])  # a padded row is the row without padding
    np.testing.assert_allclose(found[1, 3:], alone[0], atol=2e-5)


@pytest.mark.full
def test_a_layer_reads_the_text_in_any_pieces():
    model = tape_model()
    mixer = model.mixer(*model.layers()[0])
    x = jax.random.normal(jax.random.key(3), (2, 12, 16))
    stream = jax.random.normal(jax.random.key(4), (2, 12, 4, 4))
    whole = jax.jit(mixer.whole)(x, TOK, stream)
    fill, on = jax.jit(lambda *given: mixer.fill(*given, 12)), jax.jit(mixer.step)
    *first, state = fill(x[:, :3], TOK.slice(0, 3), stream[:, :3])
    pieces = [first]
    for start, end in ((3, 8), (8, 9), (9, 12)):
        *piece, state = on(x[:, start:end], TOK, stream[:, start:end], state, jnp.int32(start))
        pieces.append(piece)
    assert_trees_close([jnp.concatenate(own, axis=1) for own in zip(*pieces)], whole)


@pytest.mark.full
def test_both_sides_of_an_encoder_decoder_have_a_state():
    sizes = dict(kind='encoder_decoder', source_size=7, source_len=6, source_encoding='tape()')
    model, still = (tape_model(cross='rope()', moved=far, **sizes) for far in (0.3, 0.0))
    text = np.random.default_rng(1).integers(0, 7, (2, 6))
    encoded = jax.jit(lambda model: model.encoded(text))
    whole = jax.jit(lambda model, source: model(TOKENS, source=source))
    source = encoded(model)
    found, _ = token_by_token(model, TOKENS, TOK, prompt=10, source=source)
    np.testing.assert_allclose(found, whole(model, source), atol=2e-5)
    assert apart(whole(still, encoded(still)), found) > 1e-2


@pytest.mark.full
def test_packed_documents_do_not_see_each_other():
    model = tape_model()
    packed = run(model, TOKENS, Tokens.of(segment=np.arange(12)[None] // 6 + np.zeros((2, 1), int)))
    np.testing.assert_allclose(packed[:, 6:], run(model, TOKENS[:, 6:]), atol=2e-5)


@pytest.mark.full
def test_generation_passes_the_state_on():
    model = tape_model()
    text = np.asarray(generate(model, TOKENS[:, :6], max_new_tokens=4, temperature=0.0))
    np.testing.assert_array_equal(run(model, text).argmax(-1)[:, 5:9], text[:, 6:10])


def loss_and_gradients(model, tok=TOK):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest):
        logits = nnx.merge(graphdef, params, rest)(TOKENS, tok)
        return -jax.nn.log_softmax(logits)[:, :-1, 3].mean()

    return jax.jit(jax.value_and_grad(loss)), params, rest


@pytest.mark.full
def test_a_mesh_of_eight_devices_gives_the_same():
    mesh = make_mesh(1, 2, 2, 2, devices=jax.devices()[:8])
    model, tok = tape_model(**GROUPED, remat='full'), Tokens.of(valid=PADDED)
    grad, params, rest = loss_and_gradients(model, tok)
    loss, grads = grad(params, rest)
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        found, found_grads = loss_and_gradients(model, tok)[0](place(params), place(rest))
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_trees_close(found_grads, grads)


@pytest.mark.full
def test_gradients_reach_all_but_the_last_state():
    grad, params, rest = loss_and_gradients(tape_model())
    _, grads = grad(params, rest)
    for name, own in nnx.to_pure_dict(grads)['blocks'][0]['encodings'][0].items():
        assert np.abs(own[0]).max() > 1e-6, name
        assert not np.asarray(own[1]).any(), name  # the state behind the last layer is not read


@pytest.mark.full
def test_recomputed_layers_and_tiles_have_the_same_gradients():
    grad, params, rest = loss_and_gradients(tape_model())
    loss, grads = grad(params, rest)
    for fields in (dict(remat='full'), dict(implementation='blocked', block=4)):
        other, other_grads = loss_and_gradients(tape_model(**fields))[0](params, rest)
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        assert_trees_close(other_grads, grads, atol=1e-5)


@pytest.mark.full
def test_the_state_is_float32_in_a_model_of_bfloat16():
    model, low = tape_model(), tape_model(dtype='bfloat16')
    x, stream = through(low)
    assert x.dtype == jnp.bfloat16 and stream.dtype == jnp.float32
    assert apart(run(low), run(model)) < 0.1
    *_, state = low.mixer(*low.layers()[0]).fill(x, TOK, low.begin_stream((TOK,), 2), 12)
    assert (state.k.dtype, state.v.dtype) == (jnp.bfloat16, jnp.float32)
    # Positions far out would be whole radians off in bfloat16.
    far = run(low, TOKENS, Tokens.of(positions=np.arange(12)[None] + 100_000))
    assert apart(far, run(low)) < 0.1


# What is trained in a fine-tune.


def named(tree):
    """The leaves of a tree by their paths."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in paths}


def last_names(names):
    return {name.split('.')[-1] for name in names}


PARAMETERS = {'gate', 'up', 'down', 'weights'}  # of the encoding


def test_a_fine_tune_trains_the_encoding_the_norms_and_the_embedding():
    chosen = named(trained(tape_model(), 'encodings+norms+embedding'))
    on = last_names(name for name in chosen if chosen[name])
    assert on == PARAMETERS | {'scale', 'embedding'}
    off = last_names(name for name in chosen if not chosen[name])
    assert off == {'output', 'w_q', 'w_k', 'w_v', 'w_out', 'w_in', 'w_gate'}
    with pytest.raises(ValueError, match="is 'norms.encodings', but the encodings have no param"):
        trained(alike(tape_model(), 'rope()'), 'norms+encodings')
    with pytest.raises(ValueError, match="did you mean 'norms'"):
        trained(tape_model(), 'encodings+norm')


# Refusals.


def test_cross_attention_has_no_stream():
    sizes = dict(kind='encoder_decoder', source_size=7, source_len=6, cross='tape()')
    with pytest.raises(SpecError, match="cross: tape cannot encode .* it opens 'begin_stream'"):
        model_of('rope()', **sizes)


def attention_of_a_layer():
    model = tape_model()
    model.attention(*model.layers()[0])


def appended():
    model = tape_model()
    _, cache = prefill(model, init_cache(model, Tokens.of(length=4)), TOKENS[:, :3])
    append(model, cache, TOKENS[:, 3], lambda h, mixer, tok, own: (h, own))


def block_alone():
    model = tape_model()
    layer_type, block = model.layers()[0]
    block(jnp.ones((1, 3, 16)), Tokens.of(length=3), model.encoding(layer_type, block))


def of_components():
    part = pj.make('tape()', heads=2, head_dim=4, model_dim=8)
    part.begin_stream(Tokens.of(positions=np.zeros((1, 3, 2))))


test_methods_that_read_queries_and_keys_refuse_it = refused() | {
    'tape carries a stream from layer to layer, which this': (
        lambda: read_segment(tape_model(), TOKENS, length=0),
        attention_of_a_layer,
    ),
    r'of this model, which only Decoding\(\) passes on': appended,
    'reads a stream of the layer before it, which is not giv': block_alone,
    'tape takes one position per token, got 2 components': of_components,
}


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
    variables = lambda run: nnx.to_pure_dict(nnx.state(restore_model(run)[1], nnx.Param))
    before, after = (
        {name: np.asarray(leaf) for name, leaf in named(variables(run)).items()}
        for run in (source, directory)
    )
    moved = last_names(name for name in before if (before[name] != after[name]).any())
    assert moved == {'embedding', 'scale'}
    new = after.keys() - before.keys()
    assert last_names(new) == PARAMETERS and all(after[name].any() for name in new)
