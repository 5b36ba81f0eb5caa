"""Features of position in graph networks: which graphs they tell apart, and counting triangles.

Command:   python -m evidence.experiments.graphs GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME ...]
           GROUP is one of
  pairs      three pairs of graphs that colour refinement cannot tell apart, with curvature (`lcp`),
             eigenvectors (`lap_pe`), returns of random walks (`rwse`) and without features
  triangles  how many triangles each node of a random regular graph is in, with propagated random
             features (`rfp`), the same features without propagation, the features above, and
             curvature together with eigenvectors
Number:    pairs, seeds 0, 1, 2: rook's graph against Shrikhande graph 1.0, 1.0, 1.0 with `lcp`, and
           .53, .47, .53 with the others; chance is .5. The other pairs: 1.0 with `lcp`, `rwse` and,
           but for one seed, `lap_pe`.
           triangles, 16 nodes: .86, .79, .83 with `rfp`, .94, .97, .95 with `lap_pe`, 1.0, 1.0, 1.0
           with `rwse`, .44, .48, .53 with `random`.
Results:   WORKDIR/comparison; docs/results/space.md has the numbers. Runs whose last step is saved
           are not trained again, so the sweep may be interrupted and started again.
"""

from evidence.experiments.runs import Sweep, main

PAIRS = ('rook_shrikhande', 'decalin_bicyclopentyl', 'skip_links')
FEATURES = {'none': '', 'lap_pe': 'lap_pe(vectors=4)', 'rwse': 'rwse(steps=8)', 'lcp': 'lcp()'}
RANDOM = {
    'random': 'rfp(features=8, steps=0, normalise="none", pad=True)',
    'rfp': 'rfp(features=8, steps=4, normalise="qr", pad=True)',
    'rfp_learned': 'rfp(features=8, steps=4, operator="learned", pad=True)',
}
JOINED = {'lcp_lap_pe': 'lcp() | lap_pe(vectors=4)'}

LAYERS = {'pattern': ('gin()',)}
GROUPS = {
    'pairs': {
        f'{pair}_{name}': {'task': f"blind_pairs(pair='{pair}')", 'features': features, **LAYERS}
        for pair in PAIRS
        for name, features in FEATURES.items()
    },
    'triangles': {
        name: {'task': 'triangles()', 'features': features, **LAYERS}
        for name, features in {**FEATURES, **RANDOM, **JOINED}.items()
    },
}
SIZES = (
    'model.kind=encoder', 'model.layers=3', 'model.width=32', 'model.heads=4', 'train.warmup=10',
    'train.save_every=100000', 'train.lr=3e-3',
)  # fmt: skip
SETTINGS = {
    'pairs': (
        *SIZES, 'train.length=1', 'train.min_length=1', 'train.batch=16', 'train.steps=60',
        'train.eval_every=30', 'train.eval_batches=2',
    ),
    'triangles': (
        *SIZES, 'train.length=16', 'train.min_length=10', 'train.batch=32', 'train.steps=1500',
        'train.eval_every=500', 'train.eval_batches=2',
    ),
}  # fmt: skip
EVALUATION = {
    'pairs': ('eval.lengths=1,2', 'eval.samples=64'),
    'triangles': ('eval.lengths=16,24,32', 'eval.samples=100'),
}

SWEEPS = {
    group: Sweep(
        __doc__,
        GROUPS[group],
        workdir=f'runs/graphs/{group}',
        config='configs/default.py',
        settings=SETTINGS[group],
        evaluation={'comparison': EVALUATION[group]},
    )
    for group in GROUPS
}

if __name__ == '__main__':
    main(SWEEPS)
