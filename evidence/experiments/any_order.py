"""Writes text in any order, one byte at a time and in bursts: quality, passes and time.

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

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.program import Program, Row
from evidence.experiments.runs import Run, train_runs
from posenc_jax.lab.decoding.any_order import sample_in_order
from posenc_jax.lab.decoding.burst import burst_sample
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


def losses_of(models: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """The losses of both models on test text, in either order."""
    for order in ('left_to_right', 'random'):
        task = task_of(f"any_order(task=language(), order='{order}', in_evaluation=True)")
        batch = task.dataset(length=LENGTH, batch_size=64, seed=0, split='test')[0]
        for name, model in models.items():
            yield f'loss, read {order}', name, LENGTH, seed, losses(model, batch)


def task_of(spec: str) -> Any:
    """The task of a spec string."""
    return build(parse(spec, ('task',)).nodes[0], {})


def ways_of(
    models: Mapping[str, Any], length: int, seed: int, orders: Sequence[int]
) -> dict[str, Callable]:
    """Name -> function that writes a text behind the given bytes."""
    straight = np.arange(length)[None]
    behind = KNOWN + np.random.default_rng(seed).permutation(length - KNOWN)
    shuffled = np.concatenate([np.arange(KNOWN), behind])[None]
    in_order = lambda name, order: (
        lambda text, key: sample_in_order(models[name], text, order, known=KNOWN, key=key)
    )
    in_bursts = lambda orders: (
        lambda text, key: burst_sample(
            models['shuffled'], text, shuffled, known=KNOWN, key=key, orders=orders
        )
    )
    return {
        'left to right': in_order('shuffled', straight),
        'random order': in_order('shuffled', shuffled),
        'left to right, by the judge': in_order('left_to_right', straight),
        **{f'bursts, {number} orders': in_bursts(number) for number in orders},
    }


def written(write: Callable, texts: np.ndarray, seed: int) -> tuple[np.ndarray, float, float]:
    """Texts, how many evaluations each takes in the mean, and the median of the milliseconds."""
    key, found, seconds, evaluations = jax.random.key(seed), [], [], []
    for n in range(2):  # compiles
        write(texts[:1], jax.random.fold_in(key, n))
    for n in range(len(texts)):
        begin = time.perf_counter()
        out = write(texts[n : n + 1], jax.random.fold_in(key, n))
        found.append(np.asarray(out.tokens))
        seconds.append(time.perf_counter() - begin)
        evaluations.append(out.evaluations)
    text = np.concatenate(found)
    return text, float(np.mean(evaluations)), 1e3 * float(np.median(seconds))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The losses of both models, and of what they write."""
    runs = {}
    for seed in options.seeds:
        for name, task in TASKS.items():
            task = task.format(curriculum=options.steps // 4)
            fields = {**FIELDS, 'task': task, 'seed': seed, 'train.steps': options.steps}
            directory = options.workdir / f'{name}_{seed}'
            runs[name, seed] = Run(directory, 'configs/quickstart.py', fields, options.set)
    trained = train_runs(runs)
    for seed in options.seeds:
        models = {name: restore_model(trained[name, seed])[1] for name in TASKS}
        yield from losses_of(models, seed)
        for length in options.lengths:
            real = task_of('language()').dataset(
                length=length - 1, batch_size=options.texts, seed=1, split='test'
            )[0]
            texts = np.concatenate([real['tokens'][:, :1], real['targets']], axis=1)
            panel, judge = 'loss under the judge', models['left_to_right']
            yield panel, 'real text', length, seed, judged(judge, texts)
            for name, write in ways_of(models, length, seed, options.orders).items():
                found, evaluations, milliseconds = written(write, texts, seed)
                yield 'evaluations', name, length, seed, evaluations
                yield 'milliseconds a text', name, length, seed, milliseconds
                yield panel, name, length, seed, judged(judge, found)


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={
        'lengths': ([32, 64, 128], f'of texts, {KNOWN} given bytes included'),
        'texts': (16, 'of each length'), 'orders': ([1, 8], 'orders that a burst tries'),
        'steps': 1500, 'set': [],
    },
    default_seeds=(0, 1),
    folder='written',
    table={'title': 'sigma_gpt', 'x': 'bytes', 'value': 'nats a byte, passes, ms'},
)  # fmt: skip
