"""Images: positions when the grid grows, tables of offsets that read the content, and shifts.

Command:   python -m evidence.experiments.images GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME ...]
           GROUP is one of
  growing    `peg` and `mix_ffn` against `learned_grid` at 1, 1.5 and 2 times the trained size: in
             which quarter of the image is the blob (`quadrant`); larger images show more of the
             scene, or the same scene at a higher resolution
  objects    the same, where places do not matter: the direction from a dark to a bright blob,
             anywhere (`blobs`). The table learns it in about 1500 batches, the others in 200
  offsets    `irpe` with contextual terms against one bias for each offset, on digits
  shift      the shift consistency of trained models with `polyphase_anchor`, with `learned_grid`,
             and with the zero padding of `peg`, on digits
Number:    seeds 0, 1, 2. growing, more of the scene at 2 times the size: `learned_grid` .81, .72,
           .98, `peg` .68, .68, .76, `mix_ffn` .55, .55, .54; chance is .25.
           offsets: accuracy .77, .75, .84 contextual, .76, .75, .79 bias, .80, .81, .80 without
           positions. shift: consistency 1.0, 1.0, 1.0 with `polyphase_anchor`, .25, .29, .26 with
           `learned_grid`, .28, .30, .27 with `peg`
Time:      5 to 11 s of processor time a run, and 10 to 20 s for the first one of a variant
Results:   WORKDIR/comparison ('growing': WORKDIR/scene, WORKDIR/detail; 'shift' also
           WORKDIR/shifts); docs/results/space.md has the numbers. Runs whose last step is saved are
           not trained again, so the sweep may be interrupted and started again.
Paper:     Chu et al. (arXiv 2102.10882) and Xie et al. (arXiv 2105.15203): no loss, or little, at
           larger images, where learned tables lose. Wu et al. (arXiv 2107.14222): contextual terms
           are better than a bias. Ding et al. (arXiv 2306.07470): 100 % shift consistency.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from evidence.experiments.runs import Sweep, main
from evidence.experiments.tables import report
from posenc_jax.lab.analyse.shift_consistency import shift_consistency
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.images import Digits

GROWING: dict[str, dict[str, object]] = {
    'learned_grid': {'encoding': 'learned_grid(4, 4)'},
    'peg': {'encoding': 'peg()'},
    'mix_ffn': {'encoding': 'nope()', 'model.mlp': 'mix_ffn'},
}
OWN = 8  # pixels along a side of the digits
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    'growing': GROWING,
    'objects': GROWING,
    'offsets': {
        'nope': {'encoding': 'nope()'},
        'bias': {'encoding': 'irpe(mode="bias", shared=False)'},
        'contextual': {'encoding': 'irpe()'},
    },
    'shift': {
        'learned_grid': {'encoding': 'learned_grid(4, 4)'},
        'peg': {'encoding': 'peg(depth=0)'},
        'polyphase_anchor': {'encoding': 'polyphase_anchor()'},
    },
}
SIZES = (
    'model.width=64', 'model.heads=4', 'train.batch=32', 'train.lr=2e-3', 'train.warmup=20',
    'train.eval_every=200', 'train.eval_batches=4', 'train.save_every=100000',
)  # fmt: skip
SETTINGS = {
    'growing': (
        *SIZES, 'task=quadrant()', 'model.patch=4', 'model.layers=2', 'train.steps=400',
    ),
    'objects': (*SIZES, 'task=blobs()', 'model.patch=4', 'model.layers=2', 'train.steps=2000'),
    'offsets': (
        *SIZES, 'task=digits()', f'train.length={OWN}', 'model.layers=2', 'train.steps=400',
    ),
    # Larger digits repeat every pixel, and then several phases of an image are the same.
    'shift': (
        *SIZES, 'task=digits()', f'train.length={OWN}', 'model.layers=2', 'train.steps=400',
    ),
}  # fmt: skip
EVALUATION: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        group: {
            larger: (
                f"task={task}(larger='{larger}')", 'eval.lengths=16,24,32', 'eval.samples=256',
            )
            for larger in ('scene', 'detail')
        }
        for group, task in (('growing', 'quadrant'), ('objects', 'blobs'))
    },
    'offsets': {'comparison': (f'eval.lengths={OWN}', 'eval.samples=256')},
    'shift': {'comparison': (f'eval.lengths={OWN}', 'eval.samples=256')},
}  # fmt: skip


def shifts(directories: Mapping[tuple[str, int], str], out: pathlib.Path) -> None:
    """Measures trained models on the digits of the test split, and on shifts of them.

    Args:
      directories: (name, seed) -> directory of a run.
      out: the folder of the results.
    """
    digits = Digits()
    images, classes = digits.pictures(digits.numbers('test'), OWN)
    images, key = jnp.asarray(images, jnp.float32), jax.random.key(0)
    by = jax.random.randint(jax.random.key(1), (len(images), 2), 0, OWN)
    rolled = jax.vmap(lambda image, by: jnp.roll(image, (by[0], by[1]), (0, 1)))(images, by)
    rows, largest = [], []
    for (name, seed), directory in directories.items():
        _, model, _ = restore_model(directory)
        found = shift_consistency(model, images, key)
        right = [
            float((np.asarray(model(x))[:, 0].argmax(-1) == classes).mean())
            for x in (images, rolled)
        ]
        for what, value in zip(
            ('consistency', 'accuracy', 'accuracy, shifted'), (found.share, *right)
        ):
            rows.append((what, name, OWN, seed, value))
        largest.append(f'{name}, seed {seed}: logits differ by at most {found.largest:.2g}')
    report(rows, out, title='digits', x='pixels', value='share')
    print('\n'.join(largest))


@dataclasses.dataclass(frozen=True)
class Shifted(Sweep):
    """A sweep whose models are also measured on shifted digits."""

    def main(self, arguments=None):
        directories = super().main(arguments)
        first = next(iter(directories.values()))
        shifts(directories, pathlib.Path(first).parent / 'shifts')
        return directories


SWEEPS = {
    group: (Shifted if group == 'shift' else Sweep)(
        __doc__,
        encodings,
        workdir=f'runs/images/{group}',
        config='configs/vit.py',
        settings=SETTINGS[group],
        evaluation=EVALUATION[group],
    )
    for group, encodings in GROUPS.items()
}

if __name__ == '__main__':
    main(SWEEPS)
