"""Tests of SeqPE: digits, the encoder against NumPy, the four uses, the two losses and what they
draw, the training rule of `place`, and refused arguments and positions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods import seqpe_losses as losses
from posenc_jax.methods.per_head import PerHead
from posenc_jax.methods.seqpe_encoder import (
    SeqPEEncoder,
    seqpe_digits,
    seqpe_padding,
    seqpe_positions,
)
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS, Encoding
from tests.golden_files import golden, golden_suite
from tests.methods.models import descend, moved, turned_off
from tests.methods.pairs import draw

GOLDEN = golden('seqpe')['values']
USES = ('attn_scalar', 'attn_mul', 'attn_add', 'input_add')
SIZES = dict(heads=4, kv_heads=2, head_dim=4, model_dim=8, train_len=12)


@functools.cache
def make(arguments='', **sizes):
    spec = f'seqpe(max_pos=1000{", " if arguments else ""}{arguments})'
    return moved(pj.make(spec, rngs=nnx.Rngs(0), **{**SIZES, **sizes}), seed=7)


def auxiliary(encoding, seed=0):
    return loss_of(encoding, jax.random.key(seed))


# Compiled once for all encodings and inputs of one form.
vectors = jax.jit(lambda encoding, pos: encoding.vectors(pos))
placed = jax.jit(lambda encoding, tok, key=None: encoding.place(tok, key=key))
whole = jax.jit(lambda layer, x, tok=None: layer(x, tok))
step = jax.jit(lambda layer, x, cache: layer.step(x, cache))
attended = jax.jit(
    lambda encoding, q, k, v, tok: pj.attend(
        encoding, *encoding.project(q, k, v, tok, tok), applied=pj.TOKEN_STAGE
    )
)


@jax.jit
def loss_of(encoding, key):
    x, tok = jnp.zeros((1, 2, 8)), pj.Tokens.of(length=2)  # neither is read
    return encoding.auxiliary_loss(x, tok, key=key)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# The encoder.


def digits(case):
    """The digits, which are read back as the positions and padded where nothing is written."""
    pos = jnp.array(case['position'])
    read = seqpe_digits(pos, case['digits'])
    assert seqpe_positions(read, len(pos)).tolist() == case['position']
    count = sum(len(str(p)) for p in case['position'])
    assert (~seqpe_padding(read, len(pos))).sum() == count
    return read


def contrastive_loss(label):
    pivot, candidates = jnp.ones((1, 1)), jnp.log(jnp.array([[[3.0], [1.0], [1.0]]]))
    return losses.seqpe_contrastive_loss(pivot, candidates, jnp.array([label]))


def transfer_loss(heads):
    """The loss of one head, or of two of which the second is equal to the teacher's."""
    student = jnp.array([[np.log(3) ** 0.5], [0.0]])
    pad = lambda a: jnp.pad(a, ((0, 0), (0, heads - 1)))
    return losses.seqpe_transfer_loss(pad(jnp.zeros_like(student)), pad(student), heads)


test_golden = golden_suite('seqpe', rtol=1e-6, atol=1e-6) | {
    'digits.*.read': (digits, {}),
    'contrastive.nearest_first': lambda _: contrastive_loss(0),
    'contrastive.nearest_last': lambda _: contrastive_loss(2),
    'transfer.one_head': lambda _: transfer_loss(1),
    'transfer.with_an_equal_second_head': lambda _: transfer_loss(2),
}


def numpy_encoder(encoder, digits, heads, causal, mask_padding):
    """The vector of one position, float64, from the description of the encoder."""
    w = {name: np.asarray(value, np.float64) for name, value in _arrays(encoder).items()}
    parts, n = encoder.components, len(digits) // encoder.components
    x = np.stack([w['digit'][c] + w['place'][i] for i, c in enumerate(digits)] + [w['mark']])
    if parts > 1:
        for i in range(len(digits)):
            x[i] += w['axis'][i // n]
    padding = np.zeros(len(x), bool)
    for part in range(parts):
        for i in range(n - 1):
            padding[part * n + i] = not any(digits[part * n : part * n + i + 1])
    t, width = len(x), x.shape[1] // heads

    def norm(a, name, layer=...):
        centred = a - a.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(a.var(-1, keepdims=True) + 1e-5)
        return scaled * w[name][layer] + w[f'{name}_bias'][layer]

    for layer in range(len(w['qkv'])):
        linear = lambda a, name: a @ w[name][layer] + w[f'{name}_bias'][layer]
        q, k, v = np.split(linear(norm(x, 'norm_1', layer), 'qkv'), 3, axis=-1)
        out = np.zeros_like(x)
        seen = np.tri(t, dtype=bool) | (not causal)
        seen = (seen & ~(padding & mask_padding)) | np.eye(t, dtype=bool)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            s = np.where(seen, q[:, own] @ k[:, own].T / width**0.5, -np.inf)
            p = np.exp(s - s.max(-1, keepdims=True))
            out[:, own] = p / p.sum(-1, keepdims=True) @ v[:, own]
        x = x + linear(out, 'out')
        h = linear(norm(x, 'norm_2', layer), 'up')
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, 'down')
    return norm(x[-1], 'norm') @ w['final'] + w['final_bias']


def _arrays(module):
    return nnx.to_pure_dict(nnx.state(module))


@pytest.mark.full
@pytest.mark.parametrize(
    'components, causal, mask_padding', [(1, True, False), (2, True, True), (2, False, False)]
)
def test_the_encoder_equals_numpy(components, causal, mask_padding):
    encoder = moved(SeqPEEncoder(8, 3, components, 2, std=0.3, rngs=nnx.Rngs(1)), scale=0.1)
    pos = jnp.array([[0, 999], [12, 305]])[:, :components]
    digits = seqpe_digits(pos, 3)
    run = jax.jit(lambda encoder: encoder(digits, 2, causal=causal, mask_padding=mask_padding))
    out = run(encoder)
    for own, row in zip(digits.tolist(), out):
        close(row, numpy_encoder(encoder, own, 2, causal, mask_padding), 1e-5)


@pytest.mark.full
def test_a_position_has_one_vector_in_any_batch():
    encoding = make('use="input_add", temperature=2.0')
    many = np.asarray(vectors(encoding, np.array([[[3], [998], [7]], [[998], [3], [3]]])))
    close(many[0, 1], many[1, 0], 1e-6)
    close(many[0, 0], vectors(encoding, np.array([3])), 1e-6)
    assert np.abs(many[0, 0] - many[0, 2]).max() > 1e-3
    plain = changed(encoding, temperature=1.0)
    close(vectors(plain, np.array([3])), 2 * many[0, 0], 1e-6)


def changed(encoding, **changes):
    """A copy with other attributes."""
    encoding = nnx.clone(encoding)
    for name, value in changes.items():
        setattr(encoding, name, value)
    return encoding


# The four uses.


@pytest.mark.full
@pytest.mark.parametrize('use', USES[:3])
def test_the_logits_are_those_of_the_equation(use):
    encoding = make(f'use="{use}", scale=0.5')
    tok = placed(encoding, pj.Tokens.of(positions=[[3, 999, 40], [0, 1, 2]]))
    q, k, v = draw(0, 2, 3, 4, 4), draw(1, 2, 3, 2, 4), draw(2, 2, 3, 2, 4)
    out = attended(encoding, q, k, v, tok)

    e = np.asarray(vectors(encoding, np.asarray(tok.pos)[..., None]), np.float64)
    own = {name: np.asarray(a) for name, a in _arrays(encoding).items() if name != 'encoder'}
    product = lambda name: np.einsum('bld,dnh->blnh', e, own[name])
    pq, pk = product('query') + own['query_bias'], product('key') + own['key_bias']
    wide = lambda a: np.repeat(np.asarray(a, np.float64), 2, axis=2)  # two query heads a key head
    k, pk, v = wide(k), wide(pk), wide(v)
    if use == 'attn_scalar':  # heads of width 2 H, with the scale of H
        q, k = np.concatenate([q, 0.5 * pq], -1), np.concatenate([k, pk], -1)
    elif use == 'attn_mul':
        q, k = q * pq, k * pk
    else:
        q, k = q + pq, k + pk
    s = np.einsum('btnh,bsnh->bnts', q, k) / 2
    p = np.exp(s - s.max(-1, keepdims=True))
    close(out, np.einsum('bnts,bsnh->btnh', p / p.sum(-1, keepdims=True), v))


@pytest.mark.full
def test_without_weights_of_pe_the_scalar_form_is_nope():
    encoding = nnx.clone(make())
    for name in ('query', 'key', 'query_bias', 'key_bias'):
        turned_off(getattr(encoding, name))
    arguments = draw(0, 1, 5, 4, 4), draw(1, 1, 5, 2, 4), draw(2, 1, 5, 2, 4)
    tok = placed(encoding, pj.Tokens.of(length=5))
    out = attended(encoding, *arguments, tok)
    np.testing.assert_array_equal(out, attended(pj.make('nope()'), *arguments, tok))


@pytest.mark.full
def test_input_add_adds_the_vector_once_and_leaves_padding():
    encoding = make('use="input_add"')
    tok = pj.Tokens.of(positions=[[5, 6]], valid=[[True, False]])
    x = draw(0, 1, 2, 8)
    read = placed(encoding, tok)
    out = np.asarray(encoding.embed(jnp.asarray(x), read))
    close(out[0, 0], x[0, 0] + vectors(encoding, np.array([5])))
    np.testing.assert_array_equal(out[0, 1], x[0, 1])
    with pytest.raises(ValueError, match='token vectors of width 8, got 6'):
        encoding.embed(jnp.asarray(x[..., :6]), read)


@pytest.mark.parametrize('use, door', zip(USES, ('logits', 'project', 'project', 'embed')))
def test_only_the_doors_of_the_use_are_open(use, door):
    opened = lambda encoding: {name for name in (*DOORS, *CAPABILITIES) if encoding.opens(name)}
    assert opened(make(f'use="{use}"')) == {'place', door, 'auxiliary_loss'}
    quiet = make(f'use="{use}", contrastive=0.0, transfer=0.0')
    assert opened(quiet) == {'place', door}


def in_pieces(layer, x, cache, cuts):
    out = []
    for piece in np.split(x, cuts, axis=1):
        read, cache = step(layer, piece, cache)
        out.append(read)
    return np.concatenate(out, axis=1)


@pytest.mark.full
@pytest.mark.parametrize('use', USES)
def test_decoding_equals_the_whole_pass(use):
    spec = f'seqpe(use="{use}", max_pos=100, components=2, temperature=4.0)'
    layer = moved(
        pj.Attention(spec, width=8, heads=4, kv_heads=2, train_len=8, rngs=nnx.Rngs(0)), scale=0.2
    )
    pos = np.array([[0, 0, 1, 2, 3, 4], [90, 91, 92, 93, 94, 95]])
    positions = np.stack([pos, 99 - pos], axis=-1)
    valid = [[False, True, True, True, True, True], [True] * 6]
    tok, x = pj.Tokens.of(positions=positions, valid=valid), draw(3, 2, 6, 8)
    expected, cache = np.asarray(whole(layer, x, tok)), layer.start(2, 6, tok)
    out = in_pieces(layer, x, cache, (3, 4))
    close(out[np.array(valid)], expected[np.array(valid)])
    other = dataclasses.replace(tok, pos=tok.pos[:, ::-1])
    assert np.abs(expected - whole(layer, x, other))[1].max() > 1e-4  # positions matter


@pytest.mark.full
@pytest.mark.parametrize('second', ['path(rank=4)', 'cope()'])
def test_a_chain_decodes_too(second):
    """`path` rewrites cached keys beside the vectors that `place` left for all of them."""
    spec = f'seqpe(max_pos=100, std=0.1) | {second}'
    layer = pj.Attention(spec, width=8, heads=4, train_len=8, rngs=nnx.Rngs(0))
    x = draw(3, 2, 5, 8)
    close(in_pieces(layer, x, layer.start(2, 5), range(1, 5)), whole(layer, x))


# The losses.


@pytest.mark.full
def test_transfer_loss_is_zero_up_to_a_rotation_of_every_head():
    teacher = draw(0, 5, 2, 3)
    turn = jnp.linalg.qr(draw(1, 2, 3, 3))[0]
    student = jnp.einsum('inh,nhg->ing', teacher, turn).reshape(5, 6)
    of = lambda student: losses.seqpe_transfer_loss(teacher.reshape(5, 6), student, 2)
    assert abs(of(student)) < 1e-6
    assert of(student[:, ::-1]) > 1e-3  # one rotation for both heads does not do
    across = teacher.reshape(5, 6) @ jnp.linalg.qr(draw(2, 6, 6))[0]
    assert of(across) > 1e-3
    gradients = jax.grad(lambda t, s: losses.seqpe_transfer_loss(t, s, 2), argnums=(0, 1))(
        teacher.reshape(5, 6), student + 0.1
    )
    assert not gradients[0].any() and np.abs(gradients[1]).max() > 1e-3


@pytest.mark.full
def test_the_loss_of_an_encoder_without_output():
    """Equal vectors: L_ct = ln 32 whatever is drawn, and L_tr = 0."""
    encoding = nnx.clone(make('contrastive=0.5, transfer=3.0, offsets=8'))
    for name in ('final', 'final_bias'):
        turned_off(getattr(encoding.encoder, name))
    close(auxiliary(encoding), 0.5 * GOLDEN['contrastive']['equal_of_32'], 1e-6)


@pytest.mark.full
def test_the_loss_is_the_weighted_sum_and_a_shifted_step_has_no_transfer():
    encoding = make('shift=0.0, dropout=0.0')
    sum_of = lambda **weights: auxiliary(changed(encoding, **weights))
    both = sum_of(contrastive=0.1, transfer=0.3)
    one, other = sum_of(contrastive=1.0, transfer=0.0), sum_of(contrastive=0.0, transfer=1.0)
    assert one > 0.1 and other > 1e-3
    close(both, 0.1 * one + 0.3 * other, 1e-5)
    assert sum_of(contrastive=0.0, transfer=1.0, shift=1.0) == 0
    close(sum_of(contrastive=1.0, transfer=1.0, shift=1.0), one, 1e-6)


def test_the_term_of_a_chain_is_the_sum_of_its_parts():
    class Two(Encoding):
        def auxiliary_loss(self, x, tok, *, key):
            return x.sum() + jax.random.uniform(key)

    x, key = jnp.ones((1, 2, 3)), jax.random.key(0)
    pair = pj.chain(Two(), pj.make('nope()'), Two())
    expected = 12 + sum(jax.random.uniform(jax.random.fold_in(key, n)) for n in (0, 2))
    assert pair.opens('auxiliary_loss') and not pj.make('nope()').opens('auxiliary_loss')
    close(pair.auxiliary_loss(x, None, key=key), expected, 1e-6)
    with pytest.raises(ValueError, match="Two opens 'auxiliary_loss', which heads share"):
        PerHead(Two(), pj.make('nope()'), 1, heads=2, kv_heads=2)


@pytest.mark.full
def test_candidates():
    """None is the pivot; edits are farther than the nearest of the others; the other kind lies in
    one range.
    """
    count, max_pos = 32, 20000
    pivots = jax.random.randint(jax.random.key(1), (400, 1), 0, max_pos)
    drawn = jax.jit(jax.vmap(lambda k, p: losses.seqpe_candidates(k, p, count, max_pos, 5)))(
        jax.random.split(jax.random.key(2), 400), pivots
    )
    drawn, pivots = np.asarray(drawn)[..., 0], np.asarray(pivots)
    assert drawn.shape == (400, count) and drawn.min() >= 0 and drawn.max() < max_pos
    assert (drawn != pivots).all()
    ranges = drawn.max(1) - drawn.min(1)
    close_by = ranges < 2000  # 32 uniform ones span less with a probability of 1e-30
    assert abs(close_by.mean() - 0.6) < 0.1
    assert ranges[close_by].max() < 256 and np.median(ranges[close_by]) > 200
    distances = np.abs(drawn - pivots)[~close_by]
    same_digits = lambda a, b: sum(x == y for x, y in zip(f'{a:05}', f'{b:05}'))
    alike = np.vectorize(same_digits)(drawn, pivots)[~close_by]
    assert alike[:, 24:].mean() > 1.5 * alike[:, :24].mean()  # edits leave digits where they are
    edited = alike[:, 24:] >= 3
    farther = distances[:, 24:] > distances[:, :24].min(1, keepdims=True)
    assert edited.sum() > 300 and farther[edited].mean() > 0.97


@pytest.mark.full
def test_edits_reach_every_kind():
    digits = jnp.array([0, 0, 5, 6, 7])
    edited = jax.jit(jax.vmap(losses.seqpe_edited, (0, None)))(
        jax.random.split(jax.random.key(0), 3000), digits
    )
    found = {''.join(map(str, row)) for row in np.asarray(edited).tolist()}
    # removed, inserted, exchanged, replaced, and several of them
    assert {'00056', '00057', '00567', '05671', '05267', '00765', '00569', '00076'} <= found
    assert np.asarray(edited).min() >= 0 and np.asarray(edited).max() <= 9


@pytest.mark.full
def test_windows():
    offsets, far = losses.seqpe_windows(jax.random.key(0), 64, 2, 100, 8, 12)
    starts = far - offsets
    assert offsets.shape == (64, 8, 2) and (starts == starts[:, :1]).all()  # windows of 4 x 4
    assert offsets.min() == 0 and offsets.max() == 3
    assert all(len(set(map(tuple, own))) == 8 for own in offsets.tolist())
    assert starts.min() >= 1 and starts.max() < 96 and starts.max() > 85
    assert losses.seqpe_windows(jax.random.key(0), 2, 1, 100, 99, 12).shape == (2, 2, 12, 1)


@pytest.mark.full
def test_training_makes_the_nearest_position_the_most_alike():
    """A claim of the paper: distances of vectors learn to follow those of positions, also of
    positions far beyond the trained length.
    """
    sizes = dict(SIZES, heads=2, kv_heads=2, head_dim=8, model_dim=16)
    spec = 'seqpe(max_pos=1000, dropout=0.0, shift=0.0, contrastive=1.0, transfer=1.0, std=0.1)'
    encoding = pj.make(spec, rngs=nnx.Rngs(0), **sizes)
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    objective = lambda params, key: nnx.merge(graphdef, params, rest).auxiliary_loss(
        None, None, key=key
    )
    _, curve = descend(objective, params, steps=150, rate=3e-3)
    assert np.isfinite(curve).all()
    assert curve[:5].mean() > 3.3 and curve[-40:].mean() < 2.6


# The training rule of `place`.


@pytest.mark.full
def test_a_shifted_step_reads_later_positions():
    encoding = make('use="input_add", shift=1.0, dropout=0.0')
    tok = pj.Tokens.of(positions=[[2, 0, 1]], valid=[[True, True, True]])
    every = np.asarray(vectors(encoding, np.arange(1000)[:, None]))
    starts = []
    for seed in range(5):
        shifted = placed(encoding, tok, jax.random.key(seed))
        read = np.asarray(shifted.feats['seqpe'])[0, :, 0]
        nearest = np.abs(every[None] - read[:, None]).max(-1).argmin(-1)
        starts.append(int(nearest[1]))
        assert nearest.tolist() == [starts[-1] + p for p in (2, 0, 1)]
        np.testing.assert_array_equal(shifted.pos, tok.pos)
    assert len(set(starts)) == 5 and 0 <= min(starts) and max(starts) < 998
    full = pj.Tokens.of(positions=[[0, 999]])  # no room
    read = placed(encoding, full, jax.random.key(0)).feats['seqpe'][0, :, 0]
    close(read, every[[0, 999]])


@pytest.mark.full
def test_shifts_are_as_rare_as_asked_and_evaluation_has_none():
    encoding = make('use="input_add", shift=0.1, dropout=0.0')
    tok = pj.Tokens.of(positions=[[0]])
    vector = np.asarray(vectors(encoding, np.array([0])))
    read = jax.jit(jax.vmap(lambda key: encoding.place(tok, key=key).feats['seqpe'][0, 0, 0]))(
        jax.random.split(jax.random.key(0), 600)
    )
    shifted = np.abs(read - vector).max(-1) > 1e-4
    assert abs(shifted.mean() - 0.1) < 0.04  # three standard deviations
    close(placed(encoding, tok).feats['seqpe'][0, 0, 0], vector, 1e-6)
    # Where the positions are shifted the transfer loss is left out.
    quiet = changed(encoding, contrastive=0.0, transfer=1.0, draws=1, offsets=3)
    terms = jax.jit(jax.vmap(lambda key: quiet.auxiliary_loss(None, None, key=key)))(
        jax.random.split(jax.random.key(0), 600)
    )
    np.testing.assert_array_equal(terms == 0, shifted)


@pytest.mark.full
def test_dropout_follows_the_key_alone():
    encoding = make('use="input_add", shift=0.0, dropout=0.5')
    tok = pj.Tokens.of(positions=[[4]])
    read = lambda seed: placed(encoding, tok, jax.random.key(seed)).feats['seqpe']
    np.testing.assert_array_equal(read(0), read(0))
    assert np.abs(read(0) - read(1)).max() > 1e-3
    close(placed(encoding, tok).feats['seqpe'][0, 0, 0], vectors(encoding, np.array([4])), 1e-6)


# Refused arguments and positions.


def test_a_small_range_needs_no_window_without_the_transfer_loss():
    assert pj.make('seqpe(max_pos=15, transfer=0.0)', rngs=nnx.Rngs(0), **SIZES).digits == 2


@pytest.mark.parametrize(
    'components, positions, message',
    [
        (1, [[0, 1000]], r'position 1000 is not in 0 \.\. 999; .* a larger max_pos'),
        (1, [[-1, 5]], r'position -1 is not in 0 \.\. 999'),
        (2, [[[0, 1000]]], r'position 1000 is not in 0 \.\. 999'),
        (2, [[0, 1]], r'needs integer positions \[B, L, 2\], got int32 \(1, 2\)'),
        (1, [[0.5]], r'needs integer positions \[B, L, 1\], got float32'),
    ],
)
def test_wrong_positions_are_refused(components, positions, message):
    encoding = make(f'components={components}')
    with pytest.raises(ValueError, match=message):
        encoding.place(pj.Tokens.of(positions=positions))


@pytest.mark.full
def test_traced_positions_outside_give_nan():
    encoding = make('use="input_add"')
    tok = pj.Tokens.of(positions=[[1000, 999, 2000]], valid=[[True, True, False]])
    read = jax.jit(encoding.place)(tok).feats['seqpe'][0, :, 0]
    assert np.isnan(read[0]).all() and np.isfinite(read[1:]).all()
