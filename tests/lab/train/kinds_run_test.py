"""Whole runs of encoders, models of a class, of images, graphs and points, encoder-decoders and
hybrid patterns: training, the evaluation at the end, restoring, resuming, meshes, precision,
adapters and extensions.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from posenc_jax.lab.cluster.stop import StopSignal
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.evaluate.scoring import token_scores
from posenc_jax.lab.model.inputs import inputs_of, source_of, tokens_of
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.runs.sizes import make_task, task_length
from posenc_jax.lab.train.batches import device_batch, divisible
from posenc_jax.lab.train.loop import ConfigChangedError, train
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.layer.projections import Adapter
from posenc_jax.layer.sharding import make_mesh, spec_of
from tests.lab.train import tiny
from tests.lab.train.loop_test import NAME, back_to

STEPS = 12
COMMON = dict(
    name=NAME, encoding='rope()', model__dropout=0.1, train__steps=STEPS, train__warmup=2,
    train__length=8, train__save_every=6, train__eval_every=STEPS, train__eval_batches=1,
    eval__lengths=(8, 16), eval__samples=8,
)  # fmt: skip
ENCODER = dict(model__kind='encoder')
KINDS = {
    'encoder': dict(**ENCODER, task='chomsky15("bucket_sort")'),
    'masked': dict(**ENCODER, task='masked_text()', train__min_length=4, train__lr=3e-2),
    'class': dict(**ENCODER, task='chomsky15("cycle_navigation", readout="class")'),
    'translation': dict(model__kind='encoder_decoder', task='translation(words=8)'),
    'hybrid': dict(task='reverse()', pattern=('cheems(chunk=4)', 'rope()')),
    'image': dict(
        **ENCODER, task='quadrant(noise=0.0, aspect=1.5)', encoding='peg()', model__patch=2,
        model__pool='token', model__mlp='mix_ffn', model__overlap=True,
        model__lower=((1, 8, 2, 2, 'nope()'),),
    ),
    'graph': dict(
        **ENCODER, task='communities(inside=1.0, between=0.0)', pattern=('gin()',),
        features='lcp() | rfp(features=2, steps=1)', model__pool='mean', train__min_length=4,
    ),
    'points': dict(
        **ENCODER, task='shapes()', pattern=('pcm() | pcm_layer(gru(), size=0.5)',),
        model__pool='mean',
    ),
}  # fmt: skip
POOLED = {'class': 'mean', 'image': 'token', 'graph': 'mean', 'points': 'mean'}
every_kind = pytest.mark.parametrize('kind', KINDS)


def trained(workdir, kind, **fields):
    """The directory of a run of this kind."""
    return train(tiny.config(workdir, **{**COMMON, **KINDS[kind], **fields}))


@pytest.fixture
def five_steps(monkeypatch):
    """Runs end after five steps, as if they were asked to, with the schedule of all steps."""
    monkeypatch.setattr(StopSignal, 'requested', lambda self, step: step == 5)


def of_steps(workdir):
    return tiny.losses(workdir / NAME)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """kind -> the working directory of its run, which is trained when it is first asked for."""
    start = functools.partial(trained, eval__at_end=True)
    return tiny.trained_when_asked(tmp_path_factory.mktemp('kinds'), start)


@pytest.mark.full
@every_kind
def test_the_loss_falls_and_the_evaluation_has_longer_lengths(runs, kind):
    found = of_steps(runs(kind))
    assert len(found) == STEPS and np.mean(found[-3:]) < found[0] - 0.02
    (run,) = read(runs(kind) / NAME / 'eval')
    metrics = {'exact_match'} | ({'token_accuracy'} if kind in ('encoder', 'masked') else set())
    expected = {(length, metric) for length in (8, 16) for metric in metrics}
    assert {(m.length, m.metric) for m in run.measurements} == expected
    assert all(0 <= m.low <= m.value <= m.high <= 1 for m in run.measurements)
    drawn = kind in ('image', 'graph', 'points')
    assert (runs(kind) / NAME / 'eval' / 'samples.png').is_file() == drawn


@pytest.mark.full
@every_kind
def test_a_restored_model_has_the_loss_that_training_measured(runs, kind):
    config, model, step = restore_model(runs(kind) / NAME)
    line = next(x for x in read_lines(runs(kind) / NAME / FILE) if 'validation_loss' in x)
    task = make_task(config)
    length, rows = task_length(config, task), config.train.batch
    batch = task.dataset(length=length, batch_size=rows, seed=config.seed, split='validation')[0]
    given = {} if source_of(batch) is None else {'source': source_of(batch)}
    nll, _ = token_scores(model, inputs_of(batch), batch['targets'], tokens_of(batch), **given)
    scored = batch['loss_mask'] > 0
    assert step == STEPS
    assert np.asarray(nll)[scored].mean() == pytest.approx(line['validation_loss'], rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize('kind, length, larger', [('image', 8, 16), ('graph', 8, 16)])
def test_an_evaluation_reads_whole_batches_of_the_trained_size(runs, kind, length, larger):
    job = prepare(str(runs(kind) / NAME), {})
    rows = [job.rows(job.task.width(n)) for n in (length, larger)]
    assert rows == [8, 8 // (4 if kind == 'image' else 2)]


@pytest.mark.full
@every_kind
def test_a_resumed_run_has_the_same_losses(runs, kind, tmp_path):
    back_to(runs(kind), tmp_path / 'runs', 6)
    trained(tmp_path / 'runs', kind)
    assert of_steps(tmp_path / 'runs') == of_steps(runs(kind))


@pytest.mark.full
@pytest.mark.parametrize(
    'kind, mesh',
    [
        ('encoder', dict(fsdp=2, tensor=2, sequence=2)),
        ('class', dict(fsdp=2, tensor=2, sequence=2)),
        ('masked', dict(data=2, tensor=2, sequence=2)),
        ('hybrid', dict(data=2, fsdp=2, tensor=2)),
        ('image', dict(data=2, fsdp=2, tensor=2)),
    ],
)
def test_a_mesh_has_the_losses_of_rows_alone(runs, kind, mesh, tmp_path, request):
    """The runs themselves have the eight rows of a batch on eight devices."""
    expected = of_steps(runs(kind))[:5]
    request.getfixturevalue('five_steps')
    trained(tmp_path, kind, **{f'mesh__{name}': size for name, size in mesh.items()})
    np.testing.assert_allclose(of_steps(tmp_path), expected, atol=2e-5)


@pytest.mark.full
def test_a_mesh_may_cut_a_source_and_its_target(tmp_path, five_steps):
    """Rows of 8 and 9 tokens, of which padding is a part; it would change what dropout draws."""
    fields = dict(model__dropout=0.0, train__eval_every=0, train__save_every=100)
    for name, mesh in (('rows', {}), ('cut', dict(fsdp=2, tensor=2, sequence=2))):
        sizes = {f'mesh__{axis}': size for axis, size in mesh.items()}
        trained(tmp_path / name, 'translation', **fields, **sizes)
    np.testing.assert_allclose(of_steps(tmp_path / 'cut'), of_steps(tmp_path / 'rows'), atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize('kind', ['class', 'translation'])
def test_rows_in_two_parts_and_recomputed_layers_change_nothing(kind, tmp_path, five_steps):
    fields = dict(model__dropout=0.0, train__batch=16, train__eval_every=0, train__save_every=100)
    found = {}
    for name, more in {
        'plain': {},
        'parts': dict(train__accumulate=2, model__remat='full'),
        'half': dict(model__dtype='bfloat16'),
    }.items():
        trained(tmp_path / name, kind, **fields, **more)
        found[name] = of_steps(tmp_path / name)
    np.testing.assert_allclose(found['parts'], found['plain'], atol=2e-5)
    np.testing.assert_allclose(found['half'], found['plain'], rtol=0.1)
    assert found['half'] != found['plain']


@pytest.mark.full
@pytest.mark.parametrize('kind', ['class', 'translation'])
def test_adapters_are_trained_alone(runs, kind, tmp_path):
    source = runs(kind) / NAME
    fields = dict(init__source=str(source), model__lora_rank=2, train__tune='adapters')
    trained(tmp_path, kind, **{**fields, 'train__steps': 4})
    before, after = (restore_model(path)[1] for path in (source, tmp_path / NAME))
    weights = lambda model: dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    old, new = weights(before), weights(after)
    assert old.keys() <= new.keys()
    for path, variable in old.items():
        np.testing.assert_array_equal(variable[...], new[path][...], err_msg=str(path))
    adapters = [m for _, m in nnx.iter_modules(after) if isinstance(m, Adapter)]
    cross = {'translation': 3}.get(kind, 1)  # decoder, its cross-attention, encoder
    assert len(adapters) % cross == 0 and len(adapters) >= 2 * cross
    assert all(np.abs(np.asarray(adapter.up[...])).max() > 0 for adapter in adapters)


@pytest.mark.full
def test_an_encoder_decoder_is_evaluated_with_an_extension(runs):
    run = runs('translation') / NAME
    asked = {'eval.lengths': (8, 16)}
    plain, extended = evaluate([str(run), f'{run} | pi(factor=2.0)'], asked).runs
    assert extended.extend == 'pi(factor=2.0)'
    pairs = list(zip(plain.measurements, extended.measurements, strict=True))
    assert [(a.length, b.length) for a, b in pairs] == [(8, 8), (16, 16)]
    assert all(a.nll != b.nll for a, b in pairs)


@pytest.mark.full
def test_another_kind_is_not_continued(runs, tmp_path):
    shutil.copytree(runs('encoder'), tmp_path / 'runs')
    with pytest.raises(ConfigChangedError, match="model.kind: 'encoder' -> 'decoder'"):
        trained(tmp_path / 'runs', 'encoder', model__kind='decoder')
    shutil.copytree(runs('class'), tmp_path / 'class')
    with pytest.raises(ConfigChangedError, match="model.pool: 'mean' -> 'last'"):
        trained(tmp_path / 'class', 'class', model__pool='last')
    with pytest.raises(ConfigChangedError, match="task: .*'class'.* -> .*'tape'|task: "):
        trained(tmp_path / 'class', 'class', task='chomsky15("cycle_navigation")')


def written(tmp_path, kind, **fields):
    """The content of `config.json` of a run that is not trained."""
    config = validate(tiny.config(tmp_path, **{**COMMON, **KINDS[kind], **fields}))
    stored.save(config, tmp_path / stored.FILE)
    return config, json.loads((tmp_path / stored.FILE).read_text())


@pytest.mark.parametrize(
    'kind, shape',
    [
        ('encoder', dict(vocab_size=6, width=16, output_size=5)),
        ('class', dict(vocab_size=4, width=8, output_size=5, pooled=1)),
        ('translation', dict(vocab_size=11, width=9, source_size=9, source_width=8)),
        ('hybrid', dict(vocab_size=13, width=18)),
        ('image', dict(vocab_size=0, width=7, output_size=4, pooled=1, channels=1)),
        ('graph', dict(vocab_size=0, width=8, output_size=2, pooled=1, channels=10)),
        ('points', dict(vocab_size=0, width=8, output_size=5, pooled=1, channels=3)),
    ],
)
def test_the_sizes_of_the_task_are_stored(tmp_path, kind, shape):
    config, found = written(tmp_path, kind)
    assert found['task_shape'] == shape
    cfg = stored.read_saved(tmp_path / stored.FILE).model_config
    assert cfg == stored.Saved(config).model_config
    assert (cfg.kind, cfg.pool) == (config.model.kind, POOLED.get(kind, ''))


def test_a_file_of_a_version_without_kinds_is_read(tmp_path):
    config, found = written(tmp_path, 'hybrid', pattern=())
    for name in ('kind', 'pool', 'source_layers'):
        del found['model'][name]
    for name in ('cross', 'source_encoding', 'source_pattern'):
        del found[name]
    assert found['task_shape'].keys() == {'vocab_size', 'width'}
    (tmp_path / stored.FILE).write_text(json.dumps(found))
    saved = stored.read_saved(tmp_path / stored.FILE)
    assert saved.model_config == stored.Saved(config).model_config
    assert stored.differences(saved.config, config) == []


def test_what_a_mesh_cannot_cut_is_told(tmp_path):
    said = 'the 9 tokens of a row cannot .* have 10 tokens, or mesh.seq'
    with pytest.raises(ValueError, match=said):
        trained(tmp_path, 'masked', mesh__sequence=2, train__length=9)


def test_both_sides_of_a_translation_are_padded_for_a_mesh():
    task = make_task(tiny.config('', task='translation(words=8, alignments=True)'))
    batch = task.sample(np.random.default_rng(0), 2, 7)
    found = divisible(batch, 3)
    assert found['source'].shape == found['source_valid'].shape == (2, 9)
    assert found['source_positions'].shape == (2, 9, 2) and found['tokens'].shape == (2, 9)
    assert not found['source_valid'][:, 7:].any() and not found['loss_mask'][:, 8:].any()
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name][:, : array.shape[1]], array)


@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_images_are_cut_along_the_batch_alone():
    """Rows of pixels are no tokens, and a mesh that cuts the tokens need not divide them."""
    batch = make_task(tiny.config('', task='quadrant()')).sample(np.random.default_rng(0), 4, 7)
    mesh = make_mesh(2, 2, 1, 2, devices=jax.devices()[:8])
    placed = device_batch(batch, NamedSharding(mesh, spec_of(('batch', 'sequence'))))
    assert placed['image'].sharding.spec == PartitionSpec(('data', 'fsdp'))
    assert placed['image'].addressable_shards[0].data.shape == (1, 7, 7, 1)
    np.testing.assert_array_equal(placed['image'], batch['image'])
