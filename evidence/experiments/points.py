"""Orders in which recurrent layers read the points of a cloud: snakes and other curves, or random.

Command:   python -m evidence.experiments.points [--seeds 0 1 2] [--workdir runs/points]
           [--only cheems_snake cheems_random gru_snake gru_random ...]
Measured:  the class of five shapes (`shapes`) at 1, 2 and 4 times the trained 128 points. Each of
           the four layers reads the points along a curve of its own ('snake'), all along one
           ('hilbert', 'z'), or in the order in which they were drawn ('random'). The last
           differs from the others in nothing else: prompts, coordinates and sizes are the same.
Number:    docs/results/space.md: .86, .86, .87 with 'cheems_snake' and .87, .87, .86 with
           'cheems_random' on 128 points, seeds 0, 1, 2; the others were not run.
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
Paper:     Zhang et al. (arXiv 2403.00762): traverses with several orders are better than a random
           order and than z-order.
"""

from configs.points import ORDERS, pattern
from evidence.experiments.runs import Sweep

MIXERS = {'cheems': 'cheems(chunk=32, dt=0.05)', 'gru': 'gru()'}
CURVES = {
    'snake': ('xyz', 'yzx', 'zxy', 'xzy'),
    'mixed': ORDERS,
    'hilbert': ('hilbert',) * 4,
    'z': ('z',) * 4,
    'random': ('given',) * 4,
}
MODELS = {
    f'{name}_{curve}': {'pattern': pattern(mixer, orders)}
    for name, mixer in MIXERS.items()
    for curve, orders in CURVES.items()
}
EVALUATION = {'comparison': ('eval.lengths=128,256,512', 'eval.samples=1000')}

SWEEP = Sweep(
    __doc__,
    MODELS,
    workdir='runs/points',
    config='configs/points.py',
    settings=('train.save_every=100000', 'train.eval_every=300'),
    evaluation=EVALUATION,
)

if __name__ == '__main__':
    SWEEP.main()
