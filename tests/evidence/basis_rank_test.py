"""The sweep of stable ranks: a picture that the codes can hold is filled in, and its claim."""

import numpy as np
import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import basis_rank as sweep


def test_a_picture_of_the_space_of_the_codes_is_filled_in():
    rng = np.random.default_rng(0)
    code = rng.standard_normal((12, 3))
    image = code @ rng.standard_normal((3, 3)) @ code.T
    known = rng.permutation(image.size) < image.size // 2
    assert sweep.filled_in(code, image, known) > 60


def test_a_square_polynomial_explains_itself_and_no_noise():
    x = np.linspace(-1, 1, 200)
    assert sweep.explained(x, 3 * x**2 - x) == pytest.approx(1)
    assert sweep.explained(x, np.random.default_rng(0).standard_normal(200)) < 0.1


def test_the_sweep_writes_what_its_claim_reads(tmp_path):
    words = ('--seeds', '0', '1', '--side', '16', '--features', '8')
    sweep.PROGRAM.main([*words, '--workdir', str(tmp_path)])
    effects = CLAIMS['C12'].how.effects(ResultRows(tmp_path))
    assert effects.keys() == {0, 1} and all(0 <= value <= 1 for value in effects.values())
