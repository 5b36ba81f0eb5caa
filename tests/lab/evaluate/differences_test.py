"""Differences of losses on the same tokens, with their interval over documents."""

import dataclasses

import numpy as np
import pytest
import rich.console
import scipy.stats

from posenc_jax.lab.evaluate.differences import differences
from posenc_jax.lab.evaluate.measurement import perplexity, spread_name
from posenc_jax.lab.evaluate.results import Results, read
from posenc_jax.lab.evaluate.series import RunResult, group
from posenc_jax.lab.evaluate.tables import tables

DOCUMENTS = np.array([[0, 0, 1, 1], [1, 2, 2, 2]])
EASY_AND_HARD = np.array([[0.1, 0.2, 3.0, 3.5], [2.5, 7.0, 6.0, 8.0]])
SCORED = np.ones((2, 4), bool)


def run(name, nll, seed=0, documents=DOCUMENTS, protocol='sliding'):
    measured = perplexity(protocol, 4, nll, SCORED, SCORED, 8, documents=documents)
    return RunResult(
        run=f'runs/{name}-{seed}', encoding=name, extend='', task='language()',
        dataset='pydoc_topics', split='test', positions='first', seed=seed, step=1, train_length=4,
        parameters=1, settings={'encoding': name}, measurements=(measured,),
    )  # fmt: skip


def found(*runs):
    return differences(group(runs), ('sliding',))


def test_the_interval_of_many_documents_is_that_of_their_draws():
    """Twelve documents of one token each: sums of twelve draws of 0 or 1 are binomial."""
    numbers, more = np.arange(12).reshape(2, 6), np.arange(12).reshape(2, 6) % 2.0
    ones = np.ones((2, 6), bool)

    def of(name, nll):
        measured = perplexity('sliding', 6, nll, ones, ones, 12, documents=numbers)
        return dataclasses.replace(run(name, EASY_AND_HARD), measurements=(measured,))

    (one,) = found(of('rope()', 1 + more), of('alibi()', 1 + 2 * more))
    low, high = scipy.stats.binom(12, 0.5).ppf([0.025, 0.975]) / 12
    assert (one.value, one.low, one.high) == pytest.approx((0.5, low, high))
    assert (one.label, one.against, one.length) == ('alibi()', 'rope()', 6)
    assert spread_name(one.groups, one.drawn) == '95 % interval'


def test_few_documents_have_a_range():
    more = np.array([[0.1, 0.2, 0.3, 0.1], [0.2, 0.6, 0.5, 0.7]])
    (one,) = found(run('rope()', EASY_AND_HARD), run('alibi()', EASY_AND_HARD + more))
    assert one.value == pytest.approx(more.mean())
    # the documents have 2, 3 and 3 tokens
    assert (one.low, one.high) == pytest.approx((0.3 / 2, 1.8 / 3))
    assert spread_name(one.groups, one.drawn) == 'range of 3 documents'
    (measured,) = run('rope()', EASY_AND_HARD).measurements
    assert (measured.low, measured.high) == pytest.approx((np.exp(0.3 / 2), np.exp(7.0)))
    assert measured.spread == 'range of 3 documents'


def test_it_is_far_narrower_than_the_intervals_of_both():
    runs = run('rope()', EASY_AND_HARD), run('alibi()', EASY_AND_HARD + 0.1)
    (one,) = found(*runs)
    assert one.high - one.low == pytest.approx(0, abs=1e-9)
    for r in runs:
        assert r.measurements[0].high > 10 * r.measurements[0].low


def test_seeds_of_a_series_are_averaged_for_each_document():
    first = [run('rope()', EASY_AND_HARD + d, s) for s, d in enumerate((0.0, 0.4))]
    other = [run('alibi()', EASY_AND_HARD + d, s) for s, d in enumerate((0.3, 0.5, 1.0))]
    (one,) = found(*first, *other)
    assert one.value == pytest.approx(0.6 - 0.2)


@pytest.mark.parametrize(
    'other',
    [
        run('alibi()', EASY_AND_HARD, documents=np.array([[0, 0, 0, 1], [1, 2, 2, 2]])),
        run('alibi()', EASY_AND_HARD, documents=DOCUMENTS + 1),
        run('alibi()', EASY_AND_HARD, protocol='nonoverlapping'),
        dataclasses.replace(run('alibi()', EASY_AND_HARD), dataset='listings'),
        dataclasses.replace(run('alibi()', EASY_AND_HARD), split='validation'),
        dataclasses.replace(run('alibi()', EASY_AND_HARD), settings={'data.tokenizer': 'a.gguf'}),
    ],
    ids=['tokens', 'documents', 'protocol', 'text', 'split', 'tokenizer'],
)
def test_other_tokens_are_not_compared(other):
    assert found(run('rope()', EASY_AND_HARD), other) == ()


def test_windows_stand_in_for_the_documents_of_one_text():
    one = np.zeros((2, 4), int)
    (of_windows,) = found(
        run('rope()', EASY_AND_HARD, documents=one), run('alibi()', EASY_AND_HARD, documents=one)
    )
    assert (of_windows.drawn, of_windows.groups) == ('windows', 2)
    windowed = run('rope()', EASY_AND_HARD, documents=one)
    assert differences(group([windowed]), ('sliding',)) == ()


def test_files_keep_the_documents_and_the_differences(tmp_path):
    runs = run('rope()', EASY_AND_HARD), run('alibi()', EASY_AND_HARD + 0.1)
    results = Results(runs, '2026-01-02T03:04:05+00:00', {})
    results.write_numbers(tmp_path)
    assert read(tmp_path) == runs
    again = Results(read(tmp_path), '', {})
    assert again.differences == results.differences != ()
    with pytest.raises(ValueError, match='was not written by an evaluation'):
        (tmp_path / 'documents.csv').write_text('row,number\n0,1\n')
        read(tmp_path)


def test_a_task_without_documents_writes_none_and_reads_none_of_an_earlier_one(tmp_path):
    text = run('rope()', EASY_AND_HARD)
    Results((text,), '', {}).write_numbers(tmp_path)
    without = dataclasses.replace(
        text, measurements=tuple(dataclasses.replace(m, groups=()) for m in text.measurements)
    )
    assert (tmp_path / 'documents.csv') not in Results((without,), '', {}).write_numbers(tmp_path)
    assert read(tmp_path) == (without,)


def test_the_table_names_what_is_compared():
    runs = run('rope()', EASY_AND_HARD), run('alibi()', EASY_AND_HARD + 0.125)
    console = rich.console.Console(width=100)
    with console.capture() as capture:
        console.print(tables(Results(runs, '', {}), console)[-1])
    text = ' '.join(capture.get().split())
    assert 'nats a token above rope(), sliding' in text
    assert '+0.125' in text and '+0.125 to +0.125' in text
    assert 'range of 3 documents, of both sides at once' in text
