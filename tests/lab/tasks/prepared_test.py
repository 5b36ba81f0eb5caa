"""A real TFDS data set, prepared from local text without TensorFlow, read through `tfds:`."""

import json
import shutil
import sys
import types

import pytest

from posenc_jax.base import memory
from posenc_jax.lab.tasks.language import BOS, Language
from posenc_jax.lab.tasks.language.documents import as_text
from posenc_jax.protocol.errors import SpecError

tfds = pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')
topics = pytest.importorskip('pydoc_data.topics').topics
NAMES = sorted(topics)


class PosencTopics(tfds.core.GeneratorBasedBuilder):
    """The topics of pydoc, title and text."""

    VERSION = tfds.core.Version('1.2.0')
    SPLITS = {'train': NAMES}

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({'title': text, 'text': text})
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(names) for split, names in self.SPLITS.items()}

    def _generate_examples(self, names):
        for name in names:
            yield name, {'title': name, 'text': topics[name]}


class PosencTopicsSplit(PosencTopics):
    """The same with three splits of its own."""

    SPLITS = {'train': NAMES[:50], 'validation': NAMES[50:60], 'test': NAMES[60:]}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('tfds')
    for builder in (PosencTopics, PosencTopicsSplit):
        builder(data_dir=str(root), file_format='array_record').download_and_prepare()
    return root


def opened(root, name='posenc_topics', **options):
    return Language(f'tfds:{name}', data_dir=str(root), **options)


def copied(data_dir, to):
    """The folder of a copy of the first data set."""
    return shutil.copytree(data_dir / 'posenc_topics', to / 'posenc_topics')


def texts(task, split):
    return [task.decode(document[1:]) for document in task.documents(split)]


def test_no_tensorflow_and_no_builder_class_is_needed(data_dir):
    task = opened(data_dir)
    found = [text for split in ('train', 'validation', 'test') for text in texts(task, split)]
    assert sorted(found) == sorted(topics.values())
    assert len(texts(task, 'train')) > 50 and texts(task, 'validation')
    assert 'tensorflow' not in sys.modules
    assert 'examples: train' in task.corpus.description


def test_own_splits_are_kept(data_dir):
    task = opened(data_dir, 'posenc_topics_split:1.2.0')
    for split, names in PosencTopicsSplit.SPLITS.items():
        assert sorted(texts(task, split)) == sorted(topics[name] for name in names)


def test_texts_that_are_too_large_are_refused_while_they_are_read(data_dir, monkeypatch):
    task = opened(data_dir, 'posenc_topics_split')
    whole = 5 * sum(len(topics[name].encode()) for name in NAMES[50:60])
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * whole)
    assert len(texts(task, 'validation')) == 10
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * whole - 2)
    said = r'split validation, up to example \d+ would take .*; use a smaller data set'
    with pytest.raises(ValueError, match=said):
        task.documents('validation')


def test_batches(data_dir):
    task = opened(data_dir)
    batch = task.dataset(length=64, batch_size=4, seed=0)[2]
    assert batch['tokens'].shape == (4, 64) and batch['tokens'].max() <= BOS


def test_other_feature(data_dir):
    task = opened(data_dir, feature='title')
    assert sorted(t for s in ('train', 'validation', 'test') for t in texts(task, s)) == NAMES
    with pytest.raises(SpecError, match="'titel'.*did you mean 'title'"):
        opened(data_dir, feature='titel').documents('train')


def test_text_of_a_mocked_data_source_is_str_and_of_a_real_one_bytes(data_dir):
    with tfds.testing.mock_data(num_examples=3):
        builder = PosencTopics(data_dir=str(data_dir), file_format='array_record')
        mocked = builder.as_data_source(split='train')[0]['text']
    builder = tfds.builder_from_directory(str(data_dir / 'posenc_topics' / '1.2.0'))
    real = builder.as_data_source(split='train')[0]['text']
    assert isinstance(mocked, str) and isinstance(real, bytes)
    assert as_text(mocked, 'mocked') == mocked.encode() and as_text(real, 'real') == real


def test_highest_version_is_read(data_dir, tmp_path):
    copy = copied(data_dir, tmp_path)
    shutil.copytree(copy / '1.2.0', copy / '1.10.0')
    (copy / '1.2.0').rename(copy / '1.9.0')
    assert '1.10.0' in opened(tmp_path).corpus.description
    assert '1.9.0' in opened(tmp_path, 'posenc_topics:1.9.0').corpus.description


def test_configs_must_be_chosen(data_dir, tmp_path):
    for config in ('plain', 'fancy'):
        shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'posenc_topics' / config)
    with pytest.raises(SpecError, match='several configs.*posenc_topics/fancy.*s/plain'):
        opened(tmp_path)
    assert texts(opened(tmp_path, 'posenc_topics/plain'), 'train')


def test_unprepared_data_set_raises_at_once_with_the_command(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError('the network was touched')

    monkeypatch.setattr('socket.socket.connect', forbidden)
    command = (
        r"builder\('tiny_shakespeare', data_dir='.*', "
        r"file_format='array_record'\)\.download_and_prepare\(\)"
    )
    with pytest.raises(FileNotFoundError, match=command):
        opened(tmp_path, 'tiny_shakespeare')
    with pytest.raises(FileNotFoundError, match='not prepared'):
        opened(tmp_path / 'missing', 'tiny_shakespeare')


@pytest.mark.parametrize(
    'name, error, message',
    [
        ('posenc_topics:7.0.0', FileNotFoundError, 'posenc_topics:7.0.0 is not prepared'),
        ('tiny_shakespear', SpecError, "did you mean 'tiny_shakespeare'"),
        ('posenc_topic', SpecError, "did you mean .*'posenc_topics'"),
        ('a b', SpecError, 'expected NAME'),
    ],
)
def test_unknown_names(data_dir, name, error, message):
    with pytest.raises(error, match=message):
        opened(data_dir, name)


def test_default_directory_is_tfds_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
    assert texts(Language('tfds:posenc_topics'), 'train')


def test_format_without_random_access(data_dir, tmp_path):
    info = copied(data_dir, tmp_path) / '1.2.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ValueError, match='prepared as tfrecord.*array_record or parquet'):
        opened(tmp_path).documents('train')


HOSTILE = {'pythonClassName': 'own_feature.Text', 'text': {}}
LEGACY = {'type': 'own_feature.Text', 'content': {}}  # as older versions of TFDS write it
SEQUENCE = {
    'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
    'featuresDict': None,
    'jsonFeature': {'json': json.dumps({'feature': LEGACY})},
}


@pytest.mark.parametrize(
    'file, changed',
    [
        ('features.json', lambda old: old['featuresDict']['features'].update(title=HOSTILE)),
        ('features.json', lambda old: (old.clear(), old.update(HOSTILE))),
        ('features.json', lambda old: (old.clear(), old.update(LEGACY))),
        ('features.json', lambda old: old.update(SEQUENCE)),
        ('dataset_info.json', lambda old: old.update(features=HOSTILE)),
        ('dataset_info.json', lambda old: old.update(moduleName='own_feature')),
    ],
)
def test_no_module_that_a_data_set_names_is_imported(
    data_dir, tmp_path, monkeypatch, file, changed
):
    """TFDS imports the modules of features by itself; a config of unknown origin may name a data
    set that lies beside it.
    """
    (tmp_path / 'own_feature.py').write_text('raise SystemExit("executed")')
    monkeypatch.syspath_prepend(tmp_path)
    root = copied(data_dir, tmp_path / 'data').parent
    (path,) = root.rglob(file)
    content = json.loads(path.read_text())
    changed(content)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    usual = vars(tfds.features.FeatureConnector)['cls_from_name']
    read = lambda: opened(root).documents('validation')
    if 'moduleName' in content and 'features' not in content:
        assert read()  # TFDS only mentions this module
    else:
        said = "of the class 'own_feature.Text', whose module was not imp"
        with pytest.raises(ValueError, match=said):
            read()
    assert 'own_feature' not in sys.modules
    assert vars(tfds.features.FeatureConnector)['cls_from_name'] is usual


def test_features_of_a_module_that_is_imported_are_read(data_dir, tmp_path, monkeypatch):
    made = types.ModuleType('own_feature')
    exec('from tensorflow_datasets import features\nclass Text(features.Text): pass', vars(made))
    monkeypatch.setitem(sys.modules, 'own_feature', made)
    root = copied(data_dir, tmp_path / 'data').parent
    (path,) = root.rglob('features.json')
    content = json.loads(path.read_text())
    content['featuresDict']['features']['title'] = HOSTILE
    path.write_text(json.dumps(content))
    assert opened(root).documents('validation')
