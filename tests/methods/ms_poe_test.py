"""Ms-PoE: ratios, orders and assignments of the sheet, its limits rope and pi, grouped keys, the
probe, layers of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.methods import ms_poe as module
from posenc_jax.methods.rope import rope
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of, read
from tests.refusals import refused

GOLDEN = golden('ms_poe')['values']
WIDTH, HEADS, LENGTH = 8, 4, 19


def encoding(inner='rope()', kv_heads=HEADS, **options):
    more = ''.join(f', {name}={value!r}' for name, value in options.items())
    sizes = dict(head_dim=WIDTH, heads=HEADS, kv_heads=kv_heads, train_len=16, causal=True)
    return pj.make(f'ms_poe(encoding={inner}{more})', **sizes)


def draw(seed, heads, length=LENGTH):
    shape = 1, length, heads, WIDTH
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def qkv(length=LENGTH, kv_heads=HEADS):
    return draw(0, HEADS, length), draw(1, kv_heads, length), draw(2, kv_heads, length)


def logits(part, q, k, pos):
    return np.asarray(_logits(part, q, k, pos))


@jax.jit
def _logits(part, q, k, pos):
    tok = pj.Tokens.of(positions=pos)
    q, k, _, _, _ = part.project(q, k, k, tok, tok)
    return pj.functional.scaled_dot_product(q.swapaxes(1, 2), k.swapaxes(1, 2))[0]


@jax.jit
def run(part, *arrays):
    tok = pj.Tokens.of(length=arrays[0].shape[1])
    return pj.attend(part, *part.project(*arrays, tok, tok), applied=pj.TOKEN_STAGE)


project = jax.jit(lambda part, *arrays: part.project(*arrays, *[pj.Tokens.of(length=LENGTH)] * 2))
rotated, scored = jax.jit(rope), jax.jit(module.ms_poe_scores)


def ratios(part):
    return np.asarray(part.parts[0].ratios[...])


def logits_at_the_distance(values):
    ones = np.ones((1, 2, HEADS, WIDTH), np.float32)
    return logits(encoding(), ones, ones, np.array([[7, 7 + values['distance']]]))[:, 1, 0]


def index(assign):
    return lambda values: module.ms_poe_index(jnp.array(values['order']), assign)


test_golden = golden_suite('ms_poe', rtol=1e-12) | {
    'first': lambda values: module.ms_poe_ratios(values['heads'], 1.2, 1.8)[0],
    'second': lambda values: module.ms_poe_ratios(values['heads'], 1.2, 1.8)[1],
    'last': lambda values: module.ms_poe_ratios(values['heads'], 1.2, 1.8)[-1],
    'order': lambda values: module.ms_poe_order(jnp.asarray(values['scores'])),
    'logits': (logits_at_the_distance, {'atol': 2e-6}),
    **{assign: index(assign) for assign in ('rank', 'code', 'normal')},
}


def test_equal_scores_keep_their_order():
    assert module.ms_poe_order(jnp.asarray([0.2, 0.5, 0.2, 0.5])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize('assign', ['rank', 'code'])
def test_the_order_says_which_ratio_a_head_has(assign):
    table = module.ms_poe_ratios(HEADS, 1.2, 1.8)
    ours = encoding(order=tuple(GOLDEN['order']), assign=assign)
    np.testing.assert_allclose(ratios(ours), table[GOLDEN[assign]], rtol=1e-6)
    np.testing.assert_allclose(ratios(encoding(assign=assign)), table, rtol=1e-6)
    np.testing.assert_allclose(ratios(encoding(assign='normal')), table[::-1], rtol=1e-6)


@pytest.mark.full
def test_every_head_is_rope_at_its_own_fractional_positions():
    q, k, v = qkv()
    pos, order = np.arange(LENGTH)[None], tuple(GOLDEN['order'])
    ours_q, ours_k, *_ = map(np.asarray, project(encoding(order=order), q, k, v)[:3])
    for head, n in enumerate(GOLDEN['rank']):
        at = np.float32(pos / module.ms_poe_ratios(HEADS, 1.2, 1.8)[n])
        for ours, x in ((ours_q, q), (ours_k, k)):
            expected = np.asarray(rotated(x, at))[:, :, head]
            np.testing.assert_allclose(ours[:, :, head], expected, atol=1e-5)


@pytest.mark.full
def test_grouped_keys_take_the_ratio_of_their_first_query_head():
    q, k, v = qkv(kv_heads=2)
    pos, order = np.arange(LENGTH)[None], (2, 0, 3, 1)
    part, shared = (encoding(kv_heads=2, order=order, per_group=each) for each in (False, True))
    table = module.ms_poe_ratios(HEADS, 1.2, 1.8)
    np.testing.assert_allclose(ratios(part), table[[1, 3, 0, 2]], rtol=1e-6)
    np.testing.assert_allclose(ratios(shared), table[[1, 1, 0, 0]], rtol=1e-6)
    for encoded in (part, shared):
        ours = np.asarray(project(encoded, q, k, v)[1])
        for head, n in enumerate((1, 0)):
            expected = np.asarray(rotated(k, np.float32(pos / table[n])))
            np.testing.assert_allclose(ours[:, :, head], expected[:, :, head], atol=1e-5)
    gap = lambda encoded: logits(encoded, q, k, pos + 50) - logits(encoded, q, k, pos)
    moved = lambda encoded: np.abs(gap(encoded)).max((1, 2))
    assert moved(shared).max() < 1e-5
    assert moved(part)[[0, 2]].max() < 1e-5 and moved(part)[[1, 3]].min() > 0.1


def test_scores_count_keys_of_more_than_three_times_the_mean():
    keys, query = np.zeros((1, 10, 1, WIDTH), np.float32), np.zeros((1, 2, WIDTH), np.float32)
    keys[0, [3, 5], 0, 0], query[0, 1, 0] = 10.0, 1.0
    # The softmax of 10 / sqrt(8) twice is 0.40 each.
    np.testing.assert_allclose(scored(query, keys), [[0.0, 0.2]], atol=1e-7)
    np.testing.assert_allclose(scored(0 * query, keys), [[0.0, 0.0]], atol=0)
    seen = np.arange(12)[None] >= 2
    padded = np.pad(keys, ((0, 0), (2, 0), (0, 0), (0, 0)), constant_values=9.0)
    np.testing.assert_allclose(scored(query, padded, seen), [[0.0, 0.2]], atol=1e-7)
    q, k, _ = qkv(kv_heads=2)
    q = 3 * q
    weights = np.exp(np.einsum('bnh,bsnh->bns', q[:, -1], np.repeat(k, 2, axis=2)) / WIDTH**0.5)
    expected = (weights > 3 * weights.mean(-1, keepdims=True)).mean(-1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(scored(q[:, -1], k), expected, atol=1e-7)


def model(spec='rope()', layers=4, **fields):
    """Attention is sharper than at the start of training, so that heads differ."""
    sizes = dict(train_len=16, width=32, heads=4, kv_heads=2)
    built = model_of(spec, layers=layers, **sizes, **fields)
    for block in built.blocks:
        block.attention.w_q[...] = 4.0 * np.asarray(block.attention.w_q[...])
    return built


PROMPT = np.random.default_rng(5).integers(11, size=(1, 40), dtype=np.int32)


def test_the_probe_gives_every_layer_the_order_of_its_unrotated_last_row():
    long = model(pattern=('rope()', 'rope(base=500.0)')).extend('ms_poe()')
    orders = module.probe_heads(long, PROMPT, skip=1)
    unordered = np.tile(np.arange(4), (4, 1))
    assert orders.shape == (4, 4) and np.array_equal(np.sort(orders), unordered)
    assert not np.array_equal(orders, unordered), 'the heads differ'

    own = module.reorder(long, orders, skip=1)
    tok = pj.Tokens.of(length=40)
    x = own.embed(PROMPT, own.place(tok))
    described = jax.jit(lambda block, x: block.attention.qkv(block.attention_norm(x))[:2])
    through = jax.jit(lambda block, x, encoded: block(x, tok, encoded))
    for number, (layer_type, block) in enumerate(own.layers()):
        encoded = own.encoding(layer_type, block)
        table = np.ones(4) if number < 1 else module.ms_poe_ratios(4, 1.2, 1.8)
        expected = table[np.argsort(orders[number])]
        np.testing.assert_allclose(encoded.parts[0].ratios[...], expected, rtol=1e-6)
        q, k = map(np.asarray, described(block, x))
        weights = np.exp(np.einsum('nh,snh->ns', q[0, -1], np.repeat(k[0], 2, axis=1)) / 8**0.5)
        scores = (weights > 3 / 40 * weights.sum(-1, keepdims=True)).mean(-1)
        np.testing.assert_array_equal(orders[number], np.argsort(-scores, kind='stable'))
        x = through(block, x, encoded)
    np.testing.assert_allclose(own.logits(own.norm(x)), read(own, PROMPT), atol=2e-5)


@pytest.mark.full
def test_layers_that_own_their_ratios_from_the_start():
    built, base = model('ms_poe(encoding=rope())'), model()
    for name in ('embedding', 'norm', 'output'):
        setattr(built, name, getattr(base, name))
    for name in ('attention_norm', 'attention', 'mlp_norm', 'mlp'):
        setattr(built.blocks[0], name, getattr(base.blocks[0], name))
    shared = base.extend('ms_poe()')
    orders = module.probe_heads(built, PROMPT)
    np.testing.assert_array_equal(module.probe_heads(shared, PROMPT), orders)
    out = lambda model: read(model, PROMPT)
    own = out(module.reorder(built, orders))
    np.testing.assert_allclose(own, out(module.reorder(shared, orders)), atol=1e-5)
    assert np.abs(own - out(built)).max() > 1e-3
    np.testing.assert_allclose(out(module.reorder(built, orders, skip=4)), out(base), atol=1e-5)
    twice = module.reorder(module.reorder(shared, orders[:, ::-1]), orders)
    np.testing.assert_allclose(out(twice), out(module.reorder(shared, orders)), atol=1e-6)


@pytest.mark.full
def test_padding_and_rows():
    long = model(layers=2).extend('ms_poe()')
    orders = module.probe_heads(long, PROMPT, skip=0)
    for sides in ((5, 0), (0, 5)):
        padded = np.pad(PROMPT, ((0, 0), sides), constant_values=3)
        tok = pj.Tokens.of(valid=np.pad(np.ones((1, 40), bool), ((0, 0), sides)))
        np.testing.assert_array_equal(module.probe_heads(long, padded, tok, skip=0), orders)
    np.testing.assert_array_equal(module.probe_heads(long, np.tile(PROMPT, (2, 1)), skip=0), orders)


@pytest.mark.full
def test_decoding_keeps_the_ratios_of_the_prompt():
    long = model(layers=2).extend('ms_poe()')
    own = module.reorder(long, module.probe_heads(long, PROMPT, skip=0), skip=0)
    out = generate(own, PROMPT, max_new_tokens=4, temperature=0.0)
    np.testing.assert_array_equal(out[:, 40:], np.asarray(read(own, out))[:, 39:43].argmax(-1))


def probed(tok=None, **fields):
    return lambda: module.probe_heads(model(**fields), PROMPT, tok)


test_wrong_calls = refused() | {
    'built for 4 heads, got 3': lambda: run(encoding(), *(a[:, :, :3] for a in qkv())),
    r'one position per token \[B, L\]': (
        lambda: logits(encoding(), *qkv(5)[:2], jnp.zeros((1, 5, 2), int))
    ),
    'no ms_poe part': lambda: module.reorder(model(), jnp.zeros((4, 4), int)),
    r'4 layers, 4 heads, got \(3, 4\)': (
        lambda: module.reorder(model('ms_poe(encoding=rope())'), jnp.zeros((3, 4), int))
    ),
    "kind 'encoder'": probed(kind='encoder'),
    'packed documents': probed(pj.Tokens.of(segment=np.zeros((1, 40), int))),
}
