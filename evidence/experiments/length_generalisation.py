"""Beyond the trained length by position ids: addition, and sorting and reversing strings.

Command:   python -m evidence.experiments.length_generalisation GROUP [--seeds 0 1] [--workdir DIR]
           [--only coupled plain]
           GROUP is addition, bucket_sort or reverse
Addition:  coupled ids and index hints, trained on operands of up to 10 digits and evaluated at 10
           to 60. All sums are written in reverse. Cho et al. (arXiv 2405.20671) train on 1 to 30
           digits and report a median near 100 % to 200. Zhou et al. (arXiv 2402.09371) train on 1
           to 40 and report 98 % at 100, with a large spread between seeds.
Strings:   trained on up to 20 symbols and evaluated at 20 to 100, each encoding without and with
           randomized ids. RoPE, ALiBi and the relative encoding draw these ids anew in every layer.
           At evaluation the draw is a fixed one. Ruoss et al. (arXiv 2305.16843) train encoders on
           1 to 40 symbols and report 12 points more on average over 15 tasks.
Number:    addition, coupled, --set model.layers=1 train.steps=5000 (2 minutes a run on two free
           cores), at 10 / 12 / 15 / 20 / 30 / 60 digits:
           seed 0: 1.00 / 1.00 / .93 / .49 / .43 / 0, seed 1: 1.00 / .80 / .58 / .12 / .01 / 0
           bucket_sort, 700 steps, two seeds, exact match at 20 / 25 / 30 / 40: sinusoidal .91 / 0 /
           0 / 0, randomized .79 / .65 / .29 / .25
           reverse, 700 steps, right symbols at 40, seeds 0 and 1: sinusoidal .12, .11, randomized
           .48, .32
           the other numbers are in docs/results/length_generalisation.md
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again. Read the seeds one by one, because they differ.
"""

from evidence.experiments.runs import Sweep, main

LAYERS, LARGEST = 2, 512

PADDED = 'addition(reverse_output=True, zero_pad=True{})'
ADDITION = {
    'coupled': {
        'task': PADDED.format(', ids="coupled"'),
        'encoding': 'position_coupling(max_position=62)',
    },
    'random_start': {
        'task': PADDED.format(', ids="plain"'),
        'encoding': 'position_coupling(max_position=190)',
    },
    'plain': {'task': PADDED.format(''), 'encoding': 'learned_absolute(max_len=185)'},
    'nope': {'task': PADDED.format(''), 'encoding': 'nope()'},
    'index_hints': {'task': PADDED.format(', index_hints=102'), 'encoding': 'nope()'},
    'recipe': {
        'task': 'length_gen_recipe(ids="plain")',
        'encoding': 'randomized_pe(max_len=2048, per_row=True) | fire()',
    },
}

# The plain encoding and the randomized one. A spec with {draw} gets a number of its own in every
# layer.
RANDOMIZED = {
    'sinusoidal': ('sinusoidal()', 'randomized_pe(max_len={largest}) | sinusoidal()'),
    'rope': ('rope()', 'randomized_pe(max_len={largest}, draw={draw}) | rope()'),
    'alibi': ('alibi()', 'randomized_alibi(max_len={largest}, draw={draw})'),
    'relative': ('transformer_xl()', 'randomized_transformer_xl(max_len={largest}, draw={draw})'),
}


def strings(task: str) -> dict[str, dict[str, object]]:
    """Every encoding as it is and randomized, on one task."""
    runs = {}
    for name, (plain, randomized) in RANDOMIZED.items():
        runs[name] = {'task': task, 'encoding': plain}
        layers = tuple(
            dict.fromkeys(randomized.format(largest=LARGEST, draw=draw) for draw in range(LAYERS))
        )
        own = (
            {'encoding': layers[0]}
            if len(layers) == 1
            else {'encoding': layers[0], 'pattern': layers}
        )
        runs[f'{name}_randomized'] = {'task': task, **own}
    return runs


GROUPS = {
    'addition': ADDITION,
    'bucket_sort': strings('bucket_sort()'),
    'reverse': strings('reverse()'),
}
TRAINED = {'addition': 10, 'bucket_sort': 20, 'reverse': 20}
LENGTHS = {
    'addition': '10,12,15,20,30,60',
    'bucket_sort': '20,25,30,40,60,100',
    'reverse': '20,25,30,40,60,100',
}
SETTINGS = (
    'train.min_length=1', 'train.batch=64', 'train.steps=1500', 'train.lr=1e-3',
    'train.save_every=500', 'train.eval_every=500',
    f'model.layers={LAYERS}', 'model.width=128', 'model.heads=4',
)  # fmt: skip


SWEEPS = {
    group: Sweep(
        __doc__,
        GROUPS[group],
        workdir=f'runs/length_generalisation/{group}',
        settings=(*SETTINGS, f'train.length={TRAINED[group]}'),
        evaluation={'comparison': (f'eval.lengths={LENGTHS[group]}', 'eval.samples=200')},
    )
    for group in GROUPS
}

if __name__ == '__main__':
    main(SWEEPS)
