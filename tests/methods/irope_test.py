"""iRoPE: chunks, the norm behind the rotation, patterns of layers, and a model that is trained."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import posenc_jax as pj
from posenc_jax.lab.conversion.fit import fit
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.methods.irope import PATTERNS, irope_pattern, irope_unit_rms
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden_suite
from tests.small_models import small_model


def mask(spec, causal=True, **tokens):
    tok = pj.Tokens.of(**tokens)
    return np.asarray(pj.make(spec, causal=causal).mask(tok, tok)[0, 0]).astype(int)


test_golden = golden_suite('irope') | {
    'seen': lambda v: mask(f'irope(size={v["chunk"]})', length=len(v['seen'])).sum(-1),
    'normed': (lambda v: irope_unit_rms(jnp.array(v['vector'], jnp.float32)), {'rtol': 1e-6}),
}


def test_chunks_are_counted_in_the_document():
    rows = mask('irope(size=2)', segment=[[1, 1, 1, 2, 2, 2, 2, 2]]).sum(-1)
    assert rows.tolist() == [1, 2, 1, 1, 2, 1, 2, 1]
    padded = pj.Tokens.of(valid=[[False, False, False, True, True, True]])
    chunk = pj.make('irope(size=2)').mask(padded, padded)[0, 0]
    assert chunk[4].tolist()[3:] == [True, True, False] and chunk[5].tolist()[3:] == [0, 0, 1]
    assert mask('irope(size=8)', causal=False, length=8).all()
    aligned = mask('window(size=4, aligned=True)', length=8).sum(-1)
    assert aligned.tolist() != mask('irope(size=4)', length=8).sum(-1).tolist()


def test_blocks_are_ruled_out_exactly():
    tok, part = pj.Tokens.of(length=24), pj.make('irope(size=5)')
    pairs = np.asarray(part.mask(tok, tok)[0, 0])
    for q, k in itertools.product(range(0, 21, 4), range(21)):
        may = bool(part.may_see(bounds(tok.slice(q, 4)), bounds(tok.slice(k, 4))))
        assert may == pairs[q : q + 4, k : k + 4].any(), (q, k)


def projected(spec, scale=1.0):
    q, k, v = (scale * jax.random.normal(jax.random.key(seed), (1, 6, 2, 8)) for seed in range(3))
    tok = pj.Tokens.of(length=6)
    return pj.make(spec, head_dim=8, train_len=4).project(q, k, v, tok, tok)[:3]


def test_the_norm_commutes_with_the_rotation_and_forgets_the_scale():
    behind, before = projected('rope() | irope()'), projected('irope() | rope()')
    for a, b in zip(behind, before):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for normed, scaled in zip(behind[:2], projected('rope() | irope()', 1e3)):
        np.testing.assert_allclose((normed**2).mean(-1), 1.0, atol=2e-4)
        np.testing.assert_allclose(normed, scaled, atol=2e-4)
    plain = projected('rope() | irope(qk_norm=False)')
    for a, b in zip(plain, projected('rope()')):
        np.testing.assert_array_equal(a, b)
    assert not pj.make('irope(qk_norm=False)').opens('project')
    assert np.isfinite(jax.grad(lambda x: irope_unit_rms(x).sum())(jnp.zeros(4))).all()


def test_patterns_of_published_models():
    rotary, still = {}, {}
    for name in PATTERNS:
        specs = irope_pattern(name, None if name == 'smollm3' else 16)
        kinds = [[node.entry.key for node in parse_layer(spec).nodes] for spec in specs]
        rotary[name] = [kind[1:] for kind in kinds if kind[0] == 'rope']
        still[name] = [(i, kind[1:]) for i, kind in enumerate(kinds) if kind[0] == 'nope']
        for spec in specs:
            pj.make(spec, head_dim=8, train_len=8)
    assert rotary == {
        'llama4': [['irope']] * 3, 'swan': [['window']] * 3,
        'rnope_swa': [['window']] * 3, 'smollm3': [[]] * 3,
    }  # fmt: skip
    assert still == {
        'llama4': [(3, ['log_length'])], 'swan': [(0, [])],
        'rnope_swa': [(3, [])], 'smollm3': [(3, [])],
    }  # fmt: skip
    assert 'size=8192' in irope_pattern('llama4')[0] and 'step=8192' in irope_pattern('llama4')[3]
    assert 'size=512' in irope_pattern('swan')[1] and 'size=4096' in irope_pattern('rnope_swa')[0]


@pytest.mark.full
def test_a_model_of_the_pattern_is_trained_and_reads_longer_texts():
    """Texts repeat themselves every three tokens, chunks have four."""
    sizes = dict(encoding='', vocab_size=5, train_len=16, layers=2, width=16, heads=2)
    model = small_model(pattern=irope_pattern('llama4', 4)[2:], **sizes)  # local, global
    rng = np.random.default_rng(0)
    start = rng.integers(0, 5, (60, 8, 3))
    batches = jnp.asarray(np.tile(start, (1, 1, 6))[..., :17], jnp.int32)

    def loss(model, _, text):
        own = optax.softmax_cross_entropy_with_integer_labels(model(text[:, :-1]), text[:, 1:])
        return own[:, 4:].mean(), None

    trained, losses, _ = fit(model, model, loss, batches, optax.adam(1e-2))
    assert losses[-5:].mean() < 0.6 * losses[:5].mean()
    assert np.isfinite(jax.jit(trained)(jnp.tile(batches[0], (1, 3)))).all()
