"""Positions that a task supplies, draws or tells: small comparisons with models that have none.

Command:   python -m evidence.experiments.positions GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME]
           GROUP is one of
  addition    sums in one layer, with `position_coupling`, from a random start and without positions
  spaces      sums of longer numbers than in training, with random spaces and with random tags
  code_mixed  letters behind switches of the language, with `conflator` and with RoPE
  characters  characters of tokens, with and without the mappings of `tipa` in training
Number:    docs/claims.md, claims A2, A7, A33 and A36
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
Paper:     Cho et al. (arXiv 2405.20671): one layer with coupled positions adds, and one without any
           positions cannot. Shen et al. (arXiv 2311.14737): random spaces and tags extend addition.
           Ali et al. (arXiv 2309.05270): rotary positions with switching points are best on
           code-mixed text. Xu et al. (arXiv 2411.17679): mappings from positions to characters
           teach the characters of tokens.
"""

from evidence.experiments.runs import Sweep, main

PADDED = 'addition(reverse_output=True, zero_pad=True{})'
SWITCHES = 'code_mixed(ids="switches")'
# RoPE of the flat position; the rotation of `hirope` for far tokens is never used.
PLAIN_ROPE = 'hirope(encoding=rope(), window=4096)'
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    'addition': {
        'coupled': {
            'task': PADDED.format(', ids="coupled"'),
            'encoding': 'position_coupling(max_position=24)',
        },
        'random_start': {
            'task': PADDED.format(', ids="plain"'),
            'encoding': 'position_coupling(max_position=48)',
        },
        'nope': {'task': PADDED.format(''), 'encoding': 'nope()'},
    },
    'spaces': {
        'plain': {'task': PADDED.format(''), 'encoding': 'sinusoidal()'},
        'spaces': {
            'task': f'random_spaces(task={PADDED.format("")}, most=1)',
            'encoding': 'sinusoidal()',
        },
        'tags': {'task': PADDED.format(''), 'encoding': 'positional_description(width=32)'},
    },
    'code_mixed': {
        'conflator': {'task': SWITCHES, 'encoding': 'conflator()'},
        'conflator_unigram': {'task': SWITCHES, 'encoding': 'conflator(unigram_only=True)'},
        'rope': {'task': 'code_mixed()', 'encoding': 'rope()'},
        'rope_told': {
            'task': SWITCHES,
            'encoding': f'learnable_fourier(components=3) | {PLAIN_ROPE}',
        },
    },
    'characters': {
        'questions': {'task': 'tipa(form="character")', 'encoding': 'rope()'},
        'with_mappings': {'task': 'tipa(form="both")', 'encoding': 'rope()'},
        'with_forward_mappings': {'task': 'tipa(form="both", reverse=False)', 'encoding': 'rope()'},
    },
}
SIZES = (
    'model.heads=4', 'train.warmup=100', 'train.save_every=100000', 'train.eval_every=1000',
    'train.eval_batches=4',
)  # fmt: skip
SETTINGS = {
    'addition': (
        'model.layers=1', 'model.width=128', 'train.length=6', 'train.min_length=1',
        'train.batch=64', 'train.steps=2500', 'train.lr=2e-3',
    ),
    'spaces': (
        'model.layers=2', 'model.width=128', 'train.length=6', 'train.min_length=1',
        'train.batch=32', 'train.steps=3000', 'train.lr=2e-3',
    ),
    'code_mixed': (
        'model.layers=2', 'model.width=64', 'train.length=32', 'train.min_length=7',
        'train.batch=64', 'train.steps=1000', 'train.lr=2e-3',
    ),
    'characters': (
        'model.layers=2', 'model.width=64', 'train.length=1', 'train.min_length=1',
        'train.batch=64', 'train.steps=2000', 'train.lr=2e-3',
    ),
}  # fmt: skip
EVALUATION = {
    'addition': ('eval.lengths=6,8', 'eval.samples=500'),
    'spaces': ('eval.lengths=6,7,8', 'eval.samples=500'),
    'code_mixed': ('eval.lengths=32,64', 'eval.samples=500'),
    'characters': ('eval.lengths=1', 'eval.samples=1000'),
}
SWEEPS = {
    group: Sweep(
        __doc__,
        own,
        workdir=f'runs/positions/{group}',
        config='configs/default.py',
        settings=(*SIZES, *SETTINGS[group]),
        evaluation={'comparison': EVALUATION[group]},
    )
    for group, own in GROUPS.items()
}

if __name__ == '__main__':
    main(SWEEPS)
