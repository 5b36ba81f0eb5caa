"""V2PE: the sheet's ids, a scan token by token, the draw, padding, packing, decoding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.methods.v2pe import DELTAS, v2pe_ids
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of, read
from tests.refusals import refused

GOLDEN = golden('v2pe')['values']
IMAGES = [0, 0, *[1] * 5, 0, 0, *[2] * 9, *[3] * 2, 0, 4, 0, 0]


def tokens(image, **known):
    """Tokens whose positions have two components; the count is that of real tokens."""
    image = np.atleast_2d(image)
    counted = pj.Tokens.of(length=image.shape[1], **known)
    count = np.broadcast_to(counted.pos, image.shape)
    return dataclasses.replace(counted, pos=jnp.asarray(np.stack([count, image], -1)))


def placed(image, delta=0.25, key=None, **known):
    """The ids of a row."""
    key = None if key is None else jax.random.key(key)
    return np.asarray(pj.make(f'v2pe(delta={delta})').place(tokens(image, **known), key=key).pos)[0]


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


def id_of(number):
    def row(case):
        ids = v2pe_ids(jnp.array([[0, 0] + [1] * case['visual'] + [0, 0]]), case['delta'])[0]
        assert ids.dtype == jnp.float32 and ids[:2].tolist() == [0, 1]
        return ids[number]

    return row


PLACES = {'first': 2, 'last': -3, 'end': -2, 'after': -1}
test_golden = golden_suite(
    'v2pe', {f'cases.*.{name}': id_of(number) for name, number in PLACES.items()}
)


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
    ids = placed(IMAGES, delta=1.0)
    np.testing.assert_array_equal(ids, np.arange(len(IMAGES)))


@pytest.mark.full_but_one
@pytest.mark.parametrize('key', [None, 3])
def test_text_keeps_its_positions(key):
    tok = pj.Tokens.of(length=5)
    draw = None if key is None else jax.random.key(key)
    assert pj.make('v2pe(delta=0.25)').place(tok, key=draw) is tok
    np.testing.assert_array_equal(placed([0] * 5, key=key), range(5))


@pytest.mark.full
def test_training_draws_each_image_its_step_from_the_nine():
    names = 'choices', 'largest_delta', 'smallest_delta'
    assert (len(DELTAS), DELTAS[0], DELTAS[-1]) == tuple(GOLDEN[name] for name in names)
    rows, image = 3000, np.array([0, 1, 1, 0, 0, 2, 2, 2, 0])
    encoding, tok = pj.make('v2pe(delta=1.0)'), tokens(np.tile(image, (rows, 1)))
    ids = np.asarray(encoding.place(tok, key=jax.random.key(0)).pos)
    np.testing.assert_array_equal(ids, encoding.place(tok, key=jax.random.key(0)).pos)
    one, two = ids[:, 2] - ids[:, 1], ids[:, 7] - ids[:, 6]
    for row in range(50):
        np.testing.assert_array_equal(ids[row], scanned(image, {1: one[row], 2: two[row]}))
    together = np.array([[((one == a) & (two == b)).sum() for a in DELTAS] for b in DELTAS]) / rows
    assert together.sum() == 1
    # Uniform, and independent.
    np.testing.assert_allclose(together, 1 / 81, atol=4 * (1 / 81 / rows) ** 0.5)


@pytest.mark.full
def test_padding_on_either_side_does_not_shift():
    pad, length = [3] * 4, len(IMAGES)  # what stands in padding does not matter
    left = placed(pad + IMAGES, valid=[[False] * 4 + [True] * length])
    right = placed(IMAGES + pad, valid=[[True] * length + [False] * 4])
    np.testing.assert_array_equal(left[4:], placed(IMAGES))
    np.testing.assert_array_equal(right[:length], placed(IMAGES))


@pytest.mark.full
def test_packed_documents_start_anew():
    cut, alone = 15, placed(IMAGES)  # the first document ends with an image
    packed = placed(IMAGES[:cut] + IMAGES, segment=[[0] * cut + [1] * len(IMAGES)])
    np.testing.assert_array_equal(packed, [*alone[:cut], *alone])


@pytest.mark.parametrize('key', [None, 5])
def test_ids_do_not_depend_on_what_follows(key):
    whole = placed(IMAGES, key=key)
    for cut in (4, 12, 19):
        other = IMAGES[:cut] + [9] * (len(IMAGES) - cut)
        np.testing.assert_array_equal(placed(other, key=key)[:cut], whole[:cut])


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
def test_decoding_equals_the_whole_pass():
    model = model_of('v2pe(delta=0.125) | rope()', train_len=16)
    image = [0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 0]
    tok, prompt = tokens(image), jnp.array([[3, 1, 4, 1, 5]])
    out = generate(model, prompt, max_new_tokens=7, positions=tok.pos, temperature=0.0)
    logits = read(model, out, tok)
    np.testing.assert_array_equal(out[:, 5:], logits[:, 4:-1].argmax(-1))
    assert np.abs(logits - read(model, out)).max() > 1e-3  # the ids do matter


def of_shape(*shape, dtype=int):
    return lambda: pj.make('v2pe(delta=0.5)').place(pj.Tokens.of(positions=np.zeros(shape, dtype)))


FIRST = 'a document of row {} begins with an image'
test_wrong_positions = refused() | {
    r'integers \[B, L, 2\], count and image number, got int32 \(1, 4, 3\)': of_shape(1, 4, 3),
    r'got float32 \(1, 4, 2\)': of_shape(1, 4, 2, dtype=np.float32),
    'image number -1; images count from 1': lambda: placed([0, -1, 0]),
    FIRST.format(1): lambda: placed([[0, 1, 1], [2, 2, 0]]),
    FIRST.format(0): lambda: placed([[0, 1, 2, 2]], segment=[[0, 0, 1, 1]]),
}
