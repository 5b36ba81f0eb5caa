"""A few tries of the programs of `benchmarks.fuzz` that read public checkpoints."""

import pytest

from benchmarks.fuzz.harness import attempt, load


@pytest.mark.parametrize('name', ['safetensors', 'gguf', 'tokenizers'])
def test_wrong_input_ends_in_one_line(name, tmp_path):
    pytest.importorskip('gguf')
    target = load(name)
    (good := tmp_path / 'good').mkdir()
    target.prepare(good)
    ended = [attempt(target, name, 0, number, good) for number in range(60)]
    assert {kind for kind, _ in ended} == {'read', 'refused'}, [text for kind, text in ended if kind == 'failed']
