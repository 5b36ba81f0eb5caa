"""Writes text in any order, one byte at a time and in bursts: quality, passes and time.

Command:   python -m evidence.experiments.any_order [--seeds 0 1] [--workdir runs/any_order]
           [--steps 1500]
Time:      under a minute a run for 800 steps of a model of two layers of width 96 (two CPU cores)
Number:    for that model, seeds 0 and 1, 64 bytes: 56 passes one at a time, 8.8 in bursts, 5.9 in
           bursts that try 8 orders. This model had learned little (3.1 nats a byte). A larger model
           with sinusoids in place of its learned table had learned more (2.1); its bursts take 27
           passes, and 13 with 8 orders. The rest is in docs/results/length_generalisation.md.
Each seed trains two models: one on shuffled texts (a curriculum from left to right over the first
quarter of the steps) and one on texts from left to right. The sweep measures the loss of both on
test text in either order. The first model then writes texts of several lengths after 8 given bytes:
from left to right, in random order one at a time, and in bursts. The sweep measures the model
evaluations, the seconds, and the loss of these texts under the second model (the judge), beside
that of real text. Results: WORKDIR/written. Runs that are complete are not trained again.
Paper:     Pannatier et al. (arXiv 2404.09562): bursts write text and mazes with an order of
           magnitude fewer evaluations; a model of all orders has a higher loss at first and needs
           longer training than a model of a single order.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.runs import Run, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.decoding.any_order import sample_in_order
from posenc_jax.lab.decoding.burst import burst_sample
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.model.inputs import tokens_of
from posenc_jax.lab.model.losses import target_losses
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.language.spec import build, parse
from posenc_jax.protocol.tokens import Tokens

LENGTH, KNOWN = 128, 8
FIELDS = {
    'encoding': f'sigma_gpt(max_len={LENGTH + 1})', 'train.length': LENGTH,
    'train.min_length': LENGTH,
    'train.eval_every': 500, 'train.save_every': 500,
}  # fmt: skip
TASKS = {
    'shuffled': 'any_order(task=language(), curriculum={curriculum})',
    'left_to_right': "any_order(task=language(), order='left_to_right')",
}


def losses(model, batch) -> float:
    """Mean loss of the scored targets of a batch of `any_order`, in nats a byte."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, batch):
        logits = nnx.merge(graphdef, state)(batch['tokens'], tokens_of(batch))
        found = target_losses(logits, batch['targets'])[0] * batch['loss_mask']
        return found.sum() / batch['loss_mask'].sum()

    return float(run(state, jax.tree.map(jnp.asarray, batch)))


def judged(model, text) -> float:
    """Mean loss of the bytes behind the given ones, from left to right."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, text):
        logits = nnx.merge(graphdef, state)(text[:, :-1], Tokens.of(length=text.shape[1] - 1))
        return target_losses(logits, text[:, 1:])[0][:, KNOWN - 1 :].mean()

    return float(run(state, jnp.asarray(text)))


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/any_order')
    parser.add_argument(
        '--lengths',
        type=int,
        nargs='+',
        default=[32, 64, 128],
        help=f'of texts, {KNOWN} given bytes included',
    )
    parser.add_argument('--texts', type=int, default=16, help='of each length')
    parser.add_argument(
        '--orders', type=int, nargs='+', default=[1, 8], help='orders that a burst tries'
    )
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument(
        '--set', nargs='*', default=[], metavar='FIELD=VALUE', help='more config fields'
    )
    arguments = parser.parse_args()
    runs, rows = {}, []
    for seed in arguments.seeds:
        for name, task in TASKS.items():
            task = task.format(curriculum=arguments.steps // 4)
            fields = {**FIELDS, 'task': task, 'seed': seed, 'train.steps': arguments.steps}
            runs[name, seed] = Run(
                arguments.workdir / f'{name}_{seed}', 'configs/quickstart.py', fields, arguments.set
            )
    runs = train_runs(runs)
    for seed in arguments.seeds:
        models = {name: restore_model(runs[name, seed])[1] for name in TASKS}
        for order in ('left_to_right', 'random'):
            task = build(
                parse(
                    f"any_order(task=language(), order='{order}', in_evaluation=True)", ('task',)
                ).nodes[0],
                {},
            )
            batch = task.dataset(length=LENGTH, batch_size=64, seed=0, split='test')[0]
            for name, model in models.items():
                rows.append((f'loss, read {order}', name, LENGTH, seed, losses(model, batch)))
        plain = build(parse('language()', ('task',)).nodes[0], {})
        for length in arguments.lengths:
            real = plain.dataset(
                length=length - 1, batch_size=arguments.texts, seed=1, split='test'
            )[0]
            texts = np.concatenate([real['tokens'][:, :1], real['targets']], axis=1)
            rows.append(
                (
                    'loss under the judge',
                    'real text',
                    length,
                    seed,
                    judged(models['left_to_right'], texts),
                )
            )
            rng = np.random.default_rng(seed)
            straight = np.arange(length)[None]
            shuffled = np.concatenate([np.arange(KNOWN), KNOWN + rng.permutation(length - KNOWN)])[
                None
            ]
            ways = {
                'left to right': lambda text, key: sample_in_order(
                    models['shuffled'], text, straight, known=KNOWN, key=key
                ),
                'random order': lambda text, key: sample_in_order(
                    models['shuffled'], text, shuffled, known=KNOWN, key=key
                ),
                'left to right, by the judge': lambda text, key: sample_in_order(
                    models['left_to_right'], text, straight, known=KNOWN, key=key
                ),
            }
            for orders in arguments.orders:
                ways[f'bursts, {orders} orders'] = lambda text, key, orders=orders: burst_sample(
                    models['shuffled'], text, shuffled, known=KNOWN, key=key, orders=orders
                )
            for name, write in ways.items():
                key, found, seconds, evaluations = jax.random.key(seed), [], [], []
                for n in range(2):  # compiles
                    write(texts[:1], jax.random.fold_in(key, n))
                for n in range(arguments.texts):
                    begin = time.perf_counter()
                    out = write(texts[n : n + 1], jax.random.fold_in(key, n))
                    found.append(np.asarray(out.tokens))
                    seconds.append(time.perf_counter() - begin)
                    evaluations.append(out.evaluations)
                rows.append(('evaluations', name, length, seed, float(np.mean(evaluations))))
                rows.append(
                    ('milliseconds a text', name, length, seed, 1e3 * float(np.median(seconds)))
                )
                loss = judged(models['left_to_right'], np.concatenate(found))
                rows.append(('loss under the judge', name, length, seed, loss))
    report(
        rows,
        arguments.workdir / 'written',
        title='sigma_gpt',
        x='bytes',
        value='nats a byte, passes, ms',
    )


if __name__ == '__main__':
    main()
