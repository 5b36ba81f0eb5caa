"""What models know of positions, for `analyses`: probes, variances, similarities, neurons."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from evidence.experiments.tables import report
from posenc_jax.lab.analyse.nearby_similarity import nearby_similarity
from posenc_jax.lab.analyse.permutation_symmetry import permutation_symmetry
from posenc_jax.lab.analyse.positional_neurons import positional_neurons
from posenc_jax.lab.analyse.probe_position import probe_position
from posenc_jax.lab.analyse.variance_shrinkage import log_slope, variance_shrinkage
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.runs.prepare import UNASKED, prepare

LENGTH, SEQUENCES = 64, 128
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


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Analyses trained models, and models as they are drawn."""
    rows: list[Row] = []
    for (name, seed), run in directories.items():
        job = prepare(run, UNASKED)
        text = np.asarray(job.task.tokens('train')[: SEQUENCES * LENGTH])
        tokens = text.reshape(SEQUENCES, LENGTH)
        rows += of_model(job.load()[0], tokens, name, seed)
        rows += of_model(Transformer(job.cfg, rngs=nnx.Rngs(seed)), tokens, f'{name}, drawn', seed)
    for seed in sorted({seed for _, seed in directories}):
        for name, (kind, layers) in DRAWN.items():
            rows.append(('change by permutations', name, layers, seed, drawn(kind, layers, seed)))
    report(rows, workdir, title='Positions in models', x='layer', value='value')
