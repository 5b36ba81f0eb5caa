"""DuoAttention on a small recall model: accuracy of passkeys by the share of streaming heads.

Trained gates are compared with random ones.

Time:      75 s a seed on one CPU core
Number:    at 25 / 50 / 75 % streaming heads, seed 0: 1.00 / 0.94 / 0.69 by trained gates, 0.86 /
           0.71 / 0.41 by random ones (mean of four draws); seed 1: 1.00 / 1.00 / 1.00 and 0.89 /
           0.70 / 0.65; 0.21 and 0.20 where all heads stream
The sweep trains a four-layer model on short passkeys, and then its gates on the same task. It
evaluates the model at each share of streaming heads, with heads chosen by trained gates, by random
gates, and with every head streaming. Runs that are complete are not trained again. Results:
WORKDIR/comparison (table, results.csv, picture), and the gates in WORKDIR/gates_SEED.json.
Paper:     Xiao et al. (arXiv 2410.10819): with 50 % streaming heads (heads with their own keys) or
           25 to 50 % (shared keys) the accuracy of the full cache; random retrieval heads, or fewer
           of them, lose passkeys.
"""

import argparse
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.program import Program, Row
from evidence.experiments.runs import Run, full_disk_in_one_line, train_runs
from posenc_jax.lab.decoding.duo_attention import deploy, retrieval_heads
from posenc_jax.lab.files import disk
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks import Task, batch_iterator
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.lab.train.duo_gates import train_gates
from posenc_jax.language.spec import build, parse

FIELDS = {
    'task': 'passkeys(keys=2, words=2, alphabet=8, '
            'fillers=4)', 'encoding': 'rope()', 'model.layers': 4, 'model.width': 32,
    'model.heads': 4, 'train.length': 64, 'train.min_length': 11, 'train.batch': 32,
    'train.lr': 3e-3, 'train.steps': 1200,
    'train.save_every': 400, 'train.eval_every': 400,
}  # fmt: skip
SINK, RECENT = 2, 8
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.875, 1.0)


def accuracy(model: Transformer, task: Task, length: int, rows: int = 256) -> float:
    """Share of the words that are asked for which the model predicts."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def right(state, tokens, targets):
        return nnx.merge(graphdef, state)(tokens).argmax(-1) == targets

    batch = task.sample(batch_rng(0, 'test', 0), rows, length)
    hits = np.asarray(right(state, jnp.asarray(batch['tokens']), jnp.asarray(batch['targets'])))
    return float(hits[batch['loss_mask'] > 0].mean())


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The accuracy of trained and of drawn gates, by the share of streaming heads."""
    run_of = lambda seed: Run(
        options.workdir / f'recall_{seed}',
        'configs/default.py',
        FIELDS | {'seed': seed},
        options.set,
    )
    for seed, run in train_runs({seed: run_of(seed) for seed in options.seeds}).items():
        config, model, _ = restore_model(run)
        task, length = build(parse(config.task, ('task',)).nodes[0], {}), config.train.length
        batches = batch_iterator(
            task.dataset(length=(length // 2, length), batch_size=16, seed=seed)
        )
        gates, _ = train_gates(model, batches, steps=options.gate_steps, sink=SINK, recent=RECENT)
        with full_disk_in_one_line():
            disk.write(
                options.workdir / f'gates_{seed}.json',
                json.dumps(np.asarray(gates).round(4).tolist()),
            )
        print(
            f'seed {seed}: full cache {accuracy(model, task, length):.3f}; '
            f'gates\n{np.asarray(gates).round(2)}',
            flush=True,
        )
        score = lambda heads: accuracy(deploy(model, heads, sink=SINK, recent=RECENT), task, length)
        rng = np.random.default_rng([seed, 1])
        for sparsity in SPARSITIES:
            own = score(retrieval_heads(gates, sparsity=sparsity))
            yield 'passkeys', 'trained gates', sparsity, seed, own
            for _ in range(options.random):
                drawn = score(retrieval_heads(rng.random(gates.shape), sparsity=sparsity))
                yield 'passkeys', 'random gates', sparsity, seed, drawn
        yield 'passkeys', 'all stream', 1.0, seed, score(np.zeros(gates.shape, bool))


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={
        'gate-steps': 200, 'random': (4, 'draws of random gates'), 'set': [],
    },
    default_seeds=(0, 1),
    folder='comparison',
    table={
        'title': f'DuoAttention, sink {SINK}, recent {RECENT}',
        'x': 'share of streaming heads', 'value': 'accuracy',
    },
)  # fmt: skip
