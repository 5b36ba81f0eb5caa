"""Runs of tasks of words, programs and groups: which models can do them, and a whole run with a
scratchpad that is evaluated beyond the trained length.
"""

import pytest

from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.runs.sizes import make_task, task_length
from posenc_jax.lab.train.loop import train
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from tests.lab.train import tiny

COMMON = dict(
    encoding='rope()',
    model__layers=1,
    model__heads=2,
    model__dropout=0.0,
    train__steps=6,
    train__save_every=6,
    train__min_length=2,
    train__length=4,
    eval__lengths=(4, 7),
    eval__samples=8,
)
SPECS = {
    'impact_pe("reverse", symbols=8)': {},
    'impact_pe("sum", scratchpad="full")': {},
    'scan()': dict(eval__lengths=(4, 24, 48)),
    'scan(layout="source")': dict(model__kind='encoder_decoder'),
    'source_target("recopy")': {},
    'source_target("recopy", layout="source")': dict(model__kind='encoder_decoder'),
    'selective_copy()': {},
    'counting(variables=2)': {},
    'word_problem("a5")': {},
    'word_problem("s5", scored="last")': dict(model__kind='encoder'),
    'ruler_lite("niah_single")': dict(
        train__length=400, train__min_length=380, eval__lengths=(400, 900)
    ),
}
every_spec = pytest.mark.parametrize('spec', SPECS)


def config_of(workdir, spec, **more):
    return tiny.config(workdir, **{**COMMON, 'task': spec, **SPECS[spec], **more})


@every_spec
@pytest.mark.full_where(condition=lambda spec: 'source' in spec or 'full' in spec)
def test_the_settings_accept_a_run(tmp_path, spec):
    config = validate(config_of(tmp_path, spec))
    task = make_task(config)
    batch = task.dataset(length=task_length(config, task), batch_size=4, seed=0)[0]
    assert batch['loss_mask'].any() and batch['tokens'].shape[0] == 4


@pytest.mark.parametrize(
    'spec, kind, message',
    [
        ('impact_pe("sum")', 'encoder', 'decoder'),
        ('scan(layout="source")', 'decoder', 'encoder_decoder'),
        ('scan()', 'encoder_decoder', 'source'),
    ],
)
def test_a_model_that_cannot_do_a_task_is_refused(tmp_path, spec, kind, message):
    fields = {**COMMON, 'task': spec, 'model__kind': kind}
    with pytest.raises(ValueError, match=message):
        validate(tiny.config(tmp_path, **fields))


@pytest.mark.full
def test_a_run_is_evaluated_beyond_its_length(tmp_path):
    spec = 'impact_pe("sum", scratchpad="i0_c0_o1_v0_r1")'
    directory = train(tiny.config(tmp_path, **COMMON, name='run', task=spec))
    losses = [line['loss'] for line in read_lines(directory / FILE) if 'loss' in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    (run,) = evaluate([directory], {'eval.lengths': (7,), 'eval.samples': 8}).runs
    (found,) = run.measurements
    assert (found.protocol, found.length, found.samples) == ('exact_match', 7, 8)
