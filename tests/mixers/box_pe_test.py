"""RecursiveDet: centerness, features of boxes, attention and dynamic convolution by hand, their
symmetries, and a detector whose loss falls.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evidence.experiments import box_pe
from evidence.experiments.box_pe import train
from posenc_jax.lab.tasks.rectangles import rectangles
from posenc_jax.mixers import box_features as module
from posenc_jax.mixers.box_pe import BoxLayer, moved_boxes
from posenc_jax.mixers.set_prediction import Detector, assign, overlap
from tests.golden_files import golden
from tests.mixers.small import assert_all_learn

GOLDEN = golden('box_pe')['values']


def test_centerness_by_hand_and_under_flips():
    golden, cen = GOLDEN['centerness'], module.centerness(7)
    np.testing.assert_allclose(
        [cen[3, 3], cen[0, 0], cen[0, 3]],
        [golden['centre'], golden['corner'], golden['top_middle']],
        rtol=1e-6,
    )
    for other in (cen[::-1], cen[:, ::-1], cen.T):
        np.testing.assert_array_equal(other, cen)
    assert (module.centerness(1) == 1).all() and module.centerness(4).max() < 1


def test_sine_features_by_hand():
    golden = GOLDEN['sines']
    found = module.sine_features(jnp.array([0.0, 0.125]), golden['features'])
    np.testing.assert_allclose(found, [golden['zero'], golden['eighth']], atol=1e-7)
    direct = np.float64(0.3) * 2 * np.pi / 10000 ** (2 * (np.arange(128) // 2) / 128)
    direct = np.where(np.arange(128) % 2, np.cos(direct), np.sin(direct))
    np.testing.assert_allclose(module.sine_features(jnp.float32(0.3)), direct, atol=1e-6)


def test_the_parts_of_a_box_are_y_x_w_h():
    box = jnp.array([0.1, 0.2, 0.2, 0.4])
    parts = module.box_features(box).reshape(4, 128)
    for part, value in zip(parts, (0.2, 0.1, 0.2, 0.4)):
        np.testing.assert_allclose(part, module.sine_features(jnp.float32(value)), atol=1e-6)
    centre = module.sine_map(5, 10)[1, 0]  # the cell (y, x) = (0.3, 0.05)
    both = jnp.concatenate([module.sine_features(jnp.float32(value)) for value in (0.3, 0.05)])
    np.testing.assert_allclose(centre, both, atol=1e-6)


def test_kernel_position_and_term_by_hand():
    golden = GOLDEN['kernel']
    pe, box, gate, ref = (jnp.array(golden[name]) for name in ('pe', 'box', 'gate', 'ref'))
    found = module.kernel_positions(pe, box, gate, ref, jnp.full((1, 1), golden['cen']))
    np.testing.assert_allclose(found, [golden['position']], rtol=1e-6)
    w_q, w_k = jax.random.normal(jax.random.key(0), (2, 4, 3))
    feature = jax.random.normal(jax.random.key(1), (5, 4))
    direct = [(f @ w_q) @ (found[0] @ w_k) for f in feature]
    kernel = jnp.tile(found, (5, 1))
    np.testing.assert_allclose(module.position_term(feature, kernel, w_q, w_k), direct, rtol=1e-5)


def test_convolution_by_hand_and_as_joined_channels():
    golden = {name: jnp.array(array) for name, array in GOLDEN['convolution'].items()}
    found = module.dynamic_convolution(golden['roi'], golden['kernel'], golden['term'])
    np.testing.assert_allclose(found, golden['out'])
    joined = jnp.concatenate([golden['roi'], golden['term'][:, None]], axis=1)
    shared_row = jnp.concatenate([golden['kernel'], jnp.ones((1, 3))])
    np.testing.assert_allclose(module.dynamic_convolution(joined, shared_row), golden['out'])


def test_attention_by_hand_reads_positions_in_queries_and_keys_alone():
    golden, one = GOLDEN['attention'], jnp.ones((1, 1, 1))
    column = lambda name: jnp.array(golden[name])[None, :, None]
    maps = dict(q=one, k=one, v=one)
    found = module.proposal_attention(column('f'), column('e'), maps, maps)[0, :, 0, 0]
    np.testing.assert_allclose(found, [golden['first'], golden['second']], rtol=1e-6)
    silent = dict(q=0 * one, k=0 * one, v=one)
    found = module.proposal_attention(column('f'), column('e'), silent, maps)[0, 0, 0, 0]
    assert found == pytest.approx(1.5)  # e = 0 of the first query: the mean of f, without e


def test_samples_of_a_plane_are_its_values():
    """Bilinear interpolation is exact on a plane; y and x are not exchanged."""
    place = (np.arange(20) + 0.5) / 20
    image = jnp.asarray(2 * place[:, None] + 5 * place[None], jnp.float32)[..., None]
    box = jnp.array([[0.5, 0.4, 0.6, 0.3]])
    cells = (np.arange(3) + 0.5) / 3 - 0.5
    plane = 2 * (0.4 + 0.3 * cells[:, None]) + 5 * (0.5 + 0.6 * cells)
    np.testing.assert_allclose(module.roi_samples(image, box, 3)[0, :, 0], plane.ravel(), rtol=1e-5)


def assert_in_the_image(boxes):
    module.check_boxes(boxes)
    low, high = (boxes[..., :2] + side * boxes[..., 2:] / 2 for side in (-1, 1))
    assert low.min() > -1e-5 and high.max() < 1 + 1e-5


def test_moved_boxes_stay_in_the_image():
    rng = np.random.default_rng(0)
    boxes = rectangles(rng, 16).boxes.reshape(-1, 4)
    np.testing.assert_allclose(moved_boxes(boxes, jnp.zeros_like(boxes)), boxes, atol=2e-4)
    assert_in_the_image(
        moved_boxes(boxes, jnp.asarray(rng.normal(size=boxes.shape) * 4, jnp.float32))
    )


REACHING = jnp.array([[[0.1, 0.5, 0.5, 0.5], [0.75, 0.875, 0.25, 0.5], [1.0, 0.0, 1.0, 1.0]]])


def test_boxes_that_reach_out_of_the_image_are_boxes():
    """Proposals of four sigmoids do; their centres and sizes lie in [0, 1]."""
    found = module.box_features(REACHING).reshape(1, 3, 4, 128)
    for part, number in enumerate((1, 0, 2, 3)):
        np.testing.assert_array_equal(
            found[:, :, part], module.sine_features(REACHING[..., number])
        )
    nearest = [[[0.25, 0.5, 0.5, 0.5], [0.75, 0.75, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]]]
    np.testing.assert_allclose(moved_boxes(REACHING, jnp.zeros((1, 3, 4))), nearest, atol=2e-4)


@pytest.mark.full
def test_a_layer_takes_boxes_that_reach_out_of_the_image():
    out = layer_of()(F, REACHING, IMAGE)
    assert all(np.isfinite(part).all() for part in out)
    assert_in_the_image(out.boxes)


def layer_of(**options):
    return BoxLayer(8, heads=2, classes=3, kernel=4, cells=3, hidden=8, rngs=nnx.Rngs(0), **options)


BOXES = jnp.array([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.75, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0]]])
F = jax.random.normal(jax.random.key(1), (1, 3, 8))
IMAGE = jax.random.normal(jax.random.key(2), (1, 6, 6, 8))


@pytest.mark.full
@pytest.mark.parametrize('acts', [dict(), dict(convolution=False), dict(attention=False)], ids=str)
def test_every_variable_has_a_gradient_and_proposals_are_a_set(acts):
    layer = layer_of(**acts)

    @jax.jit
    def run(layer, f, boxes):
        out, pull = jax.vjp(lambda layer: layer(f, boxes, IMAGE), layer)
        return out, pull(jax.tree.map(lambda a: jnp.cos(7 * a), out))[0]

    out, gradient = run(layer, F, BOXES)
    assert_all_learn(nnx.state(gradient, nnx.Param), 1e-6)
    order = np.array([2, 0, 1])
    moved = run(layer, F[:, order], BOXES[:, order])[0]
    for a, b in zip(out, moved):
        np.testing.assert_allclose(a[:, order], b, atol=2e-5)


@pytest.mark.full
def test_boxes_matter_beyond_their_pixels_only_with_encodings():
    """On a constant image every box has the same pixels."""
    flat = jnp.ones_like(IMAGE)
    run = jax.jit(lambda layer, boxes: layer(F, boxes, flat).logits)
    gap = lambda layer: np.abs(run(layer, BOXES) - run(layer, BOXES[:, ::-1])).max()
    plain = layer_of(attention=False, convolution=False)
    assert gap(plain) < 1e-5
    assert gap(layer_of(attention=False)) > 1e-3 and gap(layer_of(convolution=False)) > 1e-3


def test_assignment_is_the_cheapest_of_all():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(5, 4, 3))
    real = np.arange(3) < np.array([[3], [2], [1], [3], [0]])
    found = assign(costs, real)
    for cost, kept, own in zip(costs, real, found):
        assert sorted(own[own >= 0]) == list(range(kept.sum()))
        best = min(
            sum(cost[n, g] for g, n in enumerate(chosen[: kept.sum()]))
            for chosen in np.array(np.meshgrid(*[np.arange(4)] * 3)).reshape(3, -1).T
            if len(set(chosen)) == 3
        )
        assert sum(cost[n, g] for n, g in enumerate(own) if g >= 0) == pytest.approx(best)


def test_pictures_show_their_boxes():
    found = rectangles(np.random.default_rng(3), 50, noise=0.0, most=4)
    assert_in_the_image(found.boxes)
    assert set(found.kinds[found.real]) == {0, 1, 2} and found.real[:, 0].all()
    for image, boxes, kinds, real in zip(*found):
        inside = np.zeros((32, 32), bool)
        for (cx, cy, w, h), kind in zip(boxes[real] * 32, kinds[real]):
            rows = slice(round(cy - h / 2), round(cy + h / 2))
            columns = slice(round(cx - w / 2), round(cx + w / 2))
            own = image[rows, columns, 0]
            edge, middle = [(1, 1), (-1, -1), (1, 0)][kind]
            assert (own[[0, -1]] == edge).all() and (own[:, [0, -1]] == edge).all()
            assert (own[1:-1, 1:-1] == middle).all()
            inside[rows, columns] = True
        assert not image[~inside].any()


@pytest.mark.full
@pytest.mark.parametrize('shared', [True, False])
def test_the_loss_falls(shared):
    sizes = dict(classes=3, proposals=4, steps=2, width=8, heads=2, kernel=4, cells=3, hidden=8)
    detector = Detector(**sizes, shared=shared, rngs=nnx.Rngs(0))
    trained, losses = train(detector, 0, steps=30, batch=4, rate=1e-2)
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])
    assert len(trained.layers) == (1 if shared else 2)
    image = rectangles(np.random.default_rng(0), 1).image
    assert_in_the_image(jax.jit(lambda model, image: model(image))(trained, image)[-1].boxes)


@pytest.mark.full
def test_the_sweep_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box_pe, 'TESTED', 4)
    small = dict(proposals=4, steps=2, width=8, heads=2, kernel=4, cells=3, hidden=8)
    monkeypatch.setattr(box_pe, 'SIZES', {**box_pe.SIZES, **small})
    arguments = ['--variants', 'unshared', '--seeds', '0', '--steps', '2', '--batch', '2']
    box_pe.PROGRAM.main([*arguments, '--workdir', str(tmp_path)])
    assert 'unshared, seed 0' in capsys.readouterr().out
    assert len((tmp_path / 'results.csv').read_text().splitlines()) == 3


def test_overlap_of_boxes():
    a = jnp.array([0.25, 0.25, 0.5, 0.5])
    assert float(overlap(a, a)) == pytest.approx(1.0)
    assert float(overlap(a, jnp.array([0.75, 0.75, 0.5, 0.5]))) == 0.0
