"""A real TFDS data set, prepared from local text without TensorFlow, read through `tfds:`."""

import json
import shutil
import sys
import types

import numpy as np
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


def texts(task, split):
    return [task.decode(document[1:]) for document in task.documents(split)]


def test_no_tensorflow_and_no_builder_class_is_needed(data_dir):
    task = Language('tfds:posenc_topics', data_dir=str(data_dir))
    found = [text for split in ('train', 'validation', 'test') for text in texts(task, split)]
    assert sorted(found) == sorted(topics.values())
    assert len(texts(task, 'train')) > 50 and texts(task, 'validation')
    assert 'tensorflow' not in sys.modules
    assert 'examples: train' in task.corpus.description


def test_own_splits_are_kept(data_dir):
    task = Language('tfds:posenc_topics_split:1.2.0', data_dir=str(data_dir))
    for split, names in PosencTopicsSplit.SPLITS.items():
        assert sorted(texts(task, split)) == sorted(topics[name] for name in names)


def test_texts_that_are_too_large_are_refused_while_they_are_read(data_dir, monkeypatch):
    task = Language('tfds:posenc_topics_split', data_dir=str(data_dir))
    whole = 5 * sum(len(topics[name].encode()) for name in NAMES[50:60])
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * whole)
    assert len(texts(task, 'validation')) == 10
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * whole - 2)
    said = r'split validation, up to example \d+ would take .*; use a smaller data set'
    with pytest.raises(ValueError, match=said):
        task.documents('validation')


@pytest.mark.parametrize('packing', ['stream', 'documents'])
def test_batches(data_dir, packing):
    task = Language('tfds:posenc_topics', data_dir=str(data_dir), packing=packing)
    batch = task.dataset(length=64, batch_size=4, seed=0)[2]
    assert batch['tokens'].shape == (4, 64) and batch['tokens'].max() <= BOS
    shards = [
        task.dataset(length=64, batch_size=4, seed=0, shard=(p, 2))[2]['tokens'] for p in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(shards), batch['tokens'])


def test_other_feature(data_dir):
    task = Language('tfds:posenc_topics', data_dir=str(data_dir), feature='title')
    assert sorted(t for s in ('train', 'validation', 'test') for t in texts(task, s)) == NAMES
    with pytest.raises(SpecError, match="'titel'.*did you mean 'title'"):
        Language('tfds:posenc_topics', data_dir=str(data_dir), feature='titel').documents('train')


def test_text_of_a_mocked_data_source_is_str_and_of_a_real_one_bytes(data_dir):
    with tfds.testing.mock_data(num_examples=3):
        builder = PosencTopics(data_dir=str(data_dir), file_format='array_record')
        mocked = builder.as_data_source(split='train')[0]['text']
    builder = tfds.builder_from_directory(str(data_dir / 'posenc_topics' / '1.2.0'))
    real = builder.as_data_source(split='train')[0]['text']
    assert isinstance(mocked, str) and isinstance(real, bytes)
    assert as_text(mocked, 'mocked') == mocked.encode() and as_text(real, 'real') == real


def test_highest_version_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'posenc_topics')
    (tmp_path / 'posenc_topics' / '1.2.0').rename(tmp_path / 'posenc_topics' / '1.9.0')
    shutil.copytree(data_dir / 'posenc_topics' / '1.2.0', tmp_path / 'posenc_topics' / '1.10.0')
    assert '1.10.0' in Language('tfds:posenc_topics', data_dir=str(tmp_path)).corpus.description
    assert (
        '1.9.0' in Language('tfds:posenc_topics:1.9.0', data_dir=str(tmp_path)).corpus.description
    )


def test_configs_must_be_chosen(data_dir, tmp_path):
    for config in ('plain', 'fancy'):
        shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'posenc_topics' / config)
    with pytest.raises(
        SpecError, match=r'several configs.*posenc_topics/fancy.*posenc_topics/plain'
    ):
        Language('tfds:posenc_topics', data_dir=str(tmp_path))
    assert texts(Language('tfds:posenc_topics/plain', data_dir=str(tmp_path)), 'train')


def test_unprepared_data_set_raises_at_once_with_the_command(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError('the network was touched')

    monkeypatch.setattr('socket.socket.connect', forbidden)
    command = (
        r"builder\('tiny_shakespeare', data_dir='.*', "
        r"file_format='array_record'\)\.download_and_prepare\(\)"
    )
    with pytest.raises(FileNotFoundError, match=command):
        Language('tfds:tiny_shakespeare', data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match='not prepared'):
        Language('tfds:tiny_shakespeare', data_dir=str(tmp_path / 'missing'))


def test_version_that_is_not_prepared(data_dir):
    with pytest.raises(FileNotFoundError, match='posenc_topics:7.0.0 is not prepared'):
        Language('tfds:posenc_topics:7.0.0', data_dir=str(data_dir))


def test_unknown_name(data_dir):
    with pytest.raises(SpecError, match="did you mean 'tiny_shakespeare'"):
        Language('tfds:tiny_shakespear', data_dir=str(data_dir))
    with pytest.raises(SpecError, match="did you mean .*'posenc_topics'"):
        Language('tfds:posenc_topic', data_dir=str(data_dir))
    with pytest.raises(SpecError, match='expected NAME'):
        Language('tfds:a b', data_dir=str(data_dir))


def test_default_directory_is_tfds_data_dir(data_dir, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
    assert texts(Language('tfds:posenc_topics'), 'train')


def test_format_without_random_access(data_dir, tmp_path):
    shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'posenc_topics')
    info = tmp_path / 'posenc_topics' / '1.2.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ValueError, match='prepared as tfrecord.*array_record or parquet'):
        Language('tfds:posenc_topics', data_dir=str(tmp_path)).documents('train')


HOSTILE = {'pythonClassName': 'own_feature.Text', 'text': {}}
LEGACY = {'type': 'own_feature.Text', 'content': {}}  # as older versions of TFDS write it


@pytest.mark.parametrize(
    'file, changed',
    [
        ('features.json', lambda old: old['featuresDict']['features'].update(title=HOSTILE)),
        ('features.json', lambda old: (old.clear(), old.update(HOSTILE))),
        ('features.json', lambda old: (old.clear(), old.update(LEGACY))),
        (
            'features.json',
            lambda old: old.update(
                pythonClassName='tensorflow_datasets.core.features.sequence_feature.Sequence',
                featuresDict=None,
                jsonFeature={'json': json.dumps({'feature': LEGACY})},
            ),
        ),
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
    root = shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'data' / 'posenc_topics').parent
    (path,) = root.rglob(file)
    content = json.loads(path.read_text())
    changed(content)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    usual = vars(tfds.features.FeatureConnector)['cls_from_name']
    read = lambda: Language('tfds:posenc_topics', data_dir=str(root)).documents('validation')
    if 'moduleName' in content and 'features' not in content:
        assert read()  # TFDS only mentions this module
    else:
        with pytest.raises(
            ValueError, match="of the class 'own_feature.Text', whose module was not imp"
        ):
            read()
    assert 'own_feature' not in sys.modules
    assert vars(tfds.features.FeatureConnector)['cls_from_name'] is usual


def test_features_of_a_module_that_is_imported_are_read(data_dir, tmp_path, monkeypatch):
    made = types.ModuleType('own_feature')
    exec('from tensorflow_datasets import features\nclass Text(features.Text): pass', vars(made))
    monkeypatch.setitem(sys.modules, 'own_feature', made)
    root = shutil.copytree(data_dir / 'posenc_topics', tmp_path / 'data' / 'posenc_topics').parent
    (path,) = root.rglob('features.json')
    content = json.loads(path.read_text())
    content['featuresDict']['features']['title'] = HOSTILE
    path.write_text(json.dumps(content))
    assert Language('tfds:posenc_topics', data_dir=str(root)).documents('validation')
