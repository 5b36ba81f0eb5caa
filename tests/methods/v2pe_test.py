"""V2PE: the sheet's ids, a scan token by token, the draw, padding, packing, decoding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.v2pe import DELTAS, v2pe_ids
from tests.golden_files import golden

GOLDEN = golden('v2pe')['values']
IMAGES = [0, 0, *[1] * 5, 0, 0, *[2] * 9, *[3] * 2, 0, 4, 0, 0]


def tokens(image, **known):
    """Tokens whose positions have two components; the count is that of real tokens."""
    image = np.atleast_2d(image)
    counted = pj.Tokens.of(length=image.shape[1], **known)
    count = np.broadcast_to(counted.pos, image.shape)
    return dataclasses.replace(counted, pos=jnp.asarray(np.stack([count, image], -1)))


def scanned(image, delta):
    """The rule as it is told: one token after the other. `delta` maps an image number to its
    step.
    """
    ids, last, number = [], -1.0, 0
    for n in image:
        if n != number:
            start, seen = math.ceil(last), 0
        if n:
            seen += 1
            last = start + seen * delta[n]
        else:
            last = math.ceil(last) + 1
        number = n
        ids.append(last)
    return ids


@pytest.mark.parametrize(
    'case', GOLDEN['cases'], ids=lambda case: f'{case["visual"]}-{case["delta"]}'
)
def test_golden_ids(case):
    ids = np.asarray(v2pe_ids(jnp.array([[0, 0] + [1] * case['visual'] + [0, 0]]), case['delta']))[
        0
    ]
    assert ids.dtype == np.float32
    assert ids[[0, 1, 2, -3, -2, -1]].tolist() == [
        0,
        1,
        case['first'],
        case['last'],
        case['end'],
        case['after'],
    ]


@pytest.mark.parametrize('delta', [*DELTAS, 0.3])
def test_it_is_the_scan_over_tokens(delta):
    ids = v2pe_ids(jnp.array([IMAGES]), delta)[0]
    np.testing.assert_allclose(ids, scanned(IMAGES, dict.fromkeys(IMAGES, delta)), rtol=1e-6)


def test_a_step_for_each_image():
    steps = {1: 0.5, 2: 1 / 256, 3: 1.0, 4: 0.125}
    delta = np.array([[steps.get(n, 7.0) for n in IMAGES]])
    np.testing.assert_array_equal(v2pe_ids(jnp.array([IMAGES]), delta)[0], scanned(IMAGES, steps))
    delta[0, 4:7] = 1.0  # only the first token of an image says
    np.testing.assert_array_equal(v2pe_ids(jnp.array([IMAGES]), delta)[0], scanned(IMAGES, steps))


def test_a_step_of_one_counts_tokens():
    np.testing.assert_array_equal(
        pj.make('v2pe(delta=1.0)').place(tokens(IMAGES)).pos[0], np.arange(len(IMAGES))
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('key', [None, 3])
def test_text_keeps_its_positions(key):
    encoding, key = pj.make('v2pe(delta=0.25)'), None if key is None else jax.random.key(key)
    tok = pj.Tokens.of(length=5)
    assert encoding.place(tok, key=key) is tok
    np.testing.assert_array_equal(encoding.place(tokens([0] * 5), key=key).pos, [[0, 1, 2, 3, 4]])


@pytest.mark.full
def test_training_draws_each_image_its_step_from_the_nine():
    assert (len(DELTAS), DELTAS[0], DELTAS[-1]) == (
        GOLDEN['choices'],
        GOLDEN['largest_delta'],
        GOLDEN['smallest_delta'],
    )
    rows, image = 3000, np.array([0, 1, 1, 0, 0, 2, 2, 2, 0])
    encoding, tok = pj.make('v2pe(delta=1.0)'), tokens(np.tile(image, (rows, 1)))
    ids = np.asarray(encoding.place(tok, key=jax.random.key(0)).pos)
    np.testing.assert_array_equal(ids, encoding.place(tok, key=jax.random.key(0)).pos)
    one, two = ids[:, 2] - ids[:, 1], ids[:, 7] - ids[:, 6]
    for row in range(50):
        np.testing.assert_array_equal(ids[row], scanned(image, {1: one[row], 2: two[row]}))
    together = np.array([[((one == a) & (two == b)).sum() for a in DELTAS] for b in DELTAS]) / rows
    assert together.sum() == 1
    np.testing.assert_allclose(
        together, 1 / 81, atol=4 * (1 / 81 / rows) ** 0.5
    )  # uniform, and independent


@pytest.mark.full
def test_padding_on_either_side_does_not_shift():
    alone = np.asarray(pj.make('v2pe(delta=0.25)').place(tokens(IMAGES)).pos)[0]
    pad, length = [3] * 4, len(IMAGES)  # what stands in padding does not matter
    for image, valid, real in (
        (pad + IMAGES, [False] * 4 + [True] * length, slice(4, None)),
        (IMAGES + pad, [True] * length + [False] * 4, slice(0, length)),
    ):
        placed = pj.make('v2pe(delta=0.25)').place(tokens(image, valid=[valid]))
        np.testing.assert_array_equal(placed.pos[0, real], alone)


@pytest.mark.full
def test_packed_documents_start_anew():
    alone = np.asarray(pj.make('v2pe(delta=0.25)').place(tokens(IMAGES)).pos)[0]
    ended_by_an_image = IMAGES[:15]
    packed = tokens(ended_by_an_image + IMAGES, segment=[[0] * 15 + [1] * len(IMAGES)])
    np.testing.assert_array_equal(
        pj.make('v2pe(delta=0.25)').place(packed).pos[0], [*alone[:15], *alone]
    )


@pytest.mark.parametrize('key', [None, 5])
def test_ids_do_not_depend_on_what_follows(key):
    encoding, key = pj.make('v2pe(delta=0.25)'), None if key is None else jax.random.key(key)
    whole = encoding.place(tokens(IMAGES), key=key).pos
    for cut in (4, 12, 19):
        other = IMAGES[:cut] + [9] * (len(IMAGES) - cut)
        np.testing.assert_array_equal(
            encoding.place(tokens(other), key=key).pos[:, :cut], whole[:, :cut]
        )


def test_adding_a_constant_to_the_count_adds_it_to_the_ids():
    tok, encoding = tokens(IMAGES), pj.make('v2pe(delta=0.125)')
    moved = dataclasses.replace(tok, pos=tok.pos + jnp.array([7, 0]))
    np.testing.assert_array_equal(encoding.place(moved).pos, encoding.place(tok).pos + 7)


@pytest.mark.full
def test_longer_inputs_stay_inside_the_trained_range():
    """The paper's claim: four times the images at a quarter of the step end where the trained input
    ended.
    """
    sequence = lambda images, size: [n for i in range(images) for n in [0, *[i + 1] * size, 0]]
    trained = v2pe_ids(jnp.array([sequence(3, 64)]), 0.25).max()
    longer = v2pe_ids(jnp.array([sequence(3, 256)]), 0.0625).max()
    assert longer == trained < 3 * 64


@pytest.mark.full
def test_bfloat16_activations_leave_ids_alone():
    image = [0] + [1] * 400 + [0]
    chained = pj.make('v2pe(delta=0.00390625) | rope()', head_dim=8)
    placed = chained.place(tokens(image))
    assert placed.pos.dtype == jnp.float32 and len(np.unique(placed.pos)) == len(image)
    q = jnp.ones((1, len(image), 1, 8), jnp.bfloat16)
    turned = chained.project(q, q, q, placed, placed)[0].astype(jnp.float32)
    exact = pj.make('rope()', head_dim=8).rotate(q.astype(jnp.float32), placed.pos)
    assert np.abs(turned - exact).max() < 2.0**-7


@pytest.mark.full
def test_tiles_and_their_gradients_at_fractional_ids():
    chained = pj.make('v2pe(delta=0.25) | rope() | alibi()', head_dim=8, heads=2, causal=True)
    tok, x = (
        chained.place(tokens(IMAGES)),
        jax.random.normal(jax.random.key(0), (1, len(IMAGES), 2, 8)),
    )
    loss = lambda x, **how: jnp.square(
        pj.attend(chained, *chained.project(x, x, x, tok, tok), **how, applied=pj.TOKEN_STAGE)
    ).sum()
    np.testing.assert_allclose(
        jax.grad(loss)(x, block=(4, 8)), jax.grad(loss)(x, implementation='dense'), atol=2e-5
    )


@pytest.mark.full
def test_decoding_equals_the_whole_pass():
    cfg = TransformerConfig(
        vocab_size=11,
        train_len=16,
        layers=2,
        width=16,
        heads=2,
        encoding='v2pe(delta=0.125) | rope()',
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    image = [0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 0]
    tok, prompt = tokens(image), jnp.array([[3, 1, 4, 1, 5]])
    out = generate(model, prompt, max_new_tokens=7, positions=tok.pos, temperature=0.0)
    logits = jax.jit(model)(out, tok)
    np.testing.assert_array_equal(out[:, 5:], logits[:, 4:-1].argmax(-1))
    assert np.abs(logits - jax.jit(model)(out)).max() > 1e-3  # the ids do matter


def test_wrong_input_says_what_is_wrong():
    for delta in (0.0, 1.5, -0.5):
        with pytest.raises(ValueError, match=f'delta must be positive and at most 1, got {delta}'):
            pj.make(f'v2pe(delta={delta})')
    place = pj.make('v2pe(delta=0.5)').place
    with pytest.raises(
        ValueError, match=r'integers \[B, L, 2\], count and image number, got int32 \(1, 4, 3\)'
    ):
        place(pj.Tokens.of(positions=np.zeros((1, 4, 3), int)))
    with pytest.raises(ValueError, match=r'got float32 \(1, 4, 2\)'):
        place(pj.Tokens.of(positions=np.zeros((1, 4, 2), np.float32)))
    with pytest.raises(ValueError, match='image number -1; images count from 1'):
        place(tokens([0, -1, 0]))
    with pytest.raises(ValueError, match='a document of row 1 begins with an image'):
        place(tokens([[0, 1, 1], [2, 2, 0]]))
    with pytest.raises(ValueError, match='a document of row 0 begins with an image'):
        place(tokens([[0, 1, 2, 2]], segment=[[0, 0, 1, 1]]))
