"""`benchmarks/accelerator.py` runs on a CPU, and an error does not end its page."""

import importlib
import pathlib
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module('accelerator')
    for name in ('accelerator', 'measure', 'train_step'):
        sys.modules.pop(name, None)


@pytest.mark.full
def test_attention_and_decoding_have_a_row_for_every_contender(accelerator, monkeypatch):
    sizes = accelerator.Sizes((16,), 2, (8,), 1, 16, (8, 16), ((1, 8),), 2)
    table = list(accelerator.attention_rows(sizes, 1, ['alibi()', 'wrong()']))
    names = [accelerator.LIBRARY, 'alibi()', 'wrong()', 'alibi of FlexAttention']
    assert [row[0] for row in table] == names
    assert float(table[1][3].split()[0]) > 0 and 'wrong' in table[2][3]
    monkeypatch.setattr(accelerator, 'TRAINED', ('alibi()', 'learned_absolute(max_len=4)'))
    good, bad = accelerator.decode_rows(sizes, 1)
    assert good[0] == 'alibi()'
    assert all(float(number.replace(',', '')) > 0 for number in good[3:])
    assert bad[:3] == ('learned_absolute(max_len=4)', '1', '8') and 'Error' in bad[3]


@pytest.mark.full
def test_every_encoding_and_every_device_is_known(accelerator):
    assert {'rope()', 'nope()'} <= set(accelerator.every_encoding())
    kinds = {'TPU v5': 459e12, 'TPU v5 lite': 197e12, 'TPU v6 lite': 918e12, 'NVIDIA B200': 2250e12}
    for kind, rate in kinds.items():
        assert accelerator.peak(kind) == rate * len(accelerator.jax.devices())
    assert accelerator.peak('cpu') is None
