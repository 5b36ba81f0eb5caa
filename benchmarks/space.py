"""Time of a train step with each encoding of images, tables, fields, graphs, points and trees.

    python benchmarks/space.py  # all groups, twenty minutes on one core
    python benchmarks/space.py --groups images fields --rounds 9

Each group has a model of its own, whose plain form is named in the first row; see `GROUPS`. All
variants of a group take turns in one process, on one device. The ratio of times is the median of
the rounds, in processor time, so that other programs of the machine count less. 'host' is the
processor time in which NumPy makes the features of one graph, which a task does once for a graph.
"""

import importlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from measure import longer, options, show, take_turns, temporary_mib
from train_step import MeshStep, batch_of, model_config, run_of

from posenc_jax.features.graphs import make_graph_features
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.tasks.graphs.random_graphs import random_regular
from posenc_jax.methods.tree_paths import tree_paths

SIZES = dict(layers=2, width=256, heads=8)
TOKENS, ROWS, LEVELS, NODES = 256, 8, 8, 32
GRID = '16, 16'  # rows and columns of an image of 32 x 32 pixels in patches of 2 x 2
BOX = 'box=(-1.0, 1.0)'
FLAT = dict(field='mlp(width=64, layers=3)')  # the network on the features of a field


def encodings(*specs: str) -> dict[str, dict[str, Any]]:
    return {spec: dict(encoding=spec) for spec in specs}


def features(*specs: str) -> dict[str, dict[str, Any]]:
    return {spec: dict(features=spec) | FLAT for spec in specs}


# For each group the config, what it changes in it, and the variants, of which the first is plain.
GROUPS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    'images': (
        'vit',
        dict(task='blobs()', model=SIZES | dict(patch=2), train=dict(batch=ROWS, length=32)),
        encodings(
            'axial_rope2d()', f'learned_grid({GRID})', 'rope_axial()', 'rope_mixed()', 'liere()',
            'liere(block=4)', 'string_cayley(components=2)', 'string_circulant(components=2)',
            'dinov3_rope()', 'dinov3_rope(rescale=2.0)', f'navit_factorized({GRID})',
            'algebraic_grid(max_len=16)', f'swin_table({GRID})', f'beit_table({GRID})',
            f'swin_v2_cpb({GRID})',
        ),
    ),
    'pictures': (
        'patches',
        dict(model=SIZES, train=dict(batch=ROWS, length=14, min_length=14)),
        # Plain rope reads the same tokens without their layout.
        {'rope()': dict(encoding='rope()', task='patch_questions(asked=6)')}
        | encodings(
            'mrope()', 'mrope_interleaved()', 'mhrope()', 'videorope()', 'hope_video(stride=0.75)',
            'circlerope()',
        ),
    ),
    'networks': (
        'field',
        dict(task="picture('synthetic')"),
        {
            spec: dict(field=spec)
            for spec in (
                'siren(width=96, layers=3)', 'finer(width=96, layers=3)',
                'gauss(width=96, layers=3)', 'wire(width=96, layers=3)',
            )
        },
    ),
    'features': (
        'field',
        dict(task="picture('synthetic')"),
        features(
            "fourier_features('random', features=64, scale=8.0)",
            'barf(bands=16)', 'integrated_pe(end=16, variance=0.0001)',
            f'triplane(components=2, {BOX})', f'dense_grid({BOX})',
            f'hash_grid(levels=8, log2_rows=12, growth=1.5, coarsest=4, {BOX})',
            f'hash_grid(levels=16, log2_rows=16, growth=1.5, {BOX})',
        ),
    ),
    'graphs': (
        'graph',
        dict(
            task='triangles()', features='', pattern=(), encoding='nope()', model=SIZES,
            train=dict(batch=32, length=NODES, min_length=NODES),
        ),
        {
            'nope()': {},
            'signnet()': dict(features='signnet()'),
            'pearl()': dict(features='pearl()'),
            'pearl(basis)': dict(features='pearl(basis=True)'),
            'rrwp()': dict(features='rrwp()', encoding='rrwp()'),
            'rrwp(), grit()': dict(features='rrwp()', pattern=('grit()',)),
            'graphormer_degree()': dict(encoding='graphormer_degree()'),
            'graphormer_spatial()': dict(
                features='graphormer_spatial()', encoding='graphormer_spatial()'
            ),
            'graphormer_edge()': dict(
                features='graphormer_edge()', encoding='graphormer_edge()'
            ),
        },
    ),
    'points': (
        'points',
        dict(pattern=(), model=SIZES, train=dict(batch=ROWS, length=TOKENS, min_length=TOKENS)),
        encodings(
            'nope()', 'learnable_fourier(components=3)', 'rope_3d(width=30)',
            'point_transformer_bias()',
        ),
    ),
    'trees': (
        '', {},
        encodings(
            'sinusoidal()', f'tree_pe(levels={LEVELS})', f'algebraic_tree(levels={LEVELS})',
            'algebraic_pe()',
        ),
    ),
}  # fmt: skip


def step_of(name: str, common: dict[str, Any], own: dict[str, Any]) -> MeshStep:
    """A train step on a batch of the task of a config."""
    if not name:
        return of_nodes(own['encoding'])
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update(common)
    config.update(own)
    run = Run.of(config)
    batches = dict(length=run.length, batch_size=config.train.batch, seed=0, split='train')
    return MeshStep(run, run.task.dataset(**batches)[0])


def of_nodes(spec: str) -> MeshStep:
    """A train step of an decoder of the nodes of a complete binary tree, or of tokens in a row."""
    batch, cfg = batch_of(ROWS, TOKENS), model_config(spec, train_len=TOKENS, **SIZES)
    if 'tree' in spec:
        node = np.arange(TOKENS)
        paths = tree_paths((node - 1) // 2, 1 + (node - 1) % 2, LEVELS)
        batch['positions'] = jnp.broadcast_to(paths, (ROWS, *paths.shape))
    return MeshStep(run_of(cfg, batch), batch)


def host_ms(spec: str, graphs: int = 20) -> str:
    """Milliseconds of processor time in which the features of a graph are made."""
    encoder, rng = make_graph_features(spec), np.random.default_rng(0)
    drawn = [random_regular(rng, NODES, 4) for _ in range(graphs)]
    begin = time.process_time()
    for graph in drawn:
        encoder.encode(graph)
        encoder.pairs(graph)
    return f'{(time.process_time() - begin) / graphs * 1e3:.2f}'


def main():
    args = options(__doc__, {'groups': GROUPS}, rounds=7)
    for group in args.groups:
        name, common, variants = GROUPS[group]
        base, *_ = variants
        steps = {spec: step_of(name, common, own) for spec, own in variants.items()}
        seconds = take_turns(steps, args.rounds, time.process_time)
        rows = []
        for spec, own in variants.items():
            host = own.get('features', '') if group == 'graphs' else ''
            rows.append(
                (spec, *longer(seconds, spec, base), temporary_mib(steps[spec]),
                 host and host_ms(host))
            )  # fmt: skip
        show(group, ('encoding', 'ms', 'time', 'temporary MiB', 'host, ms a graph'), rows)


if __name__ == '__main__':
    main()
