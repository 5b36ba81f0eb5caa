"""Pos2Distill and PAPEFT against plain fine-tuning: accuracy of key-value retrieval by slot.

Time:      5 minutes for one seed on one core with --papeft and 1000 steps of distillation
Number:    docs/claims.md, claims A21 and A23; docs/results/length_generalisation.md has the table
A small model is trained on key-value pairs that are mostly asked for in the first slots. It is then
distilled from its own answers with the evidence in slot 0 (R1, R2). As a control it is fine-tuned
on right answers with the evidence in slot 0 alone (SFT). R1, R2 and SFT have the same number of
examples. Runs that are complete are not trained again. Results: WORKDIR/distilled. With --papeft a
run is continued on shuffled pairs with all weights frozen except the adapter
(`train.tune=encodings`).
Paper:     Wang et al. (arXiv 2508.15709): the curve of accuracy by position becomes flat with a few
           hundred examples. Zhang et al. (arXiv 2404.01430): 54 to 59 % less fluctuation over
           positions.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.program import Program, Row
from evidence.experiments.runs import Run, train_runs
from posenc_jax.lab.conversion.pos2distill import distill, moved_evidence
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.retrieval import KVSlots
from posenc_jax.lab.tasks.task import batch_rng

PAIRS, SKEW = 12, 1.5
ENCODING = 'learned_absolute(max_len=64)'
FIELDS = {
    'model.layers': 2, 'model.width': 64, 'model.heads': 4, 'train.length': PAIRS,
    'train.min_length': PAIRS,
    'train.batch': 64, 'train.lr': 2e-3, 'train.steps': 500, 'train.save_every': 500,
    'train.eval_every': 250,
}  # fmt: skip
OPTIONS = dict(keys=24, values=24, words=1)
SHOWN = (0, 1, 3, 6, 9, 11)  # slots of the table


def spec(**more) -> str:
    return (
        f'kv_slots({", ".join(f"{name}={value!r}" for name, value in {**OPTIONS, **more}.items())})'
    )


def accuracy(model, slot: int, rows: int = 512, ids: str = 'none') -> float:
    graphdef, state = nnx.split(model)
    batch = KVSlots(**OPTIONS, slot=slot, ids=ids).sample(batch_rng(0, 'test', slot), rows, PAIRS)
    right = jax.jit(
        lambda state, batch: nnx.merge(graphdef, state)(
            batch['tokens'], tokens_of(batch), last=1
        ).argmax(-1)
    )
    found = np.asarray(right(state, jax.tree.map(jnp.asarray, batch)))
    return float((found == batch['targets'][:, -1:]).mean())


def examples(seed: int, steps: int, rows: int, *, anchors_only: bool = False):
    """Batches for `distill`, stacked; with `anchors_only` every prompt has its evidence in
    slot 0.
    """
    task, rng = KVSlots(**OPTIONS), np.random.default_rng([seed, 3])
    drawn = [moved_evidence(rng, *task.documents(rng, rows, PAIRS)) for _ in range(steps)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *drawn)
    if anchors_only:
        stacked['tokens'] = np.broadcast_to(stacked['teacher'][:, :, None], stacked['tokens'].shape)
        stacked['slots'] = np.zeros_like(stacked['slots'])
    return stacked


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The accuracy at every slot, before and after distillation."""
    runs = {}
    for seed in options.seeds:
        fields = FIELDS | {'seed': seed, 'encoding': ENCODING}
        base = options.workdir / f'skewed_{seed}'
        skewed = fields | {'task': spec(skew=SKEW)}
        runs['skewed', seed] = Run(base, 'configs/default.py', skewed, options.set)
        if options.papeft:
            more = {
                'task': spec(ids='locations'), 'encoding': f'papeft() | {ENCODING}',
                'init.source': str(base), 'train.tune': 'encodings',
                'train.steps': options.adapter_steps,
                'train.warmup': options.adapter_steps // 10, 'train.lr': 1e-2,
            }  # fmt: skip
            directory = options.workdir / f'papeft_{seed}'
            runs['papeft', seed] = Run(directory, 'configs/default.py', fields | more)
    trained = train_runs(runs)
    for seed in options.seeds:
        model = restore_model(trained['skewed', seed])[1]
        optimizer = optax.adamw(options.lr)
        batches = lambda **more: examples(seed, options.distill_steps, options.rows, **more)
        taught = lambda batches, **more: distill(model, batches, optimizer=optimizer, **more)[0]
        variants = {
            'skewed': (model, 'none'),
            'R1': (taught(batches()), 'none'),
            'R2': (taught(batches(), rule='r2'), 'none'),
            'SFT, slot 0': (taught(batches(anchors_only=True), rule='r2'), 'none'),
        }
        if options.papeft:
            variants['PAPEFT'] = (restore_model(trained['papeft', seed])[1], 'locations')
        for name, (variant, kind) in variants.items():
            scores = [accuracy(variant, slot, ids=kind) for slot in SHOWN]
            print(f'seed {seed}, {name}:', *(f'{value:.2f}' for value in scores), flush=True)
            for slot, value in zip(SHOWN, scores):
                yield 'key-value retrieval', name, slot, seed, value


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={
        'distill-steps': 400, 'rows': (16, 'examples of a step, of five prompts each'),
        'lr': 1e-3, 'papeft': (False, 'also continue the run with a PAPEFT adapter'),
        'adapter-steps': 1000, 'set': [],
    },
    default_seeds=(0, 1),
    folder='distilled',
    table={'title': 'Distilled between slots', 'x': 'slot', 'value': 'accuracy'},
)  # fmt: skip
