"""English text beyond the trained length: biases, contextual and absolute positions, passkeys.

Command:   python -m evidence.experiments.text GROUP [--seeds 0 1 2] [--workdir DIR]
           [--only NAME ...]
           GROUP is one of
  lengths   models of 4 layers of width 96 in windows of 128 bytes, after 2000 batches of 8, read
            to 1024; and sinusoids trained in windows of 256, after as many bytes; besides, the
            receptive fields of the additive biases (`evidence.experiments.receptive`)
  biases    more encodings of the logits in the same setting
  twice     ALiBi and CABLE in windows of 128 bytes and sinusoids in windows of 256, after twice as
            many bytes as in `lengths`; sinusoids at 2e-3, the better of 2e-3 and 6e-3 for seed 0
  convolved RCMHA and Transformer-XL attention in the setting of `lengths`, read in the windows of
            their training; the model of RCMHA has 3 % more parameters
  bilevel   BiPE against its base encodings in windows of 256 bytes, after as many bytes as in
            `lengths`, read to 1024; a segment ends at a line break or a full stop
  segments  BiPE with ALiBi in the setting of `bilevel`: with words as segments, with other slopes,
            and at half and at twice the learning rate
  listings  models of 2 layers of width 64 in windows of 128 bytes of listings, in which far context
            helps, after 2000 batches of 16, read to 8192
  phases    TAPA with phases of 0.03 times those of the paper, against RoPE as it is and
            with extensions; after twice as many bytes as in `lengths`, at half the rate
  passkeys  a key of three digits in texts of 16 to 64 tokens, read to sixteen times that length,
            with the key at the start, in the middle and at the end
Number:    docs/claims.md, claims A13, A14, B1, B2, B4 to B6, B8 to B10, B12, B13, B16, B19, B20,
           B22, B23, B25 to B29, C3, C5 and R21
Results:   WORKDIR/comparison. Runs whose last step is saved are not trained again, so the sweep may
           be interrupted and started again.
"""

from evidence.experiments.bam_passkey import PRIOR
from evidence.experiments.receptive import Receptive
from evidence.experiments.runs import Sweep, main
from posenc_jax.methods.bipe import bipe_slopes


def segments(encoding: str, ends: tuple[int, ...] = (10, 46)) -> str:
    """BiPE around an encoding, with segments that end at these bytes."""
    return f'bipe(separators={ends}) | {encoding}'


def bipe_alibi(scale: float, ends: tuple[int, ...] = (10, 46)) -> str:
    """BiPE with ALiBi, whose slopes are multiplied by `scale`."""
    return segments(f'alibi(slopes={tuple(bipe_slopes(3, scale).tolist())})', ends)


GROUPS: dict[str, dict[str, str | dict[str, object]]] = {
    'lengths': {
        'nope': 'nope()',
        'rope': 'rope()',
        'sinusoidal': 'sinusoidal()',
        'alibi': 'alibi()',
        't5_rpe': 't5_rpe()',
        'kerple': 'kerple()',
        'fire': 'fire(threshold=32.0)',  # a quarter of the trained length, as in the paper
        'sandwich': 'sandwich()',
        'cable': 'cable()',
        'urpe': 'urpe()',
        'cope': 'cope()',
        'sinusoidal_256': {'encoding': 'sinusoidal()', 'train.length': 256, 'train.batch': 4},
    },
    'biases': {
        'rope': 'rope()',
        'path': 'path()',
        'alibi': 'alibi()',
        'bam': 'bam()',
        'rpe_type1': 'rpe_convergent(kernel="type1")',
        'rpe_harmonic': 'rpe_convergent(kernel="harmonic")',  # its sum diverges
    },
    'twice': {
        'alibi': 'alibi()',
        'cable': 'cable()',
        'sinusoidal_256': {
            'encoding': 'sinusoidal()',
            'train.length': 256,
            'train.batch': 4,
            'train.lr': 2e-3,
        },
    },
    'convolved': {'transformer_xl': 'transformer_xl()', 'rcmha': 'rcmha(max_len=128)'},
    'bilevel': {
        'rope': 'rope()',
        'bipe_rope': segments('rope()'),
        'alibi': 'alibi()',
        'bipe_alibi': bipe_alibi(96.0),
    },
    'segments': {
        # a word has a sixth of the bytes of a sentence, and its slopes are a fifth
        'words': bipe_alibi(19.2, (10, 32)),
        'words_steep': bipe_alibi(96.0, (10, 32)),
        'sentences_flat': bipe_alibi(19.2),
        'slow': {'encoding': bipe_alibi(96.0), 'train.lr': 2e-3},
        'fast': {'encoding': bipe_alibi(96.0), 'train.lr': 8e-3},
    },
    'listings': {
        'nope': 'nope()',
        'rope': 'rope()',
        'alibi': 'alibi()',
        't5_rpe': 't5_rpe()',
        'kerple': 'kerple()',
        'fire': 'fire(threshold=32.0)',
        'sandwich': 'sandwich()',
        'cable': 'cable()',
    },
    'phases': {'rope': 'rope()', 'tapa': 'tapa(phase=0.03)'},
    'passkeys': {
        'bam': PRIOR,
        'bam_ssmax': f'{PRIOR} | ssmax()',
        'alibi': 'alibi()',
        'rope': 'rope()',
        'nope': 'nope()',
    },
}
EXTENDED = {
    'lengths': [('alibi', 'alibi_pi(mode="dynamic")')],
    'phases': [('rope', f'{rule}(factor=4.0)') for rule in ('pi', 'ntk_aware', 'yarn')],
    'passkeys': [
        ('alibi', 'alibi_pi(mode="dynamic")'),
        ('rope', 'pi(factor=16.0)'),
        ('rope', 'ntk_aware(factor=16.0)'),
        ('rope', 'yarn(factor=16.0)'),
        ('nope', 'nope_temperature(temperature=1.2)'),
        ('nope', 'nope_temperature(temperature=1.5)'),
    ],
}


def settings(steps: int, length: int = 128, rate: float = 4e-3) -> tuple[str, ...]:
    """Models of 4 layers of width 96, after `steps` batches of 1024 bytes, cut into windows."""
    return (
        'model.width=96', 'model.heads=3', f'train.length={length}',
        f'train.batch={1024 // length}', f'train.steps={steps}', f'train.lr={rate}',
        'train.warmup=80', 'train.eval_every=400', 'train.save_every=100000',
    )  # fmt: skip


SETTINGS = {
    'lengths': settings(2000),
    'biases': settings(2000),
    'twice': settings(4000),
    'convolved': settings(2000),
    'bilevel': settings(2000, 256),
    'segments': settings(2000, 256),
    'phases': settings(4000, rate=2e-3),
    'listings': (
        'data.dataset=listings', 'model.layers=2', 'model.width=64', 'model.heads=4',
        'train.length=128', 'train.batch=16', 'train.steps=2000', 'train.lr=3e-3',
        'train.warmup=100', 'train.eval_every=500', 'train.save_every=100000',
    ),
    'passkeys': (
        'task=passkey(lm_weight=0.1)', 'model.layers=2', 'model.width=64', 'model.heads=4',
        'train.length=64', 'train.min_length=16', 'train.batch=32', 'train.steps=1500',
        'train.lr=1e-3', 'train.warmup=100', 'train.eval_every=500', 'train.save_every=100000',
    ),
}  # fmt: skip
SCORED = ('eval.protocols=same_tokens', 'eval.tokens=131072')  # the whole test text
BILEVEL = ('eval.lengths=256,512,1024', *SCORED)
READ = ('eval.lengths=128,256,1024', *SCORED)
EVALUATION = {
    'lengths': READ,
    'biases': READ,
    'twice': READ,
    'convolved': ('eval.lengths=128', *SCORED),
    'bilevel': BILEVEL,
    'segments': BILEVEL,
    'phases': ('eval.lengths=128,512,1024', *SCORED),
    'listings': ('eval.lengths=128,512,2048,8192', *SCORED),
    'passkeys': ('eval.lengths=64,256,1024', 'eval.depths=0,0.5,1', 'eval.samples=100'),
}
SWEEPS = {
    group: (Receptive if group == 'lengths' else Sweep)(
        __doc__,
        own,
        EXTENDED.get(group, []),
        workdir=f'runs/text/{group}',
        settings=SETTINGS[group],
        evaluation={'comparison': EVALUATION[group]},
    )
    for group, own in GROUPS.items()
}

if __name__ == '__main__':
    main(SWEEPS)
