"""Ms-PoE: ratios, orders and assignments of the sheet, its limits rope and pi, grouped keys, the
probe, layers of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.ms_poe import (
    head_order,
    head_scores,
    ms_poe_ratios,
    probe_heads,
    ratio_index,
    reorder,
)
from posenc_jax.methods.rope import rope
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('ms_poe')['values']
WIDTH, HEADS, LENGTH = 8, 4, 19


def encoding(inner='rope()', kv_heads=HEADS, **options):
    more = ''.join(f', {name}={value!r}' for name, value in options.items())
    return pj.make(
        f'ms_poe(encoding={inner}{more})',
        head_dim=WIDTH,
        heads=HEADS,
        kv_heads=kv_heads,
        train_len=16,
        causal=True,
    )


def qkv(length=LENGTH, kv_heads=HEADS):
    draw = lambda seed, heads: np.random.default_rng(seed).standard_normal(
        (1, length, heads, WIDTH), dtype=np.float32
    )
    return draw(0, HEADS), draw(1, kv_heads), draw(2, kv_heads)


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
rotated, scored = jax.jit(rope), jax.jit(head_scores)
read = jax.jit(lambda model, text: model(text))


def ratios(part):
    return np.asarray(part.parts[0].ratios[...])


def test_golden_ratios():
    table = ms_poe_ratios(GOLDEN['heads'], 1.2, 1.8)
    np.testing.assert_allclose(
        table[[0, 1, -1]], [GOLDEN['first'], GOLDEN['second'], GOLDEN['last']], rtol=1e-12
    )


def test_golden_order_and_assignments():
    order = head_order(jnp.asarray(GOLDEN['scores']))
    assert order.tolist() == GOLDEN['order']
    for assign in ('rank', 'code', 'normal'):
        assert ratio_index(order, assign).tolist() == GOLDEN[assign]
    assert head_order(jnp.asarray([0.2, 0.5, 0.2, 0.5])).tolist() == [1, 3, 0, 2]


def test_golden_logits():
    ones = np.ones((1, 2, HEADS, WIDTH), np.float32)
    s = logits(encoding(), ones, ones, np.array([[7, 7 + GOLDEN['distance']]]))
    np.testing.assert_allclose(s[:, 1, 0], GOLDEN['logits'], atol=2e-6)


@pytest.mark.parametrize('assign', ['rank', 'code'])
def test_the_order_says_which_ratio_a_head_has(assign):
    table = ms_poe_ratios(HEADS, 1.2, 1.8)
    ours = encoding(order=tuple(GOLDEN['order']), assign=assign)
    np.testing.assert_allclose(ratios(ours), table[GOLDEN[assign]], rtol=1e-6)
    np.testing.assert_allclose(ratios(encoding(assign=assign)), table, rtol=1e-6)
    np.testing.assert_allclose(ratios(encoding(assign='normal')), table[::-1], rtol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'inner, plain, factor',
    [
        ('rope()', 'rope(freqs=pi(factor={}))', 1.0),
        (
            'rope(partial=0.5, layout="interleaved")',
            'rope(partial=0.5, layout="interleaved", freqs=pi(factor={}))',
            2.5,
        ),
    ],
)
def test_one_ratio_is_pi_and_one_is_rope(inner, plain, factor):
    arrays = qkv(kv_heads=2)
    expected = pj.make(plain.format(factor), head_dim=WIDTH, causal=True)
    ours = encoding(inner, kv_heads=2, r_min=factor, r_max=factor)
    np.testing.assert_allclose(run(ours, *arrays), run(expected, *arrays), atol=2e-6)
    if factor == 1.0:
        bare = pj.make(inner, head_dim=WIDTH, causal=True)
        np.testing.assert_allclose(run(ours, *arrays), run(bare, *arrays), atol=2e-6)


def test_rules_and_temperatures_are_those_of_the_part():
    arrays, inner = qkv(), 'rope(freqs=yarn(factor=4.0, train_len=8))'
    plain = pj.make(inner, head_dim=WIDTH, causal=True)
    np.testing.assert_allclose(
        run(encoding(inner, r_min=1.0, r_max=1.0), *arrays), run(plain, *arrays), atol=2e-6
    )


@pytest.mark.full
def test_every_head_is_rope_at_its_own_fractional_positions():
    q, k, v = qkv()
    pos, order = np.arange(LENGTH)[None], tuple(GOLDEN['order'])
    ours_q, ours_k, *_ = map(np.asarray, project(encoding(order=order), q, k, v)[:3])
    for head, n in enumerate(GOLDEN['rank']):
        at = np.float32(pos / ms_poe_ratios(HEADS, 1.2, 1.8)[n])
        np.testing.assert_allclose(
            ours_q[:, :, head], np.asarray(rotated(q, at))[:, :, head], atol=1e-5
        )
        np.testing.assert_allclose(
            ours_k[:, :, head], np.asarray(rotated(k, at))[:, :, head], atol=1e-5
        )


@pytest.mark.full
def test_grouped_keys_take_the_ratio_of_their_first_query_head():
    q, k, v = qkv(kv_heads=2)
    pos, order = np.arange(LENGTH)[None], (2, 0, 3, 1)
    part, shared = (
        encoding(kv_heads=2, order=order),
        encoding(kv_heads=2, order=order, per_group=True),
    )
    table = ms_poe_ratios(HEADS, 1.2, 1.8)
    np.testing.assert_allclose(ratios(part), table[[1, 3, 0, 2]], rtol=1e-6)
    np.testing.assert_allclose(ratios(shared), table[[1, 1, 0, 0]], rtol=1e-6)
    for encoded in (part, shared):
        ours = np.asarray(project(encoded, q, k, v)[1])
        for head, n in enumerate((1, 0)):
            expected = np.asarray(rotated(k, np.float32(pos / table[n])))
            np.testing.assert_allclose(ours[:, :, head], expected[:, :, head], atol=1e-5)
    moved = lambda encoded: np.abs(
        logits(encoded, q, k, pos + 50) - logits(encoded, q, k, pos)
    ).max((1, 2))
    assert moved(shared).max() < 1e-5
    assert moved(part)[[0, 2]].max() < 1e-5 and moved(part)[[1, 3]].min() > 0.1


def test_reach_grows_by_the_ratio_of_the_head():
    """A head turns its planes at position r L as rope does at L: what the scale is for."""
    part, tok = encoding(r_min=1.5, r_max=2.5).parts[0], pj.Tokens.of(positions=[[60]])
    x = np.ones((1, 1, HEADS, WIDTH), np.float32)
    turned = np.asarray(jax.jit(part.rotate)(x, tok.pos, part.ratios[...]))
    np.testing.assert_allclose(
        turned[:, :, 0], np.asarray(rotated(x, np.array([[40]])))[:, :, 0], atol=1e-5
    )
    np.testing.assert_allclose(
        turned[:, :, 2], np.asarray(rotated(x, np.array([[30]])))[:, :, 2], atol=1e-5
    )


def test_scores_count_keys_of_more_than_three_times_the_mean():
    keys, query = np.zeros((1, 10, 1, WIDTH), np.float32), np.zeros((1, 2, WIDTH), np.float32)
    keys[0, [3, 5], 0, 0], query[0, 1, 0] = 10.0, 1.0
    np.testing.assert_allclose(
        scored(query, keys), [[0.0, 0.2]], atol=1e-7
    )  # softmax of 10/sqrt(8) twice: 0.40 each
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


def model(spec='rope()', layers=4, pattern=(), **options):
    cfg = TransformerConfig(
        vocab_size=11,
        train_len=16,
        layers=layers,
        width=32,
        heads=4,
        kv_heads=2,
        encoding=spec,
        pattern=pattern,
        **options,
    )
    built = Transformer(cfg, rngs=nnx.Rngs(0))
    for (
        block
    ) in built.blocks:  # sharper attention than at the start of training, so that heads differ
        block.attention.w_q[...] = 4.0 * np.asarray(block.attention.w_q[...])
    return built


PROMPT = np.random.default_rng(5).integers(11, size=(1, 40), dtype=np.int32)


def test_the_probe_gives_every_layer_the_order_of_its_unrotated_last_row():
    long = model(pattern=('rope()', 'rope(base=500.0)')).extend('ms_poe()')
    orders = probe_heads(long, PROMPT, skip=1)
    assert orders.shape == (4, 4) and np.array_equal(np.sort(orders), np.tile(np.arange(4), (4, 1)))
    assert not np.array_equal(orders, np.tile(np.arange(4), (4, 1))), 'the heads differ'

    own = reorder(long, orders, skip=1)
    tok = pj.Tokens.of(length=40)
    x = own.embed(PROMPT, own.place(tok))
    described = jax.jit(lambda block, x: block.attention.qkv(block.attention_norm(x))[:2])
    through = jax.jit(lambda block, x, encoded: block(x, tok, encoded))
    for number, (layer_type, block) in enumerate(own.layers()):
        encoded = own.encoding(layer_type, block)
        expected = (
            np.ones(4) if number < 1 else ms_poe_ratios(4, 1.2, 1.8)[np.argsort(orders[number])]
        )
        np.testing.assert_allclose(encoded.parts[0].ratios[...], expected, rtol=1e-6)
        q, k = map(np.asarray, described(block, x))
        weights = np.exp(np.einsum('nh,snh->ns', q[0, -1], np.repeat(k[0], 2, axis=1)) / 8**0.5)
        scores = (weights > 3 / 40 * weights.sum(-1, keepdims=True)).mean(-1)
        np.testing.assert_array_equal(orders[number], np.argsort(-scores, kind='stable'))
        x = through(block, x, encoded)
    np.testing.assert_allclose(own.logits(own.norm(x)), read(own, PROMPT), atol=2e-5)


@pytest.mark.full
def test_layers_that_own_their_ratios_from_the_start():
    built, plain = model('ms_poe(encoding=rope())'), model()
    for name in ('embedding', 'norm', 'output'):
        setattr(built, name, getattr(plain, name))
    for name in ('attention_norm', 'attention', 'mlp_norm', 'mlp'):
        setattr(built.blocks[0], name, getattr(plain.blocks[0], name))
    shared = plain.extend('ms_poe()')
    orders = probe_heads(built, PROMPT)
    np.testing.assert_array_equal(probe_heads(shared, PROMPT), orders)
    np.testing.assert_allclose(
        read(reorder(built, orders), PROMPT), read(reorder(shared, orders), PROMPT), atol=1e-5
    )
    assert np.abs(read(reorder(built, orders), PROMPT) - read(built, PROMPT)).max() > 1e-3
    np.testing.assert_allclose(
        read(reorder(built, orders, skip=4), PROMPT), read(plain, PROMPT), atol=1e-5
    )
    twice = reorder(reorder(shared, orders[:, ::-1]), orders)
    np.testing.assert_allclose(
        read(twice, PROMPT), read(reorder(shared, orders), PROMPT), atol=1e-6
    )


@pytest.mark.full
def test_padding_and_rows():
    long = model(layers=2).extend('ms_poe()')
    orders = probe_heads(long, PROMPT, skip=0)
    pad = lambda before, after: np.pad(PROMPT, ((0, 0), (before, after)), constant_values=3)
    valid = lambda before, after: pj.Tokens.of(
        valid=np.pad(np.ones((1, 40), bool), ((0, 0), (before, after)))
    )
    for sides in ((5, 0), (0, 5)):
        np.testing.assert_array_equal(probe_heads(long, pad(*sides), valid(*sides), skip=0), orders)
    np.testing.assert_array_equal(probe_heads(long, np.tile(PROMPT, (2, 1)), skip=0), orders)


@pytest.mark.full
def test_decoding_keeps_the_ratios_of_the_prompt():
    long = model(layers=2).extend('ms_poe()')
    own = reorder(long, probe_heads(long, PROMPT, skip=0), skip=0)
    out = generate(own, PROMPT, max_new_tokens=4, temperature=0.0)
    np.testing.assert_array_equal(out[:, 40:], np.asarray(read(own, out))[:, 39:43].argmax(-1))


@pytest.mark.parametrize(
    'spec, message',
    [
        ('ms_poe(encoding=alibi())', 'rotary encoding, got alibi'),
        ('ms_poe(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        (
            'ms_poe(encoding=rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), mode="long", '
            'start=2, factor=4.0)))',
            'start=0',
        ),
        ('ms_poe(encoding=rope(), r_min=0.0)', 'r_min must be positive, got 0.0'),
        ('ms_poe(encoding=rope(), r_min=2.0, r_max=1.5)', 'at least r_min=2.0, got 1.5'),
        ('ms_poe(encoding=rope(), order=(0, 1))', r'each of the heads 0 \.\. 3 once'),
        ('ms_poe(encoding=rope(), order=(0, 1, 2, 2))', 'once, got'),
        ('ms_poe(encoding=rope(), order=(0, 1, 2, 3), assign="normal")', 'takes no order'),
        ('ms_poe(encoding=rope(), assign="ranks")', "one of 'rank', 'code', 'normal'"),
        ('ms_poe()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=4, train_len=64)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: run(encoding(), *(a[:, :, :3] for a in qkv())), 'built for 4 heads, got 3'),
        (
            lambda: logits(encoding(), *qkv(5)[:2], jnp.zeros((1, 5, 2), int)),
            r'one position per token \[B, L\]',
        ),
        (lambda: reorder(model(), jnp.zeros((4, 4), int)), 'no ms_poe part'),
        (
            lambda: reorder(model('ms_poe(encoding=rope())'), jnp.zeros((3, 4), int)),
            r'4 layers, 4 heads, got \(3, 4\)',
        ),
        (lambda: probe_heads(model(kind='encoder'), PROMPT), "kind 'encoder'"),
        (
            lambda: probe_heads(model(), PROMPT, pj.Tokens.of(segment=np.zeros((1, 40), int))),
            'packed documents',
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
