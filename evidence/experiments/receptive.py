"""The receptive fields of biases, in theory and found, for `text lengths`.

The theoretical field of a head is that of its bias
alone, at logits of 0; the empirical one is how many of the nearest keys hold 95 % of the attention
of a trained model. Both are within the trained length. WORKDIR/fields/results.csv has the means of
both by layer, and for every seed their rank correlation over the heads of all biases.

Paper:     Qin et al. (arXiv 2307.10156): theoretical and empirical fields show matching trends.
"""

import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from evidence.experiments.tables import report
from posenc_jax.lab.analyse.decay_kernel import decay_kernel, field_of
from posenc_jax.lab.analyse.receptive_field import receptive_field
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare

ADDITIVE = ('alibi', 'kerple', 't5_rpe')  # biases of the distance alone
TEXTS = 32


def both_fields(
    model: Transformer, tokens: np.ndarray
) -> tuple[Float[np.ndarray, 'layers N'], Float[np.ndarray, 'layers N']]:
    """The theoretical and the empirical receptive field of every head, in keys."""
    of_layer = lambda layer_type, block: field_of(
        decay_kernel(model.encoding(layer_type, block), model.cfg.heads, tokens.shape[1])
    )
    theory = np.stack([of_layer(*layer) for layer in model.layers()])
    return theory, receptive_field(model, jnp.asarray(tokens)).erf


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Compares both fields of the additive biases among trained models."""
    rows = []
    for seed in sorted({seed for _, seed in directories}):
        points = []
        for name in ADDITIVE:
            if (name, seed) not in directories:
                continue
            job = prepare(directories[name, seed], UNASKED)
            length = job.cfg.train_len
            text = np.asarray(job.task.tokens('test')[: TEXTS * length]).reshape(-1, length)
            theory, found = both_fields(job.load()[0], text)
            points += zip(theory.ravel().tolist(), found.ravel().tolist())
            for layer, pair in enumerate(zip(theory.mean(1), found.mean(1))):
                for panel, value in zip(('theory', 'found'), pair):
                    rows.append((panel, name, layer, seed, float(value)))
        if points:
            correlation = float(spearmanr(*zip(*points)).statistic)
            rows.append(('rank correlation', 'additive biases', 0, seed, correlation))
    if rows:
        report(rows, workdir / 'fields', title='Receptive fields', x='layer', value='keys')
