"""From run directories to results: runs with real checkpoints."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from posenc_jax.lab.cli.generate import continue_text
from posenc_jax.lab.evaluate import run as evaluation
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.runs import checkpoint, initial, restore, stored
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.methods.ms_poe import ms_poe_ratios, probe_heads
from posenc_jax.protocol.errors import SpecError


def make_run(directory, **changes):
    """The directory of a run with untrained weights, as training would leave it after 2 steps."""
    config = default.get_config()
    config.model.update(layers=1, width=16, heads=2, tie=True)
    config.train.update(length=16)
    config.eval.update(stride=8, tokens=128, batch=4, lengths=(16, 32), samples=20)
    config.update(changes)
    trainer = make_trainer(Run.of(config), make_mesh(devices=jax.devices()[:1]))
    with checkpoint.Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(2, trainer.init({}), {})
    stored.save(config, directory / stored.FILE)
    return str(directory)


SHORT = dict(train={'length': 4}, eval={'lengths': (4, 8)})
RUNS = {
    'alibi': dict(encoding='alibi()'),
    'alibi 1': dict(encoding='alibi()', seed=1),
    'kernel': dict(encoding='alibi()', model={'implementation': 'kernel'}),
    'rope': dict(encoding='rope()'),
    'deep': dict(encoding='rope()', model={'layers': 4, 'heads': 4}),
    'learned': dict(encoding='learned_absolute(max_len=32)'),
    'random': dict(encoding='randomized_pe(max_len=256) | rope()'),
    'copy': dict(encoding='nope()', task='copy()', **SHORT),
    'copy rope': dict(encoding='rope()', task='copy()', **SHORT),
    'passkey': dict(
        encoding='nope()',
        task='passkey()',
        train={'length': 16, 'min_length': 7},
        eval={'lengths': (16, 24)},
    ),
    'coupled': dict(
        encoding='position_coupling(max_position=20)',
        task='addition(ids="coupled", reverse_output=True)',
        **SHORT,
    ),
    'plain ids': dict(
        encoding='learned_absolute(max_len=20)',
        task='copy(ids="plain")',
        **{**SHORT, 'eval': {'lengths': (4,)}},
    ),
    'full': dict(encoding='rope() | full()'),
    'prefix': dict(pattern=('rope()', 'alibi() | prefix(length=2)'), model={'layers': 2}),
    'encoder': dict(model={'kind': 'encoder'}, task='copy()', **SHORT),
}


class Runs(dict):
    """Directories of runs by name, made in a folder when first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, name):
        self[name] = make_run(self.folder / name, **RUNS[name])
        return self[name]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp('runs'))


def test_a_run_is_restored_from_its_directory_and_scored(runs):
    found = evaluate([runs['alibi']], {'eval.protocols': 'nonoverlapping', 'eval.tokens': 50})
    (run,) = found.runs
    assert (run.encoding, run.extend) == ('alibi()', '')
    assert (run.seed, run.step, run.train_length) == (0, 2, 16)
    assert (run.dataset, run.split, run.positions) == ('pydoc_topics', 'test', 'first')
    assert [m.protocol for m in run.measurements] == 2 * ['nonoverlapping']
    assert [(m.length, m.tokens) for m in run.measurements] == [(16, 50), (32, 50)]
    config, model, _ = restore.restore_model(runs['alibi'])
    # embedding, attention, feed-forward, norms
    assert run.parameters == 257 * 16 + 4 * 16 * 16 + 8 * 16 * 16 + 3 * 16
    stream = make_task(config).tokens('test')
    nll = []
    for start in range(0, 50, 32):
        size = min(32, 50 - start)
        logits = jax.nn.log_softmax(model(jnp.asarray(stream[None, start : start + size])))[0]
        nll += [-float(logits[i, stream[start + i + 1]]) for i in range(size)]
    assert run.measurements[1].nll == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.mark.parametrize('name', ['alibi', 'passkey'])
def test_a_mesh_changes_no_result(runs, monkeypatch, name):
    """Rows, heads and tokens are cut; alibi has two heads, and lengths are even."""
    asked = {'eval.protocols': 'nonoverlapping', 'eval.tokens': 100, 'eval.samples': 5}
    asked['eval.decode'] = name == 'passkey'
    cut = evaluate([runs[name]], {**asked, 'mesh.tensor': 2, 'mesh.sequence': 2}).runs[0]
    monkeypatch.setattr('posenc_jax.lab.runs.run.make_mesh', lambda **_: None)
    one = evaluate([runs[name]], asked).runs[0]
    for own, other in zip(cut.measurements, one.measurements, strict=True):
        assert own.nll == pytest.approx(other.nll, abs=1e-5)
        assert own.value == pytest.approx(other.value, rel=1e-5)


def test_the_mesh_of_a_training_is_no_condition_but_one_that_is_asked_for_is(runs):
    wide = make_run(pathlib.Path(runs['alibi']).with_name('wide'), mesh={'tensor': 64})
    assert evaluate([wide], {'eval.protocols': 'nonoverlapping', 'eval.tokens': 20}).runs
    with pytest.raises(ValueError, match='= 3 does not divide 8 devices'):
        evaluate([wide], {'mesh.tensor': 3, 'eval.tokens': 20})


@pytest.mark.full
def test_seeds_make_one_series_and_extensions_another(runs):
    asked = [runs[name] for name in ('alibi', 'alibi 1', 'rope', 'alibi')]
    asked.insert(3, f'{runs["rope"]} | pi(factor=4.0)')
    found = evaluate(asked, {'eval.protocols': 'sliding', 'eval.tokens': 40})
    assert [s.label for s in found.series] == ['alibi()', 'rope()', 'rope() + pi(factor=4.0)']
    assert [len(s.runs) for s in found.series] == [2, 1, 1]
    plain, extended = found.series[1].runs[0], found.series[2].runs[0]
    assert all(a.nll != b.nll for a, b in zip(plain.measurements, extended.measurements))


@pytest.mark.full
def test_ms_poe_orders_the_heads_of_every_layer_by_what_they_do_on_validation_text(runs):
    ratios_of = lambda model: [
        np.asarray(model.encoding(*place).parts[0].ratios[...]) for place in model.layers()
    ]
    job = evaluation.prepare(f'{runs["deep"]} | ms_poe()', {})
    plain = job.load()[0]
    first, second, *rest = ratios_of(job.extended(plain))
    assert (first == 1).all() and (second == 1).all()
    prompt = job.task.tokens('validation')[None, :16]
    orders = probe_heads(plain.extend('ms_poe()'), jnp.asarray(prompt))
    table = ms_poe_ratios(4, 1.2, 1.8)
    for ratios, order in zip(rest, np.asarray(orders)[2:]):
        np.testing.assert_allclose(ratios[order], table, rtol=1e-6)
    for given in ('ms_poe(order=(3, 2, 1, 0))', 'ms_poe(assign="normal")'):
        found = ratios_of(evaluation.prepare(f'{runs["deep"]} | {given}', {}).extended(plain))
        np.testing.assert_allclose(found, [table[::-1]] * 4, rtol=1e-6)
    copying = evaluation.prepare(f'{runs["copy rope"]} | ms_poe()', {})
    assert (ratios_of(copying.extended(copying.load()[0]))[0] == 1).all()


@pytest.mark.full
def test_sampled_positions_differ_from_the_evaluation_rule_and_repeat(runs):
    def nll(positions):
        changes = {'eval.protocols': 'nonoverlapping', 'eval.lengths': (16,)}
        found = evaluate([runs['random']], {**changes, 'eval.positions': positions})
        return found.runs[0].measurements[0].nll

    assert nll('sampled') == nll('sampled') != nll('first')


BLOCKED = {'model.implementation': 'blocked'}


@pytest.mark.full
def test_a_run_trained_with_kernels_has_the_results_of_one_without(runs):
    asked = {**BLOCKED, 'eval.lengths': (16,), 'eval.protocols': 'nonoverlapping'}
    kernel, other = evaluate([runs['kernel'], runs['alibi']], asked).runs
    assert kernel.measurements == other.measurements and kernel.settings == other.settings
    write = lambda name: continue_text(runs[name], ['ab'], tokens=4, overrides=BLOCKED)
    assert write('kernel') == write('alibi')


def test_a_run_trained_with_kernels_is_read_and_continued_without_them(runs):
    config, model, _ = restore.restore_model(runs['kernel'], overrides=BLOCKED)
    assert config.model.implementation == vars(model.cfg)['implementation'] == 'blocked'
    changes = {**BLOCKED, 'model.block': '8', 'model.remat': 'full', 'model.precision': 'highest'}
    found = evaluation.prepare(runs['kernel'], changes)
    own = dict(implementation='blocked', block=8, remat='full', precision='highest')
    assert all(own.items() <= vars(cfg).items() for cfg in (found.cfg, found.load()[0].cfg))
    resumed = stored.from_json(pathlib.Path(runs['kernel']) / stored.FILE)
    assert stored.differences(resumed, config) == []
    config.unlock().init.source = runs['kernel']
    source = initial.open_initial(config.init.source)
    assert initial.resolve(config, source).model.implementation == 'blocked'


FIT = 'lengths that fit: --config.eval.lengths='
REFUSED = [  # a run, fields, and what the message says
    (
        'kernel',
        {},
        'kernel: attend: .* does not run on cpu; .*--config.model.implementation=blocked',
    ),
    ('alibi', {'model.dtype': 'bfloat16'}, 'model.dtype belongs to the checkpoint'),
    ('alibi', {'eval.protocols': 'slidin'}, "protocol is 'slidin'; did you mean 'sliding'"),
    ('alibi', {'eval.lengths': '0'}, 'whole numbers of at least 1'),
    ('alibi', {'eval.positions': 'some'}, 'eval.positions'),
    ('alibi', {'task': 'copy()'}, 'was trained on 257 token ids; copy'),
    ('rope', {'extend': 'yam(factor=4)'}, "did you mean 'yarn'"),
    ('rope', {'extend': 'pi(factr=4)'}, "did you mean 'factor'"),
    ('alibi', {'eval.protocols': ''}, 'eval.protocols is empty; choose'),
    ('alibi', {'eval.split': 'dev'}, "eval.split is 'dev'"),
    ('copy', {'eval.split': 'train'}, "evaluated on 'validation' or 'test'"),
    *[
        ('alibi', {f'eval.{name}': 0}, f'eval.{name} must be at least 1, got 0')
        for name in ('tokens', 'batch', 'stride', 'buckets', 'samples')
    ],
    (
        'passkey',
        {'eval.depths': (0.5, 1.5)},
        r'eval.depths must be numbers from 0 .* got \(0.5, 1.5\)',
    ),
    ('passkey', {'eval.depths': (True,)}, 'eval.depths must be numbers from 0'),
    ('passkey', {'eval.depths': ('end',)}, 'eval.depths must be numbers from 0'),
    ('passkey', {'eval.depths': '0,0.5,0.0'}, r'eval.depths names a depth twice: \(0, 0.5, 0.0\)'),
    (
        'alibi',
        {'task': 'passkey_text()', 'eval.lengths': (300, 64)},
        f'at length 64: .* must be at least 251, got 64; {FIT}300',
    ),
    # The ids of the task, not the number of tokens, overrun the table.
    ('coupled', {'eval.lengths': '4,32'}, 'at length 32: position_coupling: .*not in 0 .. 20'),
    (
        'plain ids',
        {'eval.lengths': '10'},
        'at length 10: learned_absolute: position 21 is not in 0 .. 19',
    ),
    # What it sees is what it should predict.
    (
        'full',
        {},
        r'full lets queries see later tokens, which language\(\) asks to predict.*use causal',
    ),
    ('prefix', {}, 'prefix lets queries see later tokens'),
    ('encoder', {}, "model.kind is 'encoder': it sees the next tokens, .*use 'decoder'"),
]


@pytest.mark.parametrize('run, changes, message', REFUSED)
def test_wrong_requests(runs, run, changes, message):
    with pytest.raises(SpecError, match=message):
        evaluate([runs[run]], changes)


@pytest.mark.parametrize(
    'run, changes, message',
    [
        ('kernel', {'model.implementation': 'block'}, "did you mean 'blocked'"),
        ('alibi', {'eval.lengths': '64,100000000'}, 'needs 100000001 tokens, but the text has'),
        ('learned', {'eval.lengths': '64'}, 'overflow'),
        ('learned', {'eval.lengths': '16,64,32'}, f'at length 64: .*; {FIT}16,32'),
    ],
)
def test_what_a_run_does_not_reach(runs, run, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate([runs[run]], changes)


def test_ids_within_the_table_are_scored(runs):
    found = evaluate([runs['coupled'], runs['plain ids']])
    assert [[m.length for m in run.measurements] for run in found.runs] == [[4, 8], [4]]


def test_a_likelihood_that_is_not_finite_names_the_run_and_the_length(runs, tmp_path):
    config = stored.from_json(pathlib.Path(runs['alibi']) / stored.FILE)
    trainer = make_trainer(Run.of(config), make_mesh(devices=jax.devices()[:1]))
    state = trainer.init({})
    state.params['embedding'] = state.params['embedding'] * jnp.nan
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    stored.save(config, tmp_path / stored.FILE)
    told = rf'{tmp_path}: nonoverlapping at length 16: 128 of 128 scored .* first is nan'
    with pytest.raises(ValueError, match=told):
        evaluate([tmp_path])


def test_text_that_has_moved(tmp_path):
    here, there = tmp_path / 'here', tmp_path / 'there'
    here.mkdir()
    (here / 'book.txt').write_text('once upon a time ' * 500)
    run = make_run(tmp_path / 'run', data={'dataset': f'text:{here}/*.txt'}, encoding='alibi()')
    here.rename(there)
    assert restore.restore_model(run)[2] == 2
    with pytest.raises(FileNotFoundError, match='no file matches'):
        evaluate([run])
    assert evaluate([run], {'data.dataset': f'text:{there}/*.txt'}).runs[0].step == 2


def test_runs_of_versions_that_stored_no_shape(runs):
    path = pathlib.Path(runs['alibi']) / stored.FILE
    fields = json.loads(path.read_text())
    before = stored.read_saved(path).model_config
    del fields[stored.SHAPE]
    path.write_text(json.dumps(fields))
    assert stored.read_saved(path).model_config == before
    stored.save(stored.from_json(path), path)


def test_a_run_that_cannot_be_evaluated_stops_the_others_before_they_start(runs, monkeypatch):
    monkeypatch.setattr(Run, 'load', lambda *_: pytest.fail('a checkpoint was read'))
    with pytest.raises(ValueError, match='at length 64: learned_absolute: .*overflow'):
        evaluate([runs['alibi'], runs['learned']], {'eval.lengths': '64'})


def test_a_missing_checkpoint_stops_the_others_before_they_start(runs, tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text((pathlib.Path(runs['alibi']) / 'config.json').read_text())
    monkeypatch.setattr(Run, 'load', lambda *_: pytest.fail('a checkpoint was read'))
    with pytest.raises(ValueError, match='has no checkpoint'):
        evaluate([runs['alibi'], tmp_path])
