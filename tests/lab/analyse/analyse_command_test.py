"""The command of the analyses: numbers of the functions, a picture beside them, clear refusals."""

import json
import pathlib

import numpy as np
import pytest

from posenc_jax.lab.analyse.__main__ import main
from posenc_jax.lab.analyse.decay_kernel import trained_field
from posenc_jax.lab.analyse.martingale_gap import martingale_gap
from posenc_jax.lab.analyse.receptive_field import receptive_field
from posenc_jax.lab.analyse.rope_frequency_usage import rope_frequency_usage
from posenc_jax.lab.analyse.rope_usage import rope_usage
from posenc_jax.lab.runs.prepare import prepare
from tests.lab.evaluate.run_test import make_run

LEAST = {'eval.lengths': (1,), 'eval.stride': 1}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    make_run(root / 'rope', encoding='rope()')
    make_run(root / 'alibi', encoding='alibi()')
    make_run(root / 'linear', encoding="rpe_convergent(kernel='linear')")
    make_run(root / 'type1', encoding='rpe_convergent()')
    make_run(root / 'copy', encoding='rope()', task='copy()', train={'length': 4})
    return root


@pytest.mark.full
def test_usage_is_that_of_the_function_over_all_windows(runs, capsys):
    assert main(['rope_frequency_usage', f'--run={runs / "rope"}', '--batches=3']) == 0
    *table, numbers, picture = map(str.strip, capsys.readouterr().out.splitlines())
    job = prepare(str(runs / 'rope'), LEAST)
    windows = job.task.tokens('test')[:48].reshape(3, 16)
    expected = rope_frequency_usage(job.load()[0], windows)
    found = json.loads(pathlib.Path(numbers).read_text())['rope()']
    np.testing.assert_allclose(found['logits'], expected.logits.mean(1), rtol=1e-4)
    assert table[0].split()[:2] == ['model', 'layer'] and table[1].startswith('rope()')
    with open(picture, 'rb') as file:
        assert file.read(4) == b'\x89PNG'


@pytest.mark.full
def test_what_planes_add_to_a_logit_has_a_table_and_numbers(runs, tmp_path, capsys):
    arguments = [f'--run={runs / "rope"}', '--batches=2', f'--out={tmp_path}']
    assert main(['rope_usage', *arguments]) == 0
    job = prepare(str(runs / 'rope'), LEAST)
    expected = rope_usage(job.load()[0], job.task.tokens('test')[:32].reshape(2, 16))
    found = json.loads((tmp_path / 'rope_usage.json').read_text())['rope()']
    np.testing.assert_allclose(found['product'], expected.product, rtol=1e-4)
    assert 'fastest 1/4' in capsys.readouterr().out


def test_bounds_need_no_run(tmp_path, capsys):
    assert main(['pi_bound', f'--out={tmp_path}']) == 0
    *table, numbers, picture = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == 'distance' and '4096 to 8191' in table[-2]
    assert len(json.loads(pathlib.Path(numbers).read_text())['extrapolation']) == 8192
    with open(picture, 'rb') as file:
        assert file.read(4) == b'\x89PNG'


def test_several_runs_and_random_ids(runs, tmp_path, capsys):
    """A run of a task has no text, but an analysis reads random ids of its vocabulary."""
    arguments = ['nearby_similarity', f'--runs={runs / "*o*"}', '--inputs=random', '--batches=2']
    assert main([*arguments, '--length=12', f'--out={tmp_path}']) == 0
    found = json.loads((tmp_path / 'nearby_similarity.json').read_text())
    assert sorted(found) == ['analysis', 'rope() (copy)', 'rope() (rope)']
    assert len(found['rope() (copy)']['scores']) == 2
    assert 'adjacency score' in capsys.readouterr().out


def test_distances_of_an_extended_run(runs, tmp_path, capsys):
    run = f'{runs / "rope"} | pi(factor=2.0)'
    assert (
        main(['token_distance', f'--run={run}', '--length=32', '--batches=1', f'--out={tmp_path}'])
        == 0
    )
    assert 'positional heads (layer.head): 0.' in capsys.readouterr().out
    assert np.load(tmp_path / 'token_distance.npz')['corr'].shape == (1, 2, 4)
    assert (tmp_path / 'token_distance.png').stat().st_size > 1000


def test_fields_of_encodings(tmp_path, capsys):
    specs = ['--encoding=alibi()', '--encoding=nope()', '--encoding=t5_rpe()']
    assert main(['receptive_field', *specs, '--heads=2', f'--out={tmp_path}']) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == 'alibi(): TRF 407.5 (by head: 48 767)' and shown[1].startswith(
        'nope(): TRF inf'
    )
    np.testing.assert_array_equal(np.load(tmp_path / 'receptive_field.npz')['trf'][0], [48, 767])
    assert (tmp_path / 'receptive_field.png').stat().st_size > 1000


def test_fields_of_a_run_are_those_of_the_function(runs, capsys):
    assert main(['receptive_field', f'--run={runs / "alibi"}', '--batches=3', '--epsilon=0.1']) == 0
    shown = capsys.readouterr().out.splitlines()
    assert 'ERF' in shown[0] and 'TRF' in shown[0] and len(shown) == 4
    job = prepare(str(runs / 'alibi'), LEAST)
    model, windows = job.load()[0], job.task.tokens('test')[:48].reshape(3, 16)
    found = np.load(shown[1])
    np.testing.assert_allclose(
        found['erf'], receptive_field(model, windows, epsilon=0.1).erf, rtol=1e-5
    )
    np.testing.assert_array_equal(found['trf'], trained_field(model, epsilon=0.1))


@pytest.mark.full
def test_a_run_without_a_bias_of_the_positions_and_one_of_a_task(runs, tmp_path, capsys):
    for name in ('rope', 'copy'):
        assert main(['receptive_field', f'--run={runs / name}', f'--out={tmp_path}']) == 0
        shown = capsys.readouterr().out
        assert (
            'no TRF: a theoretical receptive field needs a bias that depends on positions alone; '
            "rope opens 'project'" in shown
        )
        assert np.isnan(np.load(tmp_path / 'receptive_field.npz')['trf'])


@pytest.mark.full
def test_ranks_of_several_runs(runs, tmp_path, capsys):
    assert (
        main(['receptive_field', f'--runs={runs / "*"}', '--batches=1', f'--out={tmp_path}']) == 0
    )
    found = np.load(tmp_path / 'receptive_field_ranks.npz')
    trf = dict(zip(found['labels'], found['trf']))
    assert (
        np.isnan(trf['rope()'])
        and trf['alibi()'] == trf["rpe_convergent(kernel='linear')"] < trf['rpe_convergent()']
    )
    assert (
        -1 <= found['rank_correlation'] <= 1
        and f'{found["rank_correlation"]:.2f}' in capsys.readouterr().out
    )


def test_a_mesh_is_refused(capsys):
    assert main(['receptive_field', '--run=none', '--config.mesh.data=2']) == 2
    assert (
        'an analysis uses one device; leave out the fields of config.mesh'
        in capsys.readouterr().err
    )


@pytest.mark.full
def test_fields_are_kept_where_no_ranks_can_be_compared(runs, tmp_path, capsys):
    assert main(['receptive_field', f'--runs={runs / "rope"}', f'--out={tmp_path}']) == 2
    assert 'needs two methods that have a TRF' in capsys.readouterr().err
    found = np.load(tmp_path / 'receptive_field_ranks.npz')
    assert found['labels'].tolist() == ['rope()'] and found['erf'][0] > 0


@pytest.mark.full
def test_flips_are_the_symbols_of_a_text_or_ids_of_a_task(runs, tmp_path, capsys):
    for run, symbols in (('rope', 'a,b'), ('copy', '2,3')):
        arguments = [f'--run={runs / run}', f'--symbols={symbols}', '--batches=2', '--length=8']
        assert main(['martingale_gap', *arguments, f'--out={tmp_path}']) == 0
        found = json.loads((tmp_path / 'martingale_gap.json').read_text())['rope()']
        model = prepare(str(runs / run), {**LEAST, 'eval.lengths': (4,)}).load()[0]
        ids = (97, 98) if run == 'rope' else (2, 3)
        expected = martingale_gap(model, ids, counts=(2, 4), sequences=2)
        np.testing.assert_allclose(found['gap'], expected.gap, rtol=1e-4)
    assert 'KL from Laplace' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['token_distance'], 'give --run=RUN'),
        (['probe_position'], 'give --run=RUN or --runs=PATTERN'),
        (['probe_position', '--run=ROOT/rope', '--runs=ROOT/*'], '--runs=PATTERN, not both'),
        (['probe_position', '--runs=ROOT/nothing*'], 'no training run matches'),
        (['probe_position', '--run=ROOT/copy'], 'give --inputs=random, or a run of language()'),
        (['probe_position', '--run=ROOT/rope', '--inputs=texts'], "did you mean 'text'"),
        (['probe_position', '--run=ROOT/rope', '--probe=mpl'], "did you mean 'mlp'"),
        (['martingale_gap', '--run=ROOT/rope', '--symbols=0'], 'two texts with a comma'),
        (['martingale_gap', '--run=ROOT/rope', '--symbols=0,10'], "one token, '10' has 2"),
        (['martingale_gap', '--run=ROOT/copy', '--symbols=a,b'], 'reads no text: --symbols are'),
        (['martingale_gap', '--run=ROOT/rope', '--length=3'], 'a length of at least 4 tokens'),
        (['embedding_position_bias', '--run=ROOT/rope', '--pool=first'], "valid: 'last', 'mean'"),
        (['rope_frequency_usage', '--run=ROOT/none'], 'no such run directory'),
        (['rope_frequency_usage', '--run=ROOT/alibi'], 'needs one rotary encoding in every layer'),
        (['token_distance', '--run=ROOT/copy'], 'was trained on copy'),
        (
            ['rope_frequency_usage', '--run=ROOT/rope', '--batches=0'],
            '--batches must be at least 1',
        ),
        (
            ['rope_frequency_usage', '--run=ROOT/rope', '--length=99999999', '--batches=1'],
            'windows of 99999999 need',
        ),
        (['receptive_field'], 'takes one of --encoding=SPEC, --run=RUN, --runs=PATTERN, got none'),
        (['receptive_field', '--run=ROOT/rope', '--encoding=alibi()'], "got ['encoding', 'run']"),
        (['receptive_field', '--encoding=rope()'], "rope opens 'project' as well"),
        (['receptive_field', '--encoding=alib()'], "did you mean 'alibi'"),
        (['receptive_field', '--encoding=alibi()', '--epsilon=1'], 'is in (0, 1), got 1.0'),
        (
            ['receptive_field', '--encoding=alibi()', '--reach=1'],
            'at least 4 distances and 1 head, got 1 and 8',
        ),
        (['receptive_field', '--encoding=alibi()', '--wrong=1'], "cannot read '--wrong=1'"),
        (['receptive_field', '--runs=ROOT/alibi'], 'needs two methods that have a TRF, got 1 of 1'),
        (['rope_frequency_usage', '--run=ROOT/rope', '--wrong=1'], "cannot read '--wrong=1'"),
        (
            ['attention_entropy', '--run=ROOT/rope', '--sink=-1'],
            '--sink must be at least 0, got -1',
        ),
        (
            ['attention_entropy', '--run=ROOT/rope', '--pieces=' + '9' * 5000],
            '--pieces are numbers of at most nine digits',
        ),
        (
            ['receptive_field', '--encoding=alibi()', '--reach=2000000000'],
            '2000000000 distances of 8 heads would take 298 GiB',
        ),
    ],
)
def test_wrong_input_is_one_line(runs, arguments, message, capsys):
    assert main([argument.replace('ROOT', str(runs)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_without_an_analysis_all_are_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1
    assert "are required: analysis; valid: 'attention_entropy', 'causal_mask_pattern'" in said
