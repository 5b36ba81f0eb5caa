"""The command of the analyses: numbers of the functions, a picture beside them, clear refusals."""

import numpy as np
import pytest

from posenc_jax.analysis.__main__ import main
from posenc_jax.analysis.rope_usage import rope_usage
from posenc_jax.evaluation.run import prepare
from tests.evaluation.run_test import make_run

LEAST = {'eval.lengths': (1,), 'eval.stride': 1}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    make_run(root / 'rope', encoding='rope()')
    make_run(root / 'alibi', encoding='alibi()')
    make_run(root / 'copy', encoding='rope()', task='copy()', train={'length': 4})
    return root


def test_usage_is_that_of_the_function_over_all_windows(runs, capsys):
    assert main(['rope_usage', f'--run={runs / "rope"}', '--batches=3']) == 0
    numbers, picture = map(str.strip, capsys.readouterr().out.splitlines())
    job = prepare(str(runs / 'rope'), LEAST)
    windows = job.task.tokens('test')[:48].reshape(3, 16)
    expected = rope_usage(job.load()[0], windows)
    found = np.load(numbers)
    np.testing.assert_allclose(found['q'], expected.q, rtol=1e-5)
    np.testing.assert_allclose(found['product'], expected.product, rtol=1e-5)
    with open(picture, 'rb') as file:
        assert file.read(4) == b'\x89PNG'


def test_distances_of_an_extended_run(runs, tmp_path, capsys):
    run = f'{runs / "rope"} | pi(factor=2.0)'
    assert main(['token_distance', f'--run={run}', '--length=32', '--batches=1', f'--out={tmp_path}']) == 0
    assert 'positional heads (layer.head): 0.' in capsys.readouterr().out
    assert np.load(tmp_path / 'token_distance.npz')['corr'].shape == (1, 2, 4)
    assert (tmp_path / 'token_distance.png').stat().st_size > 1000


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['rope_usage'], 'give --run=RUN'),
        (['rope_usage', '--run=ROOT/none'], 'no such run directory'),
        (['rope_usage', '--run=ROOT/alibi'], 'needs one rotary encoding in every layer'),
        (['token_distance', '--run=ROOT/copy'], 'was trained on copy'),
        (['rope_usage', '--run=ROOT/rope', '--batches=0'], '--batches must be at least 1'),
        (['rope_usage', '--run=ROOT/rope', '--length=99999999', '--batches=1'], 'windows of 99999999 need'),
        (['rope_usage', '--run=ROOT/rope', '--wrong=1'], "cannot read '--wrong=1'"),
    ],
)
def test_wrong_input_is_one_line(runs, arguments, message, capsys):
    assert main([argument.replace('ROOT', str(runs)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
