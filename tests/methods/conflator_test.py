"""CONFLATOR: the sheet's switching points, its limits, both branches against NumPy, decoding,
documents, devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.tasks.retrieval import CodeMixed
from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.methods.conflator import conflator_bigrams, switching_ids, switching_points
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('conflator')
H, D, L = 4, 12, 13
LANG = np.array([0, 0, 1, 1, 0, 2, 2, 2, 0, 1, 1, 1, 1])
DELTA = jnp.array(GOLDEN['delta'])


def part_of(options='', delta=DELTA):
    part = pj.make(f'conflator({options})', head_dim=H, model_dim=D, rngs=nnx.Rngs(1))
    part.delta[...] = delta
    return part


def tokens(lang=LANG, **options):
    return pj.Tokens.of(positions=switching_ids(jnp.asarray(lang)[None]), **options)


def logits(part, tok, q, k):
    """One tile of one branch, [N, T, S]."""
    q, k, *_ = part.project(q, k, k, tok, tok)
    return np.asarray(jnp.einsum('bthd,bshd->bhts', q, k)[0]) / H**0.5


def model_of(encoding='conflator()', **fields):
    cfg = dict(vocab_size=11, train_len=16, layers=2, width=16, heads=4, kv_heads=2, head_dim=H)
    return moved(
        Transformer(TransformerConfig(**{**cfg, 'encoding': encoding, **fields}), rngs=nnx.Rngs(0))
    )


read = jax.jit(lambda model, text, tok: model(text, tok))
prompted, step = jax.jit(prefill), jax.jit(decode_step)


def moved(model):
    """With delta and mix off their zeros, other ones in every layer."""
    for layer_type in model.blocks:
        for part in layer_type.encodings:
            for number, parameter in enumerate((part.delta, getattr(part, 'mix', None))):
                if parameter is not None:
                    parameter[...] = jax.random.normal(jax.random.key(number), parameter.shape)
    return model


def test_golden_switching_points():
    s, c = switching_points(jnp.asarray(GOLDEN['lang']))
    assert (
        s.tolist() == GOLDEN['s'] and c.tolist() == GOLDEN['c'] and s.dtype == c.dtype == jnp.int32
    )
    assert [a.tolist() for a in switching_points(jnp.asarray([GOLDEN['lang']] * 2))] == [
        [GOLDEN['s']] * 2,
        [GOLDEN['c']] * 2,
    ]


@pytest.mark.parametrize('mode', ['shift', 'reset'])
def test_golden_angles_and_logits(mode):
    part = part_of(f'mode="{mode}"')
    tok, ones = tokens(GOLDEN['lang']), jnp.ones((1, 5, 1, H))
    angles = np.array(GOLDEN[f'angles_{mode}'])
    np.testing.assert_allclose(np.exp(1j * part.angles(tok.pos)[0]), np.exp(1j * angles), atol=1e-6)
    np.testing.assert_allclose(
        logits(part, tok, ones, ones)[0, -1], GOLDEN[f'row_{mode}'], atol=1e-6
    )


@pytest.mark.full
def test_both_counts_start_anew_in_every_document():
    lang, segment = np.array([0, 1, 1, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 5, 5, 5, 5, 2])
    s, c = switching_points(jnp.asarray(lang), jnp.asarray(segment))
    assert s.tolist() == [0, 1, 0, 0, 0, 1, 1, 0] and c.tolist() == [0, 1, 1, 0, 0, 1, 2, 0]
    alone = [switching_ids(jnp.asarray(lang[segment == document])) for document in (0, 5, 2)]
    np.testing.assert_array_equal(
        switching_ids(jnp.asarray(lang), jnp.asarray(segment)), np.concatenate(alone)
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_one_language_turns_as_rope_for_any_delta(layout):
    q, k = (jax.random.normal(jax.random.key(n), (1, L, 2, H)) for n in range(2))
    rope, tok = pj.make(f'rope(layout="{layout}")', head_dim=H), pj.Tokens.of(length=L)
    for mode in ('shift', 'reset'):
        part = part_of(f'layout="{layout}", mode="{mode}"', delta=jnp.array([5.0, -7.0]))
        for known in (tok, tokens(np.full(L, 3))):
            for ours, theirs in zip(
                part.project(q, k, k, known, known)[:3], rope.project(q, k, k, tok, tok)[:3]
            ):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('options', ['', 'unigram_only=True'])
@pytest.mark.full
def test_without_delta_and_bigrams_a_model_is_that_of_rope(options):
    """w_b = 0 exactly: softmax of (0, -200) is (1, 0) in float32."""
    model, plain = model_of(f'conflator({options})'), model_of('rope()')
    state, given = nnx.to_flat_state(nnx.state(model)), dict(nnx.to_flat_state(nnx.state(plain)))
    nnx.update(
        model, nnx.from_flat_state([(path, given.get(path, value)) for path, value in state])
    )
    text, tok = jnp.arange(L)[None] % 11, pj.Tokens.of(length=L)
    part, expected = model.blocks[0].encodings[0], read(plain, text, tok)
    for delta, known in ((0.0, tokens()), (3.0, tok)):
        part.delta[...] = jnp.full_like(part.delta[...], delta)
        if not part.unigram_only:
            part.mix[...] = jnp.array([[0.0, -200.0]] * 2)
        np.testing.assert_allclose(read(model, text, known), expected, atol=1e-6)
    part.delta[...] = jnp.full_like(part.delta[...], 3.0)
    assert np.abs(read(model, text, tokens()) - expected).max() > 1e-3
    if not part.unigram_only:
        part.delta[...], part.mix[...] = jnp.zeros_like(part.delta[...]), jnp.zeros((2, 2))
        assert np.abs(read(model, text, tok) - expected).max() > 1e-3


def test_two_tokens_on_either_side_of_one_switch_get_an_extra_relative_phase_delta():
    part, tok = part_of(), tokens()
    angles = np.asarray(part.angles(tok.pos)[0], np.float64)
    plain = np.arange(L)[:, None] * rope_frequencies(H, 1e4)
    between = lambda a: a[:, None] - a[None]
    extra = between(angles - plain)
    switches = between(np.cumsum(np.diff(LANG, prepend=0) != 0)[:, None]) * np.asarray(
        DELTA, np.float64
    )
    np.testing.assert_allclose(np.exp(1j * extra), np.exp(1j * switches), atol=2e-6)
    np.testing.assert_allclose(
        np.exp(1j * extra[2, 1]), np.exp(1j * np.asarray(DELTA)), atol=2e-6
    )  # one switch, at 2


def by_numpy(weights, part, x, lang, document, mode):
    """The attention layer written from the definition in float64, pair by pair, one document after
    the other.
    """
    w_q, w_k, w_v, w_out, kernel, delta, mix = (np.asarray(a, np.float64) for a in weights)
    out = np.zeros((len(x), w_out.shape[-1]))
    theta = 1e4 ** (-2 * np.arange(H // 2) / H)
    mixing = np.exp(mix) / np.exp(mix).sum()
    group = w_q.shape[1] // w_k.shape[1]
    for name in np.unique(document):
        rows = np.flatnonzero(document == name)
        c = offset = 0
        angles, bigram = [], []
        for number, row in enumerate(rows):
            if number and lang[row] != lang[row - 1]:
                c, offset = c + 1, 0
            angles.append((offset if mode == 'reset' else number) * theta + c * delta)
            offset += 1
            before = x[row - 1] if number else np.zeros_like(x[row])
            bigram.append(np.concatenate([before, x[row]]) @ kernel)
        for weight, source in zip(mixing, (x[rows], np.array(bigram))):
            for i in range(len(rows)):
                total = np.zeros(w_out.shape[-1])
                for head in range(w_q.shape[1]):
                    s = []
                    for j in range(i + 1):
                        q, k = source[i] @ w_q[:, head], source[j] @ w_k[:, head // group]
                        pair = (q[: H // 2] + 1j * q[H // 2 :]) * (k[: H // 2] - 1j * k[H // 2 :])
                        s.append((pair * np.exp(1j * (angles[i] - angles[j]))).real.sum() / H**0.5)
                    p = np.exp(s - np.max(s))
                    total += p / p.sum() @ (source[: i + 1] @ w_v[:, head // group]) @ w_out[head]
                out[rows[i]] += weight * total
    return out


@pytest.mark.full_but_one
@pytest.mark.parametrize('mode', ['shift', 'reset'])
def test_both_branches_equal_the_definition_written_in_numpy(mode):
    model = model_of(f'conflator(mode="{mode}")', layers=1)
    ((_, layer),) = model.layers()
    document = np.array([0] * 8 + [1] * 5)
    ids = switching_ids(jnp.asarray(LANG), jnp.asarray(document))[None]
    tok, x = (
        pj.Tokens.of(positions=ids, segment=document[None]),
        jax.random.normal(jax.random.key(7), (1, L, 16)),
    )
    attention, part = layer.attention, layer.encodings[0]
    layer.mlp_norm.scale[...] = jnp.zeros(16)  # so that the block is x + attention(norm(x))
    out = layer(x, tok, model.encoding(0, layer)) - x
    shared = attention.w_q, attention.w_k, attention.w_v, attention.w_out
    weights = [a[...] for a in (*shared, part.kernel, part.delta, part.mix)]
    normed = np.asarray(layer.attention_norm(x)[0], np.float64)
    np.testing.assert_allclose(
        out[0], by_numpy(weights, part, normed, LANG, document, mode), atol=2e-6
    )


def test_bigrams_read_the_token_before_and_nothing_before_a_document():
    x, kernel = (
        jax.random.normal(jax.random.key(0), (2, L + 1, D)),
        jax.random.normal(jax.random.key(1), (2 * D, D)),
    )
    first = np.arange(L)[None] == 5
    y = np.asarray(conflator_bigrams(x, kernel, first))
    np.testing.assert_allclose(y[:, 3], np.concatenate([x[:, 3], x[:, 4]], -1) @ kernel, atol=1e-5)
    np.testing.assert_allclose(y[:, 5], np.asarray(x[:, 6] @ kernel[D:]), atol=1e-5)
    assert conflator_bigrams(x.astype(jnp.bfloat16), kernel).dtype == jnp.bfloat16


@pytest.mark.full
def test_gradients_reach_delta_the_bigram_map_and_the_mixture():
    model = model_of()
    text = jax.random.randint(jax.random.key(1), (2, L), 0, 11)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    loss = lambda params, tok: jnp.square(nnx.merge(graphdef, params, rest)(text, tok)).mean()
    run = jax.jit(jax.value_and_grad(loss))
    of = lambda tok: nnx.to_pure_dict(run(params, tok)[1])['blocks'][0]['encodings'][0]
    mixed, plain = of(tokens()), of(tokens(np.zeros(L, int)))
    for name in ('delta', 'kernel', 'mix'):
        assert (np.abs(mixed[name]).reshape(2, -1).max(1) > 1e-5).all(), name  # in both layers
    assert not np.asarray(plain['delta']).any()
    step = 1e-2
    direction = jax.tree.map(jnp.zeros_like, params)
    delta = lambda tree: tree['blocks'][0]['encodings'][0]['delta']
    delta(direction)[...] = jnp.ones_like(delta(direction)[...])
    ahead, behind = (
        run(jax.tree.map(lambda p, d: p + s * d, params, direction), tokens())[0]
        for s in (step, -step)
    )
    np.testing.assert_allclose(mixed['delta'].sum(), (ahead - behind) / (2 * step), rtol=2e-2)


@pytest.mark.full
def test_token_by_token_through_the_cache():
    model, prompt = model_of('conflator(mode="reset")'), 5
    text = jax.random.randint(jax.random.key(1), (2, L), 0, 11)
    valid = np.arange(L)[None] >= np.array([[0], [3]])
    tok = pj.Tokens.of(
        positions=switching_ids(jnp.asarray(np.stack([LANG, LANG[::-1]]))), valid=valid
    )
    out, cache = prompted(model, init_cache(model, tok), text[:, :prompt])
    assert cache.layers[0].k.shape == (2, 2 * 2, L, H) and cache.layers[0].rows.shape == (2, 1, 16)
    outs = [out]
    for number in range(prompt, L):
        out, cache = step(model, cache, text[:, number])
        outs.append(np.asarray(out)[:, None])
    expected = np.asarray(read(model, text, tok))
    np.testing.assert_allclose(np.concatenate(outs, 1)[valid], expected[valid], atol=1e-5)


@pytest.mark.parametrize('spec', ['conflator()', 'conflator(unigram_only=True)'])
@pytest.mark.full
def test_packing_and_padding_change_nothing_in_a_model(spec):
    model, text = model_of(spec), jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
    lang, document = jnp.asarray(LANG[:12]), jnp.arange(12) // 6
    alone = read(model, text, pj.Tokens.of(positions=switching_ids(lang.reshape(2, 6))))
    tok = pj.Tokens.of(positions=switching_ids(lang, document)[None], segment=document[None])
    packed = read(model, text.reshape(1, 12), tok)
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=1e-5)
    filled = jnp.pad(text[:1], ((0, 0), (2, 3)), constant_values=9)
    valid = np.array([[False] * 2 + [True] * 6 + [False] * 3])
    ids = switching_ids(jnp.pad(lang[:6], (2, 3), constant_values=7))[None]
    padded = read(model, filled, pj.Tokens.of(positions=ids, valid=valid))
    np.testing.assert_allclose(padded[:, 2:8], alone[:1], atol=1e-5)


@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
@pytest.mark.full
def test_a_model_on_eight_devices_is_the_model_on_one():
    model = model_of()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    text = jax.random.randint(jax.random.key(1), (4, 12), 0, 11)
    tok = tokens(LANG[:12])

    def run(params, rest):
        loss = lambda params: jnp.square(nnx.merge(graphdef, params, rest)(text, tok)).mean()
        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run(params, rest)
    mesh = make_mesh(1, 2, 2, 2, devices=jax.devices()[:8])
    with jax.set_mesh(mesh):
        place = lambda state: jax.device_put(state, param_shardings(state, mesh))
        found = run(place(params), place(rest))
        placed = nnx.merge(graphdef, place(params), place(rest))
        out = generate(
            placed, text[:, :6], max_new_tokens=6, temperature=0.0, positions=tok.pos
        )  # which takes the languages of the whole capacity
    np.testing.assert_array_equal(out[:, 6:], read(model, out, tok).argmax(-1)[:, 5:-1])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_text_of_the_task_can_be_read():
    batch = CodeMixed(letters=3, switches=2, ids='switches').sample(
        np.random.default_rng(0), 2, (4, 8)
    )
    model = model_of()
    assert np.isfinite(
        read(model, batch['tokens'], pj.Tokens.of(positions=batch['positions']))
    ).all()


def test_every_layer_has_its_own():
    part = model_of().blocks[0].encodings[0]
    assert (part.delta.shape, part.kernel.shape, part.mix.shape) == (
        (2, H // 2),
        (2, 32, 16),
        (2, 2),
    )
    assert np.abs(part.kernel[0] - part.kernel[1]).max() > 0.1
    fresh = pj.make('conflator()', head_dim=H, model_dim=512)
    assert not fresh.delta[...].any() and not fresh.mix[...].any()
    assert float(fresh.kernel[...].std()) == pytest.approx(1024**-0.5, rel=0.01)
    alone = part_of('unigram_only=True')
    assert (
        len(jax.tree.leaves(nnx.state(alone))) == 1
        and alone.lookback == 0
        and not alone.opens('qkv')
    )


@pytest.mark.parametrize(
    'spec, message',
    [
        ('conflator(base=0.0)', 'base of rotary frequencies, must be at least 1, got 0.0'),
        ('conflator(layout="halves")', "layout='halves' is not one of 'half', 'interleaved'"),
        ('conflator(mode="restart")', "mode='restart' is not one of 'shift', 'reset'"),
        ('conflator(head_dim=5)', 'must be even and at least 2, got 5'),
        ('conflator() | conflator()', "conflator and conflator both need the exclusive door 'qkv'"),
        (
            'conflator() | alibi()',
            'conflator gives every head several inputs of attention, and alibi has parameters '
            'per head',
        ),
        (
            'path(rank=2) | conflator()',
            'several inputs of attention, and path has parameters per head',
        ),
    ],
)
def test_errors(spec, message):
    context = dict(heads=4, kv_heads=2, model_dim=16) | (
        {} if 'head_dim' in spec else dict(head_dim=H)
    )
    with pytest.raises(SpecError, match=message):
        pj.make(spec, causal=True, **context)


def test_a_model_refuses_what_cannot_be_combined_and_takes_what_can():
    with pytest.raises(
        SpecError, match='conflator gives every head several inputs of attention, and t5_rpe'
    ):
        model_of('conflator() | t5_rpe()')
    text, tok = jnp.arange(L)[None] % 11, tokens()
    assert read(model_of('conflator() | window(size=4)'), text, tok).shape == (1, L, 11)
    pj.make(
        'conflator(unigram_only=True) | alibi()', heads=4, head_dim=H, model_dim=16, causal=True
    )


@pytest.mark.parametrize(
    'call, message',
    [
        (
            lambda: switching_points(jnp.ones(3)),
            r'integers \[..., L\], one per token, got lang float32 \(3,\)',
        ),
        (
            lambda: switching_points(jnp.zeros(3, int), jnp.zeros(4, int)),
            r'got segment int32 \(4,\)',
        ),
        (
            lambda: part_of().angles(jnp.zeros((1, 5, 2), int)),
            r'\(position, offset, switches\), got \(1, 5, 2\)',
        ),
        (
            lambda: part_of().qkv(jnp.zeros((1, 5, D)), None, pj.Tokens.of(length=5)),
            '5 tokens, the input of 5',
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
