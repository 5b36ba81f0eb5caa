"""Positions of functions: rows of every split, evaluation in windows, public tokenizers, and text
that does not parse.
"""

import numpy as np
import pytest

from posenc_jax.lab.config import defaults
from posenc_jax.lab.evaluate.language import evaluate_language
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.tasks.language import BOS, CodeText
from posenc_jax.methods.hirope import hirope_ids
from posenc_jax.protocol.errors import SpecError

MODULE = (
    'import os\n\n\ndef first(a):\n    return a\n\n\n@cache\nclass Second:\n    """é def '
    'no():"""\n\n\nx = 1\n'
)
UNITS = [
    'import os\n\n\n',
    'def first(a):\n    return a\n\n\n',
    '@cache\nclass Second:\n    """é def no():"""\n\n\n',
    'x = 1\n',
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Forty modules of the same text, so that whole documents are split."""
    folder = tmp_path_factory.mktemp('modules')
    for number in range(40):
        (folder / f'{number}.py').write_text(MODULE, encoding='utf-8')
    return folder


def of(folder, **options):
    return CodeText(f'text:{folder}/*.py', **options)


def test_every_token_of_a_document_knows_its_unit(folder):
    task = of(folder)
    one, two, *_ = task.unit_numbers('train')
    sizes = [len(unit.encode()) for unit in UNITS]
    sizes[0] += 1  # the token in front
    assert one.tolist() == np.repeat(np.arange(4), sizes).tolist()
    assert (two == one + 4).all(), 'a document begins a unit'
    assert task.documents('train')[0][0] == BOS and len(one) == len(task.documents('train')[0])


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_rows_have_the_positions_of_the_text_they_hold(folder, split):
    task = of(folder)
    data = task.dataset(length=150, batch_size=3, seed=0, split=split)
    rows = [data[n] for n in range(2)] + [task.sample(np.random.default_rng(1), 3, 150)]
    begins = {ord('i'), ord('d'), ord('@'), ord('x'), BOS}
    for batch in rows:
        flat, offset, unit = np.moveaxis(batch['positions'], -1, 0)
        np.testing.assert_array_equal(flat, np.broadcast_to(np.arange(150), flat.shape))
        np.testing.assert_array_equal(np.stack(hirope_ids(unit)), [offset, unit])
        starts = (np.diff(unit, axis=1, prepend=0) > 0) & (batch['loss_mask'] > 0)
        assert starts.sum() > 5 and set(batch['tokens'][starts]) <= begins
        wanted = (batch['tokens'] == BOS) | np.isin(batch['tokens'], [ord('@')])
        assert not (wanted[:, 1:] & ~starts[:, 1:] & (batch['loss_mask'][:, 1:] > 0)).any()


def test_evaluation_counts_in_every_window_anew(folder):
    task, seen = of(folder), []

    def score(tokens, targets, tok, key):
        seen.append((np.asarray(tokens), np.asarray(tok.pos)))
        return np.ones(tokens.shape), np.ones(tokens.shape, bool)

    stream = task.tokens('test')
    how = dict(tokens=len(stream), rows=lambda n: 2, stride=8, places=task.places('test'))
    evaluate_language(score, stream, (64,), ('nonoverlapping',), **how)
    tokens, pos = seen[0]
    units = np.concatenate(task.unit_numbers('test'))
    np.testing.assert_array_equal(tokens[1], stream[64:128])
    np.testing.assert_array_equal(pos[1, :, 1:], np.stack(hirope_ids(units[64:128]), axis=-1))
    assert pos[:, 0].tolist() == [[0, 0, 0]] * 2


def test_hirope_reads_them_and_what_takes_no_such_positions_says_so(folder):
    config = defaults.get_config()
    config.task, config.eval.lengths = 'code_text()', (64,)
    config.data.dataset = f'text:{folder}/*.py'
    sizes = dict(vocab_size=257, train_len=32, layers=1, width=16, heads=2)
    cfg = lambda encoding: TransformerConfig(**sizes, encoding=encoding)
    with config.unlocked():
        config.eval.tokens = 64
    run = lambda encoding: Run(folder, config, of(folder), cfg(encoding))
    run('hirope(encoding=rope(), window=8)').check_evaluation()
    said = r'at length 64: a distance needs one position per token .* got .*64, 3'
    with pytest.raises(SpecError, match=said):
        run('alibi()').check_evaluation()


def test_paragraphs_and_lines(folder, tmp_path):
    (tmp_path / 'a.txt').write_text('One.\n\nTwo\nlines.\n\nThree.\n' * 60, encoding='utf-8')
    prose = CodeText(f'text:{tmp_path}/*.txt', units='paragraphs')
    numbers = prose.unit_numbers('train')[0]
    text = prose.decode(prose.documents('train')[0][1:])
    assert numbers[1 + text.index('lines')] == 1 and numbers[1 + text.index('Three')] == 2
    numbers = [of(folder, units=u).unit_numbers('train') for u in ('lines', 'python')]
    np.testing.assert_array_equal(*map(np.concatenate, numbers))


def test_what_does_not_parse_is_refused(tmp_path):
    (tmp_path / 'broken.py').write_text('def broken(:\n' * 40, encoding='utf-8')
    said = r"'def broken\(:' \.\.\.: .*does not parse.*code_text\(units='lines'\)"
    with pytest.raises(ValueError, match=said):
        CodeText(f'text:{tmp_path}/*.py').places('train')
