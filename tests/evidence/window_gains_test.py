"""What n-grams and windows of a compressor make of a text whose structure is known."""

import math

import numpy as np

from evidence.claims.results import ResultRows
from evidence.experiments import window_gains


def document(rng: np.random.Generator) -> bytes:
    """9000 letters, each of which the letter before tells up to one bit, and all of them again."""
    bits = rng.integers(0, 2, 9000)
    return (97 + np.cumsum(bits) % 26).astype(np.uint8).tobytes() * 2


def test_structure_near_and_far_is_found_where_it_is(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for number in range(6):
        (tmp_path / f'{number}.txt').write_bytes(document(rng))
    monkeypatch.setattr(window_gains, 'ORDERS', (1, 2))
    words = ['--texts', f'documents:{tmp_path}/*.txt', '--workdir', str(tmp_path / 'out')]
    window_gains.PROGRAM.main(words)
    rows = ResultRows(tmp_path / 'out').rows
    found = {(row['panel'], row['x']): row['value'] for row in rows}
    # The copies that the splits share are none; those within a document stay.
    assert 'copies of training text: 0.0% of validation, 0.0% of test' in capsys.readouterr().out
    assert abs(found['n-grams', 1] - math.log2(26)) < 0.1 and abs(found['n-grams', 2] - 1) < 0.01
    # A bit a byte, which the copy halves if the window reaches it.
    assert 1 <= found['xz', 4] < 2
    assert 0.45 < found['xz', 32] / found['xz', 4] < 0.6
    assert found['xz', 32] == found['xz', 4096]
