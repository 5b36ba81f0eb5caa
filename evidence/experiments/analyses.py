"""What language models know of positions: probes, variances, similarities, permutations, neurons.

Command:   python -m evidence.experiments.analyses [--seeds 0 1 2] [--workdir runs/analyses]
Measured:  decoders of 4 layers on 64 bytes of English text, without positions, with learned ones
           and with RoPE, after training and as they are drawn. By layer: R2 of a ridge probe of the
           position; the slope of the log variance of attention's output on the log of the position;
           the adjacency score of the vectors; the share of positional neurons. Besides, how much
           the last logits change when the tokens before are permuted, in models without positions:
           encoders, and decoders of one and of two layers, as they are drawn.
Time:      a minute for each of 9 runs on one core, analyses included
Number:    docs/claims.md, claims N2 to N5 and N7
Results:   WORKDIR/results.csv and WORKDIR/results.png. Runs whose last step is saved are not
           trained again, so the sweep may be interrupted and started again.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
from flax import nnx

from evidence.experiments.runs import Run, train_runs
from evidence.experiments.tables import report
from posenc_jax.lab.analyse.nearby_similarity import nearby_similarity
from posenc_jax.lab.analyse.permutation_symmetry import permutation_symmetry
from posenc_jax.lab.analyse.positional_neurons import positional_neurons
from posenc_jax.lab.analyse.probe_position import probe_position
from posenc_jax.lab.analyse.variance_shrinkage import log_slope, variance_shrinkage
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.runs.prepare import UNASKED, prepare

LENGTH, SEQUENCES = 64, 128
ENCODINGS = {
    'nope': 'nope()',
    'learned_absolute': f'learned_absolute(max_len={LENGTH})',
    'rope': 'rope()',
}
SETTINGS = (
    'train.length=64', 'train.batch=32', 'train.steps=600', 'train.eval_every=0', 'train.lr=2e-3',
    'train.save_every=100000', 'model.layers=4', 'model.width=64', 'model.heads=4',
    'mesh.cpu_devices=1',
)  # fmt: skip
# Models without positions: kind, layers.
DRAWN = {'encoder': ('encoder', 2), 'decoder_1': ('decoder', 1), 'decoder_2': ('decoder', 2)}
Row = tuple[str, str, int, int, float]


def of_model(model: Transformer, tokens: np.ndarray, name: str, seed: int) -> Iterator[Row]:
    """The analyses of one model, by layer; layer 0 is the input of the first one."""
    by_layer = {
        'R2 of the probe': (0, probe_position(model, tokens).r2),
        'slope of the variance': (1, log_slope(variance_shrinkage(model, tokens).before)),
        'adjacency score': (0, nearby_similarity(model, tokens[:32]).scores),
        'positional neurons': (1, positional_neurons(model, tokens).positional.mean(-1)),
    }
    for panel, (first, values) in by_layer.items():
        for layer, value in enumerate(values, first):
            yield panel, name, layer, seed, float(value)


def drawn(kind: str, layers: int, seed: int) -> float:
    """How much the last logits of a model without positions change under permutations."""
    cfg = TransformerConfig(
        vocab_size=64, train_len=16, layers=layers, width=32, heads=4, encoding='nope()', kind=kind
    )
    tokens = np.random.default_rng(seed).integers(64, size=(8, 16))
    model = Transformer(cfg, rngs=nnx.Rngs(seed))
    return float(permutation_symmetry(model, tokens).delta.mean())


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/analyses')
    arguments = parser.parse_args()
    runs = {}
    for seed in arguments.seeds:
        for name, encoding in ENCODINGS.items():
            fields = {'encoding': encoding, 'seed': seed}
            directory = arguments.workdir / f'{name}_{seed}'
            runs[name, seed] = Run(directory, 'configs/default.py', fields, SETTINGS)
    rows: list[Row] = []
    for (name, seed), run in train_runs(runs).items():
        job = prepare(run, UNASKED)
        text = np.asarray(job.task.tokens('train')[: SEQUENCES * LENGTH])
        tokens = text.reshape(SEQUENCES, LENGTH)
        rows += of_model(job.load()[0], tokens, name, seed)
        rows += of_model(Transformer(job.cfg, rngs=nnx.Rngs(seed)), tokens, f'{name}, drawn', seed)
    for seed in arguments.seeds:
        for name, (kind, layers) in DRAWN.items():
            rows.append(('change by permutations', name, layers, seed, drawn(kind, layers, seed)))
    report(rows, arguments.workdir, title='Positions in models', x='layer', value='value')


if __name__ == '__main__':
    main()
