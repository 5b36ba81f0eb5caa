import numpy as np
import pytest

from posenc_jax.lab.tasks.grid import PatchQuestions
from posenc_jax.methods.visual_layout import visual_layout
from posenc_jax.protocol.errors import SpecError
from tests.refusals import refused


def questions(task, length, batch=150):
    """The patches [frames, rows, columns] of each row of a batch, its question and its answer as
    words, and the row's positions.
    """
    data = task.sample(np.random.default_rng(0), batch, length)
    for number, layout in enumerate(data['positions']):
        frames = layout[:, 1].max() + 1
        rows, columns = layout[1, 4:]
        said = task.decode(data['tokens'][number]).split()
        end = 1 + frames * rows * columns
        assert (said[0], said[end]) == ('<', '>')
        asked = end + 1 + said[end + 1 :].count('.')
        assert {*said[end + 1 : asked]} <= {'.'} and {*said[asked + 3 :]} <= {'_'}
        row, column = (int(word[1:]) for word in said[asked : asked + 2])
        answer = task.decode(data['targets'][number][data['loss_mask'][number] == 1])
        told = visual_layout(1, (int(frames), int(rows), int(columns)), len(layout) - end)
        np.testing.assert_array_equal(layout, told)
        patches = np.array(said[1:end]).reshape(frames, rows, columns)
        yield patches, row, column, answer


@pytest.mark.parametrize('length', [(1, 5), 4])
@pytest.mark.parametrize('asked', [None, 2])
def test_the_answer_is_the_colour_of_the_patch(length, asked):
    task, sizes, places = PatchQuestions(asked=asked, ids='layout'), set(), set()
    for (picture,), row, column, answer in questions(task, length):
        assert answer == picture[row, column]
        sizes.add(picture.shape)
        places.add((row, column))
    assert sizes == {(4, 4)} if length == 4 else len(sizes) == 25
    most = 2 if asked else 4
    assert max(max(place) for place in places) == most - 1 + (length != 4 and asked is None)


@pytest.mark.parametrize('question', ['colour', 'time'])
def test_text_stands_between_the_picture_and_the_question(question):
    task = PatchQuestions(question, between=3, ids='layout')
    tokens = task.sample(np.random.default_rng(0), 64, 3)['tokens']
    assert {*(tokens == task.names.index('.')).sum(1).tolist()} == {0, 1, 2, 3}
    for patches, row, column, answer in questions(task, 3):
        own = patches[:, row, column]
        if question == 'colour':
            assert answer == own[0]
        else:
            assert own[int(answer[1:])] != own[int(answer[1:]) - 1]


@pytest.mark.parametrize('asked', [None, 3])
def test_the_answer_is_the_frame_in_which_the_patch_changed(asked):
    task, lengths, answers = PatchQuestions('time', asked=asked, ids='layout'), set(), set()
    for video, row, column, answer in questions(task, (2, 6)):
        frame = int(answer.removeprefix('f'))
        own = video[:, row, column]
        assert len({*own[:frame]}) == len({*own[frame:]}) == 1 and own[0] != own[-1]
        assert ((video[1:] != video[:-1]).sum(axis=0) == 1).all()
        lengths.add(len(video))
        answers.add(frame)
    assert lengths == {2, 3, 4, 5, 6} and answers == {*range(1, 3 if asked else 6)}


test_refused = refused(
    {
        '17 rows and columns need as many names, but places=16; nearest: 16': lambda: (
            PatchQuestions().width(17)
        ),
        'number of frames must be at least 2, got 1': lambda: PatchQuestions('time').width(1),
    }
)
test_refused_options = refused(
    {
        'at least 2 colours and a side of at most places=16, got colours=1': lambda: PatchQuestions(
            'time', colours=1
        ),
        'asked=2.* has one answer, frame 1, .*nearest is asked=3': lambda: PatchQuestions(
            'time', asked=2
        ),
        'got colours=8 and side=17': lambda: PatchQuestions('time', side=17),
    },
    SpecError,
)
