import numpy as np
import pytest

from posenc_jax.lab.tasks.grid import NeedleVideo
from posenc_jax.methods.visual_layout import visual_layout


@pytest.mark.parametrize('length', [(1, 9), 12])
def test_the_answer_is_the_colour_of_the_needle(length):
    task, needles, others, sizes = NeedleVideo(period=4, ids='layout'), set(), set(), set()
    data = task.sample(np.random.default_rng(0), 150, length)
    for number, layout in enumerate(data['positions']):
        count = layout[:, 1].max() + 1
        said = task.decode(data['tokens'][number]).split()
        assert (said[0], *said[3 * count + 1 : 3 * count + 3]) == ('<', '>', '?')
        frames = [tuple(said[n : n + 3]) for n in range(1, 3 * count, 3)]
        (needle,) = (n for n, frame in enumerate(frames) if frame[:2] == ('a', 'b'))
        answer = task.decode(data['targets'][number][data['loss_mask'][number] == 1])
        assert answer == frames[needle][2]
        alike = [n for n, frame in enumerate(frames) if n != needle and frame[:2] != ('.', '.')]
        assert len({frames[n][:2] for n in alike} | {('a', '.'), ('.', 'b')}) == 2
        assert len({frames[n][:2] for n in alike}) <= 1 and len({n % 4 for n in alike}) <= 1
        if alike:
            recurs = {*range(alike[0] % 4, count, 4)}
            assert recurs - {needle} == {*alike}
        told = visual_layout(1, (int(count), 1, 3), len(layout) - 1 - 3 * int(count))
        np.testing.assert_array_equal(layout, told)
        needles.add(needle)
        others |= {frames[n][:2] for n in alike}
        sizes.add(int(count))
    assert sizes == ({12} if length == 12 else {*range(1, 10)})
    assert needles == {*range(max(sizes))} and others == {('a', '.'), ('.', 'b')}
