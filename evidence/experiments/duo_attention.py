"""DuoAttention on a small recall model: accuracy of passkeys by the share of streaming heads.

Trained gates are compared with random ones.

Command:   python -m evidence.experiments.duo_attention [--seeds 0 1] [--workdir runs/duo_attention]
           [--set train.steps=500]
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

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.runs import Run, full_disk_in_one_line, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.decoding.duo_attention import deploy, retrieval_heads
from posenc_jax.lab.files import disk
from posenc_jax.lab.files.command import Parser
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


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/duo_attention')
    parser.add_argument('--gate-steps', type=int, default=200)
    parser.add_argument('--random', type=int, default=4, help='draws of random gates')
    parser.add_argument(
        '--set',
        nargs='*',
        default=[],
        metavar='FIELD=VALUE',
        help='more config fields, e.g. train.steps=200',
    )
    arguments = parser.parse_args()
    run_of = lambda seed: Run(
        arguments.workdir / f'recall_{seed}',
        'configs/default.py',
        FIELDS | {'seed': seed},
        arguments.set,
    )
    rows = []
    for seed, run in train_runs({seed: run_of(seed) for seed in arguments.seeds}).items():
        config, model, _ = restore_model(run)
        task, length = build(parse(config.task, ('task',)).nodes[0], {}), config.train.length
        batches = batch_iterator(
            task.dataset(length=(length // 2, length), batch_size=16, seed=seed)
        )
        gates, _ = train_gates(model, batches, steps=arguments.gate_steps, sink=SINK, recent=RECENT)
        with full_disk_in_one_line():
            disk.write(
                arguments.workdir / f'gates_{seed}.json',
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
            rows.append(
                (
                    'passkeys',
                    'trained gates',
                    sparsity,
                    seed,
                    score(retrieval_heads(gates, sparsity=sparsity)),
                )
            )
            drawn = [
                score(retrieval_heads(rng.random(gates.shape), sparsity=sparsity))
                for _ in range(arguments.random)
            ]
            rows += [('passkeys', 'random gates', sparsity, seed, value) for value in drawn]
        rows.append(('passkeys', 'all stream', 1.0, seed, score(np.zeros(gates.shape, bool))))
    report(
        rows,
        arguments.workdir / 'comparison',
        title=f'DuoAttention, sink {SINK}, recent {RECENT}',
        x='share of streaming heads',
        value='accuracy',
    )


if __name__ == '__main__':
    main()
