"""What extensions do to the logits of RoPE, for `rotary_text`.

WORKDIR/planes has, of RoPE with every extension in windows of 256 bytes, the share of the slower
half of the frequencies in the logits that attention weighs (`token_distance`), and the score of
that analysis.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from evidence.experiments.sweep import read
from evidence.experiments.tables import report
from posenc_jax.lab.analyse.token_distance import token_distance
from posenc_jax.lab.runs.prepare import UNASKED, prepare

FAR, SEQUENCES = 256, 8
# Those that the sweep evaluates, and none.
EXTENSIONS = ('', *(run.partition(' | ')[2] for run in read('rotary_text')[''].extended))


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures RoPE with every extension.

    Args:
      directories: (name, seed) -> directory of a run.
      workdir: its folder `planes` gets the results.
    """
    rows = []
    for (name, seed), directory in directories.items():
        for extension in EXTENSIONS if name == 'rope' else ():
            job = prepare(f'{directory} | {extension}' if extension else directory, UNASKED)
            text = np.asarray(job.task.tokens('test'))
            starts = np.linspace(0, len(text) - FAR, SEQUENCES).astype(int)
            model = job.extended(job.load()[0])
            found = token_distance(model, np.stack([text[s : s + FAR] for s in starts]))
            half = found.alloc.shape[-1] // 2
            for panel, value in (
                ('share of the slower half', found.alloc[..., half:].sum(-1).mean()),
                ('score', found.score.mean()),
            ):
                rows.append((panel, extension or 'none', FAR, seed, float(value)))
    if rows:
        report(rows, workdir / 'planes', title='Planes of RoPE', x='length', value='value')
