"""RoPE and others trained from the start on text, and what extensions do to the logits of RoPE.

Command:   python -m evidence.experiments.rotary_text [--seeds 0 1 2] [--only NAME ...]
           [--workdir runs/rotary_text]
Time:      about 32 minutes a seed on one core
Number:    docs/claims.md, claims R1, R19 and R32
RoPE, p-RoPE, CARoPE, TAPA, PSC, CABLE and TRA are trained in windows of 64 bytes of English text.
So is RoPE of base 100, with all frequencies and without the slowest quarter (p-RoPE). With base
10,000 this quarter hardly turns within 64 bytes; with base 100 the slowest frequency makes as
large a part of a turn within a window as in the models of the paper, about 0.85 radians. The same
bytes are read in windows of 64 to 256, by RoPE with extensions besides.
Results:   WORKDIR/comparison; WORKDIR/planes has, of RoPE with every extension in windows of 256
           bytes, the share of the slower half of the frequencies in the logits that attention
           weighs (`token_distance`), and the score of that analysis. Runs whose last step is saved
           are not trained again.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from evidence.experiments.runs import Sweep
from evidence.experiments.tables import report
from posenc_jax.lab.analyse.token_distance import token_distance
from posenc_jax.lab.runs.prepare import UNASKED, prepare

LENGTH, FAR, SEQUENCES = 64, 256, 8
ENCODINGS = {
    'rope': 'rope()',
    'rope_100': 'rope(base=100.0)',
    'p_rope_100': 'rope(base=100.0, freqs=p_rope(p=0.75))',
    'carope': 'carope()',
    'tapa': 'tapa()',
    'p_rope': 'rope(freqs=p_rope(p=0.75))',
    'psc': 'psc() | rope()',
    'cable': 'cable()',
    'tra': 'tra()',
}
# Extensions to four times the length, and none.
EXTENSIONS = (
    '', 'pi(factor=4.0)', 'ntk_aware(factor=4.0)', 'ntk_aware(factor=8.0)', 'yarn(factor=4.0)',
    'abf()', 'giraffe(truncated=True)',
)  # fmt: skip
SETTINGS = (
    'model.layers=4', 'model.width=128', 'model.heads=4', f'train.length={LENGTH}',
    'train.batch=16', 'train.steps=2000', 'train.lr=2e-3', 'train.warmup=100',
    'train.eval_every=500', 'train.save_every=100000',
)  # fmt: skip
EVALUATION = {
    'comparison': (
        'eval.lengths=64,128,256', 'eval.protocols=same_tokens', 'eval.tokens=16384',
        'eval.stride=32',
    )
}  # fmt: skip


def shares(directories: Mapping[tuple[str, int], str], out: pathlib.Path) -> None:
    """Measures RoPE with every extension.

    Args:
      directories: (name, seed) -> directory of a run.
      out: the folder of the results.
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
        report(rows, out, title='Planes of RoPE', x='length', value='value')


@dataclasses.dataclass(frozen=True)
class Measured(Sweep):
    """A sweep whose RoPE is also measured with every extension."""

    def main(self, arguments=None):
        directories = super().main(arguments)
        shares(directories, pathlib.Path(next(iter(directories.values()))).parent / 'planes')
        return directories


SWEEP = Measured(
    __doc__,
    ENCODINGS,
    [('rope', extension) for extension in EXTENSIONS if extension],
    workdir='runs/rotary_text',
    settings=SETTINGS,
    evaluation=EVALUATION,
)

if __name__ == '__main__':
    SWEEP.main()
