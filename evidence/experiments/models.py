"""Encoders, encoder-decoders and recurrent mixers: what the papers claim of them, small.

Command:   python -m evidence.experiments.models GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME ...]
           GROUP is one of
  chomsky      six of the 15 tasks of `chomsky15` in an encoder, plain and randomized positions
  translation  `dpe` and `xlpe` against sinusoids, from a source whose words move
  recall       `mqar` with attention, `cheems` and both, with and without rotation
  mixers       text to eight times the trained length with `lavo`, `lightnet`, `cheems` and
               attention, in the setting of `evidence.experiments.text lengths`
  depth        text without positions, with sinusoids and with ALiBi, in 2, 6 and 12 layers
  digits       `seqpe` trained at 128 bytes of text, against ALiBi and RoPE, in the
               setting of `evidence.experiments.text lengths`
  passkeys     `tape` against `rope` on passkeys up to sixteen times the trained length
Time:      2 to 8 minutes a run on one core
Results:   WORKDIR/comparison; docs/results/models.md has the numbers. Runs whose last step is saved
           are not trained again, so the sweep may be interrupted and started again.
"""

from evidence.experiments import text
from evidence.experiments.runs import Sweep, main

CHOMSKY = (
    'even_pairs',
    'reverse_string',
    'missing_duplicate_string',
    'bucket_sort',
    'odds_first',
    'cycle_navigation',
)
POSITIONS = {'plain': 'sinusoidal()', 'randomized': 'randomized_pe(max_len=512) | sinusoidal()'}
ATTENTION = 'nope()'
CHEEMS = 'cheems(chunk=32, dt=0.05{})'


def chomsky() -> dict[str, dict[str, object]]:
    """Every task with every kind of positions."""
    return {
        f'{task}_{name}': {'task': f'chomsky15(name="{task}")', 'encoding': encoding}
        for task in CHOMSKY
        for name, encoding in POSITIONS.items()
    }


def translation() -> dict[str, dict[str, object]]:
    """The encodings of the source, which alone may read the alignments."""
    sides = {
        'sinusoidal': ('translation(words=16)', 'sinusoidal()'),
        'dpe': ('translation(words=16, alignments=True)', 'dpe()'),
        'dpe_weighted': ('translation(words=16, alignments=True)', 'dpe(lam=0.1)'),
        'xlpe': ('translation(words=16, alignments=True)', 'xlpe()'),
    }
    return {
        name: {'task': task, 'encoding': 'sinusoidal()', 'source_encoding': encoding}
        for name, (task, encoding) in sides.items()
    }


def recall() -> dict[str, dict[str, object]]:
    """Pure attention, pure scans and hybrids; the hybrid's attention has no positions."""
    layers = {
        'attention': (ATTENTION, ATTENTION),
        'attention_rope': ('rope()', 'rope()'),
        'cheems': (CHEEMS.format(''),) * 2,
        'cheems_unrotated': (CHEEMS.format(', rotate=False'),) * 2,
        'hybrid': (CHEEMS.format(''), 'rope()'),
        'hybrid_unrotated': (CHEEMS.format(', rotate=False'), ATTENTION),
        # one of the two is rotated
        'hybrid_scan': (CHEEMS.format(''), ATTENTION),
        'hybrid_attention': (CHEEMS.format(', rotate=False'), 'rope()'),
    }
    return {name: {'encoding': 'rope()', 'pattern': pattern} for name, pattern in layers.items()}


def depth() -> dict[str, dict[str, object]]:
    """Models without positions, with sinusoids and with ALiBi, by their number of layers."""
    return {
        f'{encoding}_{layers}': {'encoding': f'{encoding}()', 'model.layers': layers}
        for layers in (2, 6, 12)
        for encoding in ('nope', 'sinusoidal', 'alibi')
    }


GROUPS = {
    'chomsky': chomsky(),
    'translation': translation(),
    'recall': recall(),
    'mixers': {
        'lavo': 'lavo(slots=16, window=64)',
        'lightnet': "lightnet(encoding=md_lrpe(form='cosine'))",
        'lightnet_bare': 'lightnet()',
        'cheems': CHEEMS.format(''),
        'rope': 'rope()',
        'alibi': 'alibi()',
    },
    'depth': depth(),
    'digits': {
        'seqpe': 'seqpe(max_pos=2048)',
        'seqpe_shifted': 'seqpe(max_pos=2048, shift=0.9)',
        'seqpe_weighted': 'seqpe(max_pos=2048, contrastive=1.0, transfer=1.0)',
        'alibi': 'alibi()',
        'rope': 'rope()',
    },
    'passkeys': {'rope': 'rope()', 'tape': 'tape()'},
}
SIZES = ('model.layers=2', 'model.width=64', 'model.heads=4', 'train.save_every=100000')
SETTINGS = {
    'chomsky': (
        *SIZES, 'model.kind=encoder', 'train.length=20', 'train.min_length=3', 'train.batch=64',
        'train.steps=800', 'train.eval_every=400', 'train.weight_decay=0.01', 'train.lr=2e-3',
    ),
    'translation': (
        *SIZES, 'model.kind=encoder_decoder', 'train.length=8', 'train.min_length=1',
        'train.batch=64', 'train.steps=500', 'train.eval_every=50', 'train.eval_batches=4',
        'train.lr=3e-3', 'train.warmup=50',
    ),
    'recall': (
        *SIZES, 'task=mqar(pairs=8, vocab=128)', 'train.length=64', 'train.min_length=64',
        'train.batch=64', 'train.steps=800', 'train.eval_every=400', 'train.lr=3e-3',
    ),
    'mixers': text.settings(2000),
    'depth': (
        'model.width=32', 'model.heads=4', 'train.save_every=100000', 'train.length=64',
        'train.batch=16', 'train.steps=10000', 'train.eval_every=2000', 'train.lr=2e-3',
    ),
    'digits': text.settings(2000),
    'passkeys': (
        *SIZES, 'task=passkey(lm_weight=0.1)', 'train.length=64', 'train.min_length=16',
        'train.batch=32', 'train.steps=1500', 'train.eval_every=500', 'train.lr=1e-3',
    ),
}  # fmt: skip
EVALUATION = {
    'chomsky': ('eval.lengths=20,30,40,60,80', 'eval.samples=200', 'eval.positions=sampled'),
    'translation': ('eval.lengths=8,10,12', 'eval.samples=300'),
    'recall': ('eval.lengths=64,128,256', 'eval.samples=200'),
    'mixers': ('eval.lengths=128,256,512,1024', *text.SCORED),
    'depth': ('eval.lengths=64', 'eval.protocols=nonoverlapping'),
    'digits': ('eval.lengths=128,512,1024', *text.SCORED),
    'passkeys': ('eval.lengths=64,128,256,1024', 'eval.samples=200'),
}


SWEEPS = {
    group: Sweep(
        __doc__,
        GROUPS[group],
        workdir=f'runs/models/{group}',
        config='configs/default.py',
        settings=SETTINGS[group],
        evaluation={'comparison': EVALUATION[group]},
    )
    for group in GROUPS
}

if __name__ == '__main__':
    main(SWEEPS)
