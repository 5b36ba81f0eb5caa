"""Hidden bases of RNA-like sequences, told by the bases they pair with: ALiBi and other positions.

Command:   python -m configs.sweeps.rna [--seeds 0 1 2] [--steps 1500] [--workdir runs/rna]
Data:      sequences of the four bases, drawn uniformly, except that hairpins of 4 pairs with a loop
           of 3 to 6 bases begin at random places: the second side of a hairpin is the reversed
           complement of the first. An eighth of the bases is masked, and the loss is that of
           the masked ones. A base of a hairpin can be told from its partner, once the borders of
           the hairpin are found; others cannot be told.
Measured:  masked bases of hairpins that an encoder of 3 layers of width 64 tells, at the trained 64
           bases and at 128, with symmetric ALiBi, RoPE, a learned table (of 128 rows, of which
           training reaches 64) and no positions
Number:    docs/claims.md, claim A34
Results:   WORKDIR/results.csv. A model whose numbers are there is not trained again.
Paper:     Ren et al. (arXiv 2406.10391): over 13 RNA tasks ALiBi is better than learned and rotary
           positions.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from configs.sweeps.fitting import fitted
from configs.sweeps.runs import kept
from configs.sweeps.tables import report
from posenc_jax.core.command import Parser
from posenc_jax.model import Transformer, TransformerConfig

BASES, MASK, STEM, LOOP = 4, 4, 4, (3, 6)
TRAINED, LENGTHS, ROWS = 64, (64, 128), 32
ENCODINGS = {
    'alibi_symmetric': 'alibi_symmetric()',
    'rope': 'rope()',
    'learned_absolute': f'learned_absolute(max_len={max(LENGTHS)})',
    'nope': 'nope()',
}


def sequences(rng: np.random.Generator, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases [rows, length], and whether each of them belongs to a hairpin."""
    bases = rng.integers(0, BASES, (rows, length))
    paired = np.zeros((rows, length), bool)
    for row in range(rows):
        start = int(rng.integers(0, LOOP[1]))
        while True:
            far = start + STEM + int(rng.integers(LOOP[0], LOOP[1], endpoint=True))
            if far + STEM > length:
                break
            # bases 0 and 3 are a pair, and so are 1 and 2
            bases[row, far : far + STEM] = 3 - bases[row, start : start + STEM][::-1]
            paired[row, start : start + STEM] = paired[row, far : far + STEM] = True
            start = far + STEM + int(rng.integers(0, LOOP[1]))
    return bases, paired


def batch(rng: np.random.Generator, rows: int, length: int) -> dict[str, np.ndarray]:
    """Tokens with masks, the bases, and which of them are masked, in hairpins and at all."""
    bases, paired = sequences(rng, rows, length)
    masked = rng.random(bases.shape) < 1 / 8
    tokens = np.where(masked, MASK, bases).astype(np.int32)
    return {'tokens': tokens, 'bases': bases, 'masked': masked, 'asked': masked & paired}


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats of a masked base."""
    nats = optax.softmax_cross_entropy_with_integer_labels(model(batch['tokens']), batch['bases'])
    return (nats * batch['masked']).sum() / jnp.maximum(batch['masked'].sum(), 1)


def measured(name: str, seed: int, steps: int) -> dict[str, float]:
    """The share of masked bases of hairpins that a trained encoder tells, by length."""
    cfg = TransformerConfig(
        vocab_size=BASES + 1, output_size=BASES, train_len=TRAINED, layers=3, width=64, heads=4,
        kind='encoder', encoding=ENCODINGS[name],
    )  # fmt: skip
    rng = np.random.default_rng([seed, 1])
    batches = (batch(rng, ROWS, TRAINED) for _ in range(steps))
    model = fitted(Transformer(cfg, rngs=nnx.Rngs(seed)), loss, batches, steps=steps, rate=3e-3)
    told = {}
    for length in LENGTHS:
        test = batch(np.random.default_rng(length), 512, length)
        found = nnx.jit(lambda model, tokens: model(tokens))(model, test['tokens'])
        right = np.asarray(found.argmax(-1)) == test['bases']
        told[str(length)] = float(right[test['asked']].mean())
    return told


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/rna')
    given, rows = parser.parse_args(arguments), []
    for seed in given.seeds:
        for name, spec in ENCODINGS.items():
            settings = {'steps': given.steps, 'encoding': spec}
            path = given.workdir / f'{name}_{seed}.json'
            told = kept(path, settings, functools.partial(measured, name, seed, given.steps))
            print(f'seed {seed}, {name}: {told}', flush=True)
            rows += [('hairpins', name, int(length), seed, share) for length, share in told.items()]
    report(rows, given.workdir, title='Masked bases', x='length', value='told', trained=TRAINED)


if __name__ == '__main__':
    main()
