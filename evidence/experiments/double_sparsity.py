"""Double Sparsity on a trained run: loss per target by the number of keys that a query reads.

Calibrated channels are compared with random ones.

Command:   python -m evidence.experiments double_sparsity --run RUN [--length 512] [--groups 4 16]
           [--keep 16 32 64 128]
Time:      36 s for a model of four layers of width 32 and --length 64 on two busy CPU cores Number:
loss per target of the runs recall_0 and recall_1 of evidence.experiments.duo_attention with
           --groups 4 and 4 of 64 keys: .009 and .005 with calibrated channels, 2.1 and 1.8 with
           random ones; the rest is in docs/results/caches.md
RUN is the directory of a decoder with `rope()` (e.g. of configs/language_model.py). The channels
are calibrated on training batches of the task of the run, and the loss is measured on test batches.
The first two layers read all keys; in the others every query reads only its best keys. Results:
WORKDIR/results.csv and a picture.
Paper:     Yang et al. (arXiv 2408.07092): little loss at 1/16 of the keys with 1/16 of the
           channels.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.tables import report
from posenc_jax.lab.decoding.double_sparsity import calibrate, sparse_logits
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.model.losses import target_losses
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.language.spec import build, parse


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--run', required=True)
    parser.add_argument('--length', type=int, default=512)
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--groups', type=int, nargs='+', default=[4])
    parser.add_argument('--keep', type=int, nargs='+', default=[8, 16, 32, 64, 128])
    parser.add_argument('--dense-layers', type=int, default=2)
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0, 1], help='of the random channels'
    )
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/double_sparsity')
    parser.add_imports(of_runs=True)
    options = parser.parse_args(arguments)
    config, model, _ = restore_model(options.run, trust_imports=options.trust_imports)
    task = build(parse(config.task, ('task',)).nodes[0], {})
    drawn = dict(length=options.length, batch_size=options.rows, seed=0)
    batch = lambda split: jax.tree.map(jnp.asarray, task.dataset(**drawn, split=split)[0])
    graphdef, state = nnx.split(model)

    @jax.jit
    def dense(state, batch):
        return mean_loss(nnx.merge(graphdef, state)(batch['tokens']), batch)

    def mean_loss(logits, batch):
        return (target_losses(logits, batch['targets'])[0] * batch['loss_mask']).sum() / batch[
            'loss_mask'
        ].sum()

    text, test, rows = batch('train'), batch('test'), []
    full = float(dense(state, test))
    for groups in options.groups:
        calibrated = calibrate(model, text['tokens'], groups=groups)
        for keep in options.keep:
            sparse = jax.jit(
                lambda state, channels, batch: mean_loss(
                    sparse_logits(
                        nnx.merge(graphdef, state),
                        channels,
                        batch['tokens'],
                        keep=keep,
                        dense_layers=options.dense_layers,
                    ),
                    batch,
                )
            )
            for seed in options.seeds:
                rng, width = np.random.default_rng(seed), model.cfg.head_dim
                random = rng.permuted(
                    np.tile(np.arange(width), (*calibrated.shape[:2], 1)), axis=-1
                )[..., : width // groups]
                for name, channels in (
                    ('calibrated', calibrated),
                    ('random channels', jnp.asarray(random)),
                ):
                    rows.append(
                        (f'g = {groups}', name, keep, seed, float(sparse(state, channels, test)))
                    )
                rows.append((f'g = {groups}', 'dense', keep, seed, full))
    report(
        rows,
        options.workdir,
        title=f'Double Sparsity at {options.length} tokens',
        x='keys a query reads',
        value='loss',
    )
