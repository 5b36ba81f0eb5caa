import numpy as np
import pytest

from posenc_jax.lab.tasks.coupling import coupled_grid_ids
from posenc_jax.lab.tasks.grid import Minesweeper


def boards(task, length, batch=100):
    """Question and answer as boards, with everything else of the row; sides are read off the
    coupled ids.
    """
    data = task.sample(np.random.default_rng(0), batch, length)
    for row in range(batch):
        said = task.decode(np.append(data['tokens'][row, :1], data['targets'][row])).rstrip('_')
        assert said[0] == said[-1] == '$'
        yield *said[1:-1].split('='), {name: array[row] for name, array in data.items()}


@pytest.mark.parametrize('length', [(1, 5), 4])
def test_answers_count_the_mines_around(length):
    task, sides = Minesweeper(ids='coupled'), set()
    for question, answer, row in boards(task, length):
        columns, rows = row['positions'].max(axis=0) - 1
        sides.add((int(columns), int(rows)))
        assert len(question) == len(answer) == columns * rows
        at = {(cell % columns, cell // columns): symbol for cell, symbol in enumerate(question)}
        for cell, symbol in enumerate(answer):
            x, y = cell % columns, cell // columns
            steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            around = sum(at.get((x + i, y + j)) == '*' for i, j in steps)
            assert symbol == ('*' if at[x, y] == '*' else str(around))
        ids = coupled_grid_ids(columns, rows, width=len(row['positions']) + 1)
        np.testing.assert_array_equal(row['positions'], ids[:-1])
        assert task.decode(row['targets'][row['loss_mask'] == 1]) == answer + '$'
    assert sides == ({(4, 4)} if length == 4 else sides) and (length == 4 or len(sides) > 15)


def test_mines_are_as_many_as_asked():
    for mines in (0.0, 0.3, 1.0):
        cells = ''.join(question for question, *_ in boards(Minesweeper(mines=mines), 5, 200))
        error = 5 * (0.21 / 5000) ** 0.5 if mines == 0.3 else 0
        assert cells.count('*') / len(cells) == pytest.approx(mines, abs=error)


def test_a_cell_of_the_answer_has_the_ids_of_the_cell_of_the_question():
    ids = coupled_grid_ids(3, 4, start=(5, 9))
    np.testing.assert_array_equal(ids[1:13], ids[14:26])
    assert ids[13].tolist() == [5, 9] and len({tuple(pair) for pair in ids[1:13]}) == 12
    batch = coupled_grid_ids(np.array([2, 3]), np.array([3, 1]), width=20)
    np.testing.assert_array_equal(batch[1], coupled_grid_ids(3, 1, width=20))
