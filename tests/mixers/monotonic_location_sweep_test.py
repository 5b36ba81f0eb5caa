"""The sweep over variants of location attention: its samples, a short run, and refused options."""

import numpy as np
import pytest
from flax import nnx

from evidence.experiments import monotonic_location as sweep
from posenc_jax.mixers.encoder_decoder import EncoderDecoder


def test_samples_of_the_sweep():
    task = sweep.TRANSDUCTIONS['recopy']
    source, length, target = sweep.samples_of(task, np.random.default_rng(0), 60, (5, 10))
    assert set(length) == set(range(5, 11))
    assert source.shape == (60, 10)
    assert (target[:, 0] == sweep.START).all()
    for ids, n, wanted in zip(source, length, target):
        assert (ids[:n] >= sweep.WORDS).all() and (ids[n:] == sweep.PADDING).all()
        answer = [task.words[i - sweep.WORDS] for i in wanted[1:] if i != sweep.PADDING]
        assert answer.index('<eos>') == len(answer) - 1
        assert (wanted[1 + len(answer) :] == sweep.PADDING).all()


@pytest.mark.full
def test_every_variant_of_the_sweep_is_a_model():
    for arguments in sweep.VARIANTS.values():
        EncoderDecoder(5, embedding=2, hidden=4, head_dim=4, rngs=nnx.Rngs(0), **arguments)


@pytest.mark.full
def test_the_sweep_trains_and_reports(tmp_path, capsys):
    sweep.main(['--tasks', 'dedupe', '--variants', 'onestep', '--seeds', '0', '3', '--steps', '2',
        '--width', '4',
                '--samples', '2', '--workdir', str(tmp_path)])  # fmt: skip
    lines = (tmp_path / 'results.csv').read_text().splitlines()
    assert len(lines) == 1 + 2 * 7
    assert lines[1].startswith('dedupe,onestep,10,0,')
    assert lines[-1].startswith('dedupe,onestep,100,3,')
    assert 'seed 3' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--tasks', 'recopi'], "did you mean 'recopy'"),
        (['--variants', 'onestp'], "did you mean 'onestep'"),
        (['--steps', '0'], 'a whole number of at least 2, got '),
        (['--steps', 'ten'], "a whole number of at least 2, got 'ten'"),
        (['--dropout', '1'], 'a number of at least 0 and below 1, got '),
        (['--peak', 'nan'], "a number of at least 0, got 'nan'"),
        (['--width', '33'], '--width must be even'),
        (['--workdir', __file__], '--workdir must be a directory'),
        (['--seeds', '-1'], 'at least 0 and below 4294967296, got '),
        (['--batches', '3'], 'unrecognized arguments: --batches'),
    ],
)
def test_the_sweep_refuses_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as refused:
        sweep.main(arguments)
    said = capsys.readouterr().err
    assert refused.value.code == 2 and said.count('\n') == 1 and message in said
