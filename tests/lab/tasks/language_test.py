"""The language task and its corpora. Sizes of embedded corpora vary with the Python version and are
not asserted.
"""

import logging
import sys
import sysconfig

import numpy as np
import pytest

from posenc_jax.base import memory
from posenc_jax.lab.tasks.language import BOS, Language
from posenc_jax.lab.tasks.language.documents import split_documents, split_of
from posenc_jax.lab.tasks.language.embedded import EmbeddedCorpus, markov_text, stdlib_code
from posenc_jax.lab.tasks.language.listings import listings
from posenc_jax.lab.tasks.language.packing import pack_documents
from posenc_jax.lab.tasks.task import SPLITS


@pytest.fixture
def folder(tmp_path):
    for number in range(60):
        text = f'document {number}: ' + ' '.join(f'ä{number}.{i}' for i in range(number))
        (tmp_path / f'{number:03}.txt').write_text(text, encoding='utf-8')
    return tmp_path


# Splits.


def test_split_by_name_is_90_5_5_and_stable():
    names = [f'doc{i}' for i in range(20000)]
    shares = [np.mean([split_of(name) == split for name in names]) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.006)
    documents = {name: name.encode() for name in names[:200]}
    more = documents | {'another': b'x'}
    for split in SPLITS:
        assert set(split_documents(documents, split)) <= set(split_documents(more, split))


def test_one_document_is_cut_contiguously():
    text = bytes(range(100)) * 2
    parts = [split_documents({'a': text}, split)[0] for split in SPLITS]
    assert b''.join(parts) == text and [len(part) for part in parts] == [180, 10, 10]


def test_documents_are_cut_between_characters():
    text = ('aä' * 67).encode()
    parts = [split_documents({'a': text}, split)[0] for split in SPLITS]
    assert b''.join(parts) == text and all(parts)
    assert ''.join(part.decode() for part in parts) == text.decode()


# Embedded corpora.


@pytest.mark.full_but_one
@pytest.mark.parametrize('name', ['pydoc_topics', 'stdlib_code'])
def test_embedded_corpora(name):
    task = Language(name)
    streams = {split: task.tokens(split) for split in SPLITS}
    sizes = {split: len(stream) for split, stream in streams.items()}
    total = sum(sizes.values())
    assert total > 200_000 and sizes['train'] > 0.7 * total and min(sizes.values()) > 1000
    for split, stream in streams.items():
        documents = task.documents(split)
        assert stream.dtype == np.int32 and stream[0] == BOS
        assert (stream == BOS).sum() == len(documents)
        np.testing.assert_array_equal(stream, np.concatenate(documents))
    assert task.vocab_size == 257 and task.is_language


def test_pydoc_topics_are_the_topics():
    from pydoc_data import topics

    task = Language('pydoc_topics')
    train, validation, test = (
        {task.decode(document[1:]) for document in task.documents(split)} for split in SPLITS
    )
    assert train | test <= set(topics.topics.values())
    assert len(train | validation | test) == len(set(topics.topics.values()))


def test_stdlib_code_leaves_out_tests_and_packages():
    texts = b'\n'.join(EmbeddedCorpus('stdlib_code').documents('train'))
    known = (b'class JSONDecoder', b'class JSONEncoder', b'def namedtuple')
    assert any(text in texts for text in known)
    assert b'class TestCase(unittest.TestCase)' not in texts


def test_stdlib_code_holds_nothing_that_the_build_wrote_for_this_machine():
    """No dump of how this Python was built: no file of it by name, and none of its long settings in
    any text.
    """
    names, built = stdlib_code(), ('_sysconfigdata', 'config-', 'sitecustomize.py')
    assert not [name for name in names if name.startswith(built)]
    # Modules of other platforms are everywhere.
    assert {'json/decoder.py', '_osx_support.py'} <= names.keys()
    built = [v for v in sysconfig.get_config_vars().values() if isinstance(v, str) and len(v) > 60]
    texts = b'\n'.join(names.values()).decode(errors='replace')
    assert built and not [value for value in built if value in texts]


def test_stdlib_code_is_the_same_files_on_every_machine(monkeypatch, tmp_path):
    ours = ('json/decoder.py', 'abc.py', 'this_is_no_module.py')
    builds = (
        '_sysconfigdata__linux_x86_64-linux-gnu.py _sysconfigdata_d_darwin_darwin.py '
        'sitecustomize.py config-3.11-x86_64-linux-gnu/python-config.py _distutils_system_mod.py'
    )
    for name in (*ours, *builds.split(), 'site-packages/abc.py', 'unittest/test/test_case.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('x = 1\n')
    monkeypatch.setattr(sysconfig, 'get_paths', lambda: {'stdlib': str(tmp_path)})
    assert list(stdlib_code()) == ['abc.py', 'json/decoder.py']


@pytest.mark.full
def test_fallbacks_are_stated(monkeypatch, caplog, tmp_path):
    assert 'fallback' not in EmbeddedCorpus('pydoc_topics').description
    monkeypatch.setitem(sys.modules, 'pydoc_data.topics', None)  # a Python without pydoc_data
    with caplog.at_level(logging.WARNING):
        documents = EmbeddedCorpus('pydoc_topics').documents('train')
    assert 'fallback' in caplog.text and 'standard library sources' in caplog.text
    assert len(documents) > 100
    monkeypatch.setattr(sysconfig, 'get_paths', lambda: {'stdlib': str(tmp_path)})  # nor sources
    for name in ('pydoc_topics', 'stdlib_code'):
        caplog.clear()
        corpus = EmbeddedCorpus(name)
        assert sum(map(len, corpus.documents('train'))) > 100_000
        for said in (caplog.text, corpus.description):
            assert 'synthetic Markov text' in said
        assert all(corpus.documents(split) for split in SPLITS)


def test_used_source_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        Language('pydoc_topics').tokens('test')
    assert 'pydoc_data.topics of Python' in caplog.text and 'split test' in caplog.text


def test_markov_text_is_the_same_every_time():
    assert markov_text() == markov_text()


def test_a_name_of_a_listing_keeps_its_value_in_a_document_and_rare_names_recur_far_away():
    texts = listings()
    values, distances = [], []
    for text in list(texts.values())[:8]:
        entries = [text[at : at + 2] for at in range(0, len(text), 2)]
        value = {entry[:1]: entry[1:] for entry in entries}
        assert all(value[entry[:1]] == entry[1:] for entry in entries)
        values.append(value)
        last: dict[bytes, int] = {}
        for at, entry in enumerate(entries):
            if entry in last:
                distances.append(at - last[entry])
            last[entry] = at
    assert len({tuple(sorted(value.items())) for value in values}) == 8
    shares = np.histogram(distances, [1, 4, 16, 64, 256, 1024, 4096])[0] / len(distances)
    assert shares[:4].min() > 0.1 and shares[4:].min() > 0.005  # in units of entries


# Text.


def test_text_files(folder):
    task = Language(f'text:{folder}/*.txt')
    texts = [task.decode(document[1:]) for split in SPLITS for document in task.documents(split)]
    written = [path.read_text(encoding='utf-8') for path in folder.glob('*.txt')]
    assert sorted(texts) == sorted(written)


def test_split_does_not_change_when_the_folder_moves(folder, tmp_path_factory, monkeypatch):
    before = Language(f'text:{folder}/*.txt').documents('test')
    other = tmp_path_factory.mktemp('other') / 'texts'
    folder.rename(other)
    absolute = Language(f'text:{other}/*.txt').documents('test')
    by_data_dir = Language('text:*.txt', data_dir=str(other)).documents('test')
    monkeypatch.chdir(other)
    by_current_folder = Language('text:*.txt').documents('test')
    assert before
    for after in (absolute, by_data_dir, by_current_folder):
        np.testing.assert_array_equal(np.concatenate(before), np.concatenate(after))


@pytest.mark.parametrize('count', [1, 2, 3, 7])
def test_a_handful_of_files_are_cut_each(tmp_path, count):
    for number in range(count):
        (tmp_path / f'{number}.txt').write_text('x' * 900 + 'y' * 50 + 'z' * 50)
    task = Language(f'text:{tmp_path}/*.txt')
    for split, expected in zip(SPLITS, ('x' * 900, 'y' * 50, 'z' * 50)):
        texts = [task.decode(document[1:]) for document in task.documents(split)]
        assert texts == [expected] * count
    said = f'{count} files, {1000 * count} bytes, each cut at 90 % and 95 %'
    assert said in task.corpus.description


def test_many_files_are_kept_whole(folder):
    task = Language(f'text:{folder}/*.txt')
    assert task.corpus.description.endswith(', split by name')
    # A book that leaves less than 1 % of the bytes to the other parts.
    (folder / 'book.txt').write_text('x' * 1_000_000)
    assert task.corpus.description.endswith(', each cut at 90 % and 95 %')
    assert all(task.decode(task.documents(split)[-1]).endswith('x' * 1000) for split in SPLITS)


def test_recursive_glob(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'a' / 'b' / 'deep.md').write_text('deep text')
    task = Language('text:**/*.md', data_dir=str(tmp_path))
    assert task.decode(task.tokens('train')) == '<bos>deep tex'


def test_empty_glob(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no file matches .*\*\.txt'):
        Language(f'text:{tmp_path}/*.txt')


@pytest.mark.parametrize(
    'data, message', [(b'abc\xff\xfe', 'byte 3 .0xff. is not UTF-8'), (b'ab\x00c', 'byte 2 is NUL')]
)
def test_a_file_that_is_not_text_is_named(folder, data, message):
    (folder / 'picture.txt').write_bytes(data)
    task = Language(f'text:{folder}/*.txt')
    with pytest.raises(ValueError, match=rf'picture\.txt is not text: {message}'):
        task.dataset(length=8, batch_size=2, seed=0)


def test_texts_that_are_too_large_together_are_refused_before_they_are_read(tmp_path, monkeypatch):
    with (tmp_path / 'a.txt').open('wb') as file:
        file.truncate(2**42)
    task = Language(f'text:{tmp_path}/*.txt')
    said = "1 files, 4398046511104 bytes, .* would take 18.4 TiB of memory; .* largest is 'a.txt'"
    with pytest.raises(ValueError, match=said):
        task.dataset(length=8, batch_size=2, seed=0)
    (tmp_path / 'a.txt').write_text('x' * 600)
    (tmp_path / 'b.txt').write_text('y' * 400)
    # All texts are read, and a byte of the split is a token of four bytes.
    monkeypatch.setattr(memory, 'main_memory', lambda: 2 * (1000 + 4 * 50))
    assert len(task.tokens('validation')) == 2 + 50
    with pytest.raises(ValueError, match='would take 4.49 KiB of memory; data may take half'):
        task.tokens('train')


def test_names_of_texts_are_on_one_line(tmp_path):
    (tmp_path / 'x\n\x1b[31m.txt').write_bytes(b'\xff')
    with pytest.raises(ValueError, match=r'/x\\n\\x1b\[31m\.txt is not text') as found:
        Language(f'text:{tmp_path}/*.txt').tokens('train')
    assert str(found.value).isprintable()


@pytest.mark.parametrize('packing', ['stream', 'documents'])
def test_corpus_shorter_than_a_sequence(tmp_path, packing):
    (tmp_path / 'short.txt').write_text('x' * 100)
    task = Language(f'text:{tmp_path}/short.txt', packing=packing)
    task.dataset(length=90, batch_size=2, seed=0)
    said = 'train split of .* has 91 tokens in 1 doc.* length 91 needs 92.* at most 90'
    with pytest.raises(ValueError, match=said):
        task.dataset(length=91, batch_size=2, seed=0)
    with pytest.raises(ValueError, match='validation split'):
        task.dataset(length=6, batch_size=2, seed=0, split='validation')


# Batches.


@pytest.mark.parametrize('packing', ['stream', 'documents'])
def test_evaluation_scores_every_token_once(packing):
    task = Language(packing=packing)
    dataset = task.dataset(length=100, batch_size=7, seed=0, split='test')
    batches = [dataset[i] for i in range(len(dataset))]
    assert all(batch['tokens'].shape == (7, 100) for batch in batches)
    scored = np.concatenate([batch['targets'][batch['loss_mask'] == 1] for batch in batches])
    stream = task.tokens('test')
    if packing == 'stream':
        np.testing.assert_array_equal(scored, stream[1:])
    else:
        np.testing.assert_array_equal(np.sort(scored), np.sort(stream[stream != BOS]))


def test_training_crops_lie_in_the_stream():
    task = Language()
    text = task.tokens('train').astype('<u2').tobytes()
    batch = task.dataset(length=64, batch_size=16, seed=0)[3]
    for tokens, targets in zip(batch['tokens'], batch['targets']):
        assert np.append(tokens, targets[-1]).astype('<u2').tobytes() in text
    assert batch['loss_mask'].all() and 'segment' not in batch


def test_crops_reach_both_ends_of_a_short_text(tmp_path):
    # The training part is <bos>abcdefghi: 10 tokens, crops of 9.
    (tmp_path / 'short.txt').write_text('abcdefghijk')
    task = Language(f'text:{tmp_path}/short.txt')
    dataset = task.dataset(length=(8, 8), batch_size=50, seed=0)
    assert {task.decode(tokens) for tokens in dataset[0]['tokens']} == {'<bos>abcdefg', 'abcdefgh'}
    assert {task.decode(targets) for targets in dataset[0]['targets']} == {'abcdefgh', 'bcdefghi'}
    sampled = task.sample(np.random.default_rng(0), 50, (8, 8))
    assert {task.decode(tokens) for tokens in sampled['tokens']} == {'<bos>abcdefg', 'abcdefgh'}


def test_packed_training_epoch_visits_every_row_once_and_the_next_in_another_order(folder):
    task = Language(f'text:{folder}/*.txt', packing='documents')
    size = pack_documents(task.documents('train'), 32).rows
    dataset = task.dataset(length=32, batch_size=1, seed=0)
    drawn = [dataset[i]['tokens'].tobytes() for i in range(2 * size)]
    first, second = drawn[:size], drawn[size:]
    assert sorted(first) == sorted(second) and first != second and len(set(first)) == size


def test_encode_and_decode_round_trip():
    task = Language()
    ids = task.encode('naïve ✓')
    assert ids[0] == BOS and ids.dtype == np.int32
    assert task.decode(ids) == '<bos>naïve ✓'
    assert task.decode(ids[1:]) == 'naïve ✓'
    assert task.decode(np.array([65, 256, 66])) == 'A<bos>B'
