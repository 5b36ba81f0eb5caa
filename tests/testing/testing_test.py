"""Tests of `posenc_jax.testing.check`: what it reports, which line a broken encoding gets, and
wrong input. `contract_test.py` runs its laws on every encoding.
"""

import jax.numpy as jnp
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.products import heads_first
from posenc_jax.testing import LAWS, BrokenLaw, check
from posenc_jax.testing.__main__ import main


class MeanOfTheTile(pj.Encoding):
    """Takes the mean from the logits. Softmax does not see it in one tile. But each tile of keys
    has another mean, of later keys too.
    """

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s - s.mean(-1, keepdims=True), carry


class SumOfTheCall(pj.Encoding):
    """Subtracts the running sum of a feature, which starts anew in every call of `project`."""

    def project(self, q, k, v, tq, tk, x=None):
        total = jnp.cumsum(jnp.abs(x).astype(jnp.float32).mean(-1, keepdims=True), axis=1)
        return q, k, v, tq, tk.with_feats(total=total)

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s - heads_first(tk.feats['total'])[:, :, None], carry


class HidesADoor(pj.Encoding):
    """Has an attribute with the name of a door."""

    def __init__(self):
        self.rescale = 2.0


class GrowsWithThePosition(pj.Encoding):
    """Multiplies logits by the position of the key."""

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s * (1 + tk.pos[:, None, None] / 8), carry


class RootOfTheDistance(pj.Encoding):
    """Subtracts the root of a trained multiple of the distance, whose gradient at distance 0 is no
    number.
    """

    def __init__(self):
        self.scale = nnx.Param(jnp.array(1.0), axes=())

    def logits(self, s, q, k, tq, tk, seen, carry):
        distance = (tq.pos[:, :, None] - tk.pos[:, None])[:, None].astype(jnp.float32)
        return s - jnp.sqrt(self.scale[...] * jnp.abs(distance)), carry


@pytest.mark.parametrize(
    'encoding, promises, message',
    [
        (
            GrowsWithThePosition(),
            pj.Promises(relative=True),
            "breaks the law 'relative': the promise is relative=True, and the results differ by ",
        ),
        (
            HidesADoor(),
            None,
            "breaks the law 'shapes': an attribute of HidesADoor hides the door 'r",
        ),
        (MeanOfTheTile(), None, "breaks the law 'tiles': tiles and the whole differ by up to "),
        pytest.param(
            SumOfTheCall(),
            None,
            "breaks the law 'decoding': token 6 decoded with a cache and in one pass differ by up",
            marks=pytest.mark.full,
        ),
        pytest.param(
            RootOfTheDistance(),
            None,
            "breaks the law 'one_tile': gradients .*scale.* are not finite",
            marks=pytest.mark.full,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, pj.Encoding) else '',
)
def test_a_broken_encoding_gets_one_clear_line(encoding, promises, message):
    with pytest.raises(BrokenLaw, match=message) as error:
        check(encoding, promises=promises)
    assert str(error.value).startswith(type(encoding).__name__)
    assert '\n' not in str(error.value)


@pytest.mark.full
def test_the_report_names_the_laws_that_hold():
    report = check('rope()')
    names = {law.__name__ for law in LAWS}
    assert {*report.kept, *report.skipped} == names and len(report.kept) >= 24
    assert str(report).startswith(f'rope() opens project: {len(report.kept)} laws hold: shapes, ')
    # A chain of several Cards promises nothing, and a spec string with an option may promise more.
    assert check('rope() | alibi()').skipped['fused'] == 'no promises are stated'
    with pytest.raises(BrokenLaw, match="law 'needs_training': the promise is needs_training=Fals"):
        check('alibi(variant="asymmetric")')


class MisspeltDoor(pj.Encoding):
    """Has a method that is no door."""

    def logit(self, s, q, k, tq, tk, seen, carry):
        return 2 * s, carry


def test_the_report_says_which_doors_are_open_and_groups_what_was_not_checked():
    laws = ['shapes', 'relative', 'fused']
    report = str(check(MisspeltDoor(), laws=laws))
    assert report.splitlines() == [
        'MisspeltDoor opens no door: 1 laws hold: shapes',
        '  not checked: relative, fused (no promises are stated)',
    ]
    assert str(check('rope() | window(size=4)', laws=laws[:1])).startswith(
        'rope() | window(size=4) opens project, mask: 1 laws'
    )


class NoBias(pj.Bias):
    """Lacks its bias."""


class FlatBias(pj.Bias):
    """Returns a bias without the axis of heads."""

    def bias(self, q_pos, k_pos):
        return q_pos[:, :, None] - k_pos[:, None]


class PlainArray(pj.Bias):
    """Keeps an array that is no variable."""

    def __init__(self):
        self.slopes = jnp.ones(4)


@pytest.mark.parametrize(
    'encoding, error, message',
    [
        (NoBias, NotImplementedError, r'NoBias must define bias\(self, q_pos, k_pos\)'),
        (FlatBias, ValueError, r'FlatBias.bias returned the shape \(2, 20, 20\), expected \[B'),
        (PlainArray, pj.SpecError, r'PlainArray has a plain array float32 \(4,\); write nnx.Param'),
    ],
)
def test_what_a_method_of_ones_own_lacks_is_named(encoding, error, message):
    with pytest.raises(error, match=message):
        check(encoding(), laws=['shapes'])


def test_a_file_that_is_not_there_is_an_error_with_the_nearest_one(tmp_path, capsys):
    (tmp_path / 'average.py').write_text('')
    assert main(['rope()', f'--import={tmp_path}/avrage.py']) == 2
    said = capsys.readouterr().err
    assert f'avrage.py does not exist; did you mean {tmp_path}/average.py?' in said


def test_wrong_input_is_refused():
    with pytest.raises(pj.SpecError, match="unknown encoding or mixer 'roppe'; did you"):
        check('roppe()')
    with pytest.raises(pj.SpecError, match='takes a spec string or an encoding, got int'):
        check(3)
    with pytest.raises(ValueError, match=r'alibi was made for 8 heads; make it with \*\*posenc_'):
        check(pj.make('alibi()', heads=8))
    with pytest.raises(ValueError, match='peg reads whole grids, so that it has no causal form'):
        check('peg()')


def test_an_error_of_a_door_says_which_law_was_checked():
    class Wrong(pj.Encoding):
        def project(self, q, k, v, tq, tk, x=None):
            return q + jnp.ones(3), k, v, tq, tk

    with pytest.raises(ValueError) as error:
        check(Wrong())
    assert error.value.__notes__[-1] == "while the law 'shapes' was checked on Wrong"


def test_chosen_laws_are_named_when_their_check_begins():
    begun = []
    report = check('nope()', laws=('jit', 'shapes'), begun=begun.append)
    assert begun == ['shapes', 'jit'] and report.kept == ('shapes', 'jit')
    with pytest.raises(pj.SpecError, match="no law is named 'shape'; did you mean 'shapes'"):
        check('nope()', laws=('shape',))
