"""CONFLATOR: the sheet's switching points, its limits, and both branches against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.conflator import conflator_ids, conflator_points
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.methods import models
from tests.methods.models import read
from tests.methods.pairs import draw, qkv
from tests.refusals import refused

GOLDEN = golden('conflator')
H, D, L = 4, 12, 13
LANG = np.array([0, 0, 1, 1, 0, 2, 2, 2, 0, 1, 1, 1, 1])
DELTA = jnp.array(GOLDEN['delta'])


def part_of(options='', delta=DELTA):
    part = pj.make(f'conflator({options})', head_dim=H, model_dim=D, rngs=nnx.Rngs(1))
    part.delta[...] = delta
    return part


def tokens(lang=LANG, **options):
    return pj.Tokens.of(positions=conflator_ids(jnp.asarray(lang)[None]), **options)


def logits(part, tok, q, k):
    """One tile of one branch, [N, T, S]."""
    q, k, *_ = part.project(q, k, k, tok, tok)
    return np.asarray(jnp.einsum('bthd,bshd->bhts', q, k)[0]) / H**0.5


def model_of(encoding='conflator()', **fields):
    """A model whose delta and mix are not zero, and differ from layer to layer."""
    sizes = dict(train_len=16, heads=4, kv_heads=2, head_dim=H)
    model = models.model_of(encoding, **sizes | fields)
    for block in model.blocks:
        for part in block.encodings:
            for number, parameter in enumerate((part.delta, getattr(part, 'mix', None))):
                if parameter is not None:
                    parameter[...] = draw(number, *parameter.shape)
    return model


test_golden = golden_suite('conflator') | {
    's': lambda golden: conflator_points(jnp.asarray(golden['lang']))[0],
    'c': lambda golden: conflator_points(jnp.asarray([golden['lang']] * 2))[1][1],
}


def test_counts_are_whole_numbers_of_every_row():
    rows = conflator_points(jnp.asarray([GOLDEN['lang']] * 2))
    for found, one in zip(rows, conflator_points(jnp.asarray(GOLDEN['lang'])), strict=True):
        assert found.tolist() == [one.tolist()] * 2 and found.dtype == jnp.int32


@pytest.mark.parametrize('mode', ['shift', 'reset'])
def test_golden_angles_and_logits(mode):
    part = part_of(f'mode="{mode}"')
    tok, ones = tokens(GOLDEN['lang']), jnp.ones((1, 5, 1, H))
    turns = np.exp(1j * part.angles(tok.pos)[0])
    np.testing.assert_allclose(turns, np.exp(1j * np.array(GOLDEN[f'angles_{mode}'])), atol=1e-6)
    row = logits(part, tok, ones, ones)[0, -1]
    np.testing.assert_allclose(row, GOLDEN[f'row_{mode}'], atol=1e-6)


def test_both_counts_start_anew_in_every_document():
    lang, segment = np.array([0, 1, 1, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 5, 5, 5, 5, 2])
    s, c = conflator_points(jnp.asarray(lang), jnp.asarray(segment))
    assert s.tolist() == [0, 1, 0, 0, 0, 1, 1, 0] and c.tolist() == [0, 1, 1, 0, 0, 1, 2, 0]
    alone = [conflator_ids(jnp.asarray(lang[segment == document])) for document in (0, 5, 2)]
    packed = conflator_ids(jnp.asarray(lang), jnp.asarray(segment))
    np.testing.assert_array_equal(packed, np.concatenate(alone))


@pytest.mark.full_but_one
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_one_language_turns_as_rope_for_any_delta(layout):
    arrays, tok = qkv(L, heads=2, width=H), pj.Tokens.of(length=L)
    expected = pj.make(f'rope(layout="{layout}")', head_dim=H).project(*arrays, tok, tok)[:3]
    for mode in ('shift', 'reset'):
        part = part_of(f'layout="{layout}", mode="{mode}"', delta=jnp.array([5.0, -7.0]))
        for known in (tok, tokens(np.full(L, 3))):
            found = part.project(*arrays, known, known)[:3]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('options', ['', 'unigram_only=True'])
@pytest.mark.full
def test_without_delta_and_bigrams_a_model_is_that_of_rope(options):
    """w_b = 0 exactly: softmax of (0, -200) is (1, 0) in float32."""
    model, plain = model_of(f'conflator({options})'), model_of('rope()')
    state, given = nnx.to_flat_state(nnx.state(model)), dict(nnx.to_flat_state(nnx.state(plain)))
    shared = [(path, given.get(path, value)) for path, value in state]
    nnx.update(model, nnx.from_flat_state(shared))
    ids, tok, part = jnp.arange(L)[None] % 11, pj.Tokens.of(length=L), model.blocks[0].encodings[0]

    def apart(delta, known, of_bigrams=-200.0):
        part.delta[...] = jnp.full_like(part.delta[...], delta)
        if not part.unigram_only:
            part.mix[...] = jnp.array([[0.0, of_bigrams]] * 2)
        return np.abs(read(model, ids, known) - read(plain, ids, tok)).max()

    assert apart(0.0, tokens()) < 1e-6 and apart(3.0, tok) < 1e-6 and apart(3.0, tokens()) > 1e-3
    assert part.unigram_only or apart(0.0, tok, of_bigrams=0.0) > 1e-3


def by_numpy(weights, part, x, lang, document, mode):
    """The attention layer written from the definition in float64, one document after the other."""
    w_q, w_k, w_v, w_out, kernel, delta, mix = (np.asarray(a, np.float64) for a in weights)
    theta, mixing = 1e4 ** (-2 * np.arange(H // 2) / H), np.exp(mix) / np.exp(mix).sum()
    w_k, w_v = (np.repeat(w, w_q.shape[1] // w.shape[1], axis=1) for w in (w_k, w_v))
    out = np.zeros((len(x), w_out.shape[-1]))
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
            q, k, v = (np.einsum('ld,dnh->nlh', source, w) for w in (w_q, w_k, w_v))
            q, k = (
                (a[..., : H // 2] + 1j * a[..., H // 2 :]) * np.exp(1j * np.array(angles))
                for a in (q, k)
            )
            s = np.exp((q @ k.conj().swapaxes(1, 2)).real / H**0.5) * np.tri(len(rows))
            p = s / s.sum(-1, keepdims=True)
            out[rows] += weight * np.einsum('nij,njh,nhd->id', p, v, w_out)
    return out


@pytest.mark.full_but_one
@pytest.mark.parametrize('mode', ['shift', 'reset'])
def test_both_branches_equal_the_definition_written_in_numpy(mode):
    model = model_of(f'conflator(mode="{mode}")', layers=1)
    ((_, layer),) = model.layers()
    document = np.array([0] * 8 + [1] * 5)
    ids = conflator_ids(jnp.asarray(LANG), jnp.asarray(document))[None]
    tok, x = pj.Tokens.of(positions=ids, segment=document[None]), draw(7, 1, L, 16)
    attention, part = layer.attention, layer.encodings[0]
    layer.mlp_norm.scale[...] = jnp.zeros(16)  # so that the block is x + attention(norm(x))
    out = layer(x, tok, model.encoding(0, layer)) - x
    shared = attention.w_q, attention.w_k, attention.w_v, attention.w_out
    weights = [a[...] for a in (*shared, part.kernel, part.delta, part.mix)]
    normed = np.asarray(layer.attention_norm(x)[0], np.float64)
    expected = by_numpy(weights, part, normed, LANG, document, mode)
    np.testing.assert_allclose(out[0], expected, atol=2e-6)


def test_every_layer_has_its_own():
    part = model_of().blocks[0].encodings[0]
    shapes = part.delta.shape, part.kernel.shape, part.mix.shape
    assert shapes == ((2, H // 2), (2, 32, 16), (2, 2))
    assert np.abs(part.kernel[0] - part.kernel[1]).max() > 0.1
    fresh = pj.make('conflator()', head_dim=H, model_dim=512)
    assert not fresh.delta[...].any() and not fresh.mix[...].any()
    assert float(fresh.kernel[...].std()) == pytest.approx(1024**-0.5, rel=0.01)
    alone = part_of('unigram_only=True')
    assert len(jax.tree.leaves(nnx.state(alone))) == 1
    assert alone.lookback == 0 and not alone.opens('qkv')


def test_what_can_be_combined_is_taken():
    ids = jnp.arange(L)[None] % 11
    assert read(model_of('conflator() | window(size=4)'), ids, tokens()).shape == (1, L, 11)
    sizes = dict(heads=4, head_dim=H, model_dim=16)
    pj.make('conflator(unigram_only=True) | alibi()', causal=True, **sizes)


def test_a_model_refuses_parameters_per_head_beside_it():
    message = 'conflator gives every head several inputs of attention, and t5_rpe'
    with pytest.raises(SpecError, match=message):
        model_of('conflator() | t5_rpe()')


test_wrong_calls = refused() | {
    r'integers \[..., L\], one per token, got lang float32 \(3,\)': lambda: conflator_points(
        jnp.ones(3)
    ),
    r'got segment int32 \(4,\)': lambda: conflator_points(jnp.zeros(3, int), jnp.zeros(4, int)),
    r'\(position, offset, switches\), got \(1, 5, 2\)': lambda: part_of().angles(
        jnp.zeros((1, 5, 2), int)
    ),
    '5 tokens, the input of 5': lambda: part_of().qkv(
        jnp.zeros((1, 5, D)), None, pj.Tokens.of(length=5)
    ),
}
