"""Measurements of content-dependent and learned encodings."""

import math

from evidence.claims.claim import (
    Measurement,
    above,
    below,
    by_seed,
    lead,
    lead_in_nats,
    mean,
    minus,
    number,
)

FLIP_FLOP = ('--only', 'tra', 'path', 'cope', 'nope', 'rope', 'alibi')
TRANSLATION = ('translation', '--only', 'sinusoidal', 'dpe', 'xlpe')
SPLITS = ('comparison', 'sparse', 'dense')
COUNTING = ('cope', 'rope', 'alibi', 'nope')


def flip_flop(name: str, length: int):
    """The mean exact match over the three densities of bits."""
    return mean(*(number(name, length=length, folder=folder) for folder in SPLITS))


CHECKS = range(1, 9)  # eighths of the training


def over_training(name: str):
    """The mean over the eighths of the training of a small task."""
    parts = (number(name, x=float(check)) for check in CHECKS)
    return mean(*parts)


def last(name: str):
    """The value at the end of the training of a small task."""
    return number(name, x=float(CHECKS[-1]))


SHIFT = 4.0  # pixels
OTHERS = [flip_flop(name, 64) for name in ('nope', 'rope', 'alibi')]
MEASUREMENTS = {
    'B14': Measurement(
        'Flip-flop with 64 pairs after training with 16: TRA minus the best of NoPE, RoPE and '
        'ALiBi, as the mean exact match of three densities.',
        'flip_flop',
        FLIP_FLOP,
        lead(flip_flop('tra', 64), *OTHERS),
        'of exact match',
        margin=0.05,
        minutes=20,
    ),
    'C1': Measurement(
        'Flip-flop with 64 pairs after training with 16: CoPE minus the best of NoPE, RoPE and '
        'ALiBi, as the mean exact match of three densities.',
        'flip_flop',
        FLIP_FLOP,
        lead(flip_flop('cope', 64), *OTHERS),
        'of exact match',
        margin=0.05,
        minutes=20,
    ),
    'C16': Measurement(
        'A generator of blobs whose grid is shifted by 4 pixels: how far the blob moves along, as '
        'a share of the shift, with the encoding minus with a trained grid.',
        'mspe',
        (),
        above('mspe', 'constant', panel='movement', x=SHIFT),
        'of the shift',
        margin=0.2,
        minutes=6,
        remark='The seeds disagree on both sides. Neither generator follows a grid by 4 pixels '
        'with zero padding; on a torus the encoding moves .33 to .37 of the way for every seed.',
    ),
    'C4a': Measurement(
        'Flip-flop with 64 pairs after training with 16: PaTH minus RoPE, as the mean exact match '
        'of three densities.',
        'flip_flop',
        FLIP_FLOP,
        minus(flip_flop('path', 64), flip_flop('rope', 64)),
        'of exact match',
        margin=0.05,
        minutes=20,
    ),
    'C2a': Measurement(
        'The value of a counter in programs of 64 steps after training with 8 to 32: CoPE minus '
        'the best of RoPE, ALiBi and NoPE.',
        'synthetic',
        ('counting',),
        lead(*(number(name, length=64) for name in COUNTING)),
        'of exact match',
        margin=0.05,
        minutes=45,
    ),
    'C2b': Measurement(
        'The symbols of a text without its blanks, 16 as in training, with twice and with half as '
        'many blanks: CoPE minus the best of RoPE, ALiBi and NoPE, the mean of both.',
        'synthetic',
        ('selective_copy',),
        lead(
            *(
                mean(*(number(name, length=16, folder=folder) for folder in SPLITS[1:]))
                for name in COUNTING
            )
        ),
        'of exact match',
        margin=0.05,
        minutes=20,
        remark='With the trained number of blanks CoPE writes .88 to .93 of the texts, RoPE .82 '
        'to .87 and ALiBi .66 to .76. With other numbers RoPE and no positions write none. One '
        'seed of CoPE writes .72 (half as many blanks) and .52 (twice as many), the others none; '
        'ALiBi writes .25 to .53 and .03 to .15.',
    ),
    'C4b': Measurement(
        'Products of 16 even permutations of five points after training with 1 to 8: PaTH minus '
        'RoPE, in products that are right.',
        'synthetic',
        ('a5',),
        above('path', 'rope', length=16, protocol='token_accuracy'),
        'of products',
        margin=0.05,
        minutes=15,
        remark='No side has learned the task after 2000 batches: of the products of the trained '
        'length .18 to .20 are right, with PaTH, RoPE or no positions.',
    ),
    'C4c': Measurement(
        'The parity of 64 bits after training with 1 to 16: PaTH minus RoPE, in parities that are '
        'right.',
        'synthetic',
        ('parity',),
        above('path', 'rope', length=64, protocol='token_accuracy'),
        'of parities',
        margin=0.05,
        minutes=12,
    ),
    'C6a': Measurement(
        'Sums of 12 digits after training with 1 to 8: TAPE minus RoPE, in digits that are right.',
        'tape_addition',
        ('--only', 'rope', 'tape'),
        above('tape', 'rope', 'token_accuracy', length=12),
        'of digits',
        margin=0.05,
        minutes=15,
    ),
    'C6b': Measurement(
        'Passkeys in 128 tokens after training with 16 to 64: TAPE minus RoPE.',
        'models',
        ('passkeys',),
        above('tape', 'rope', length=128),
        'of exact match',
        margin=0.05,
        minutes=12,
        remark='At 256 tokens the seeds disagree, and at 1024 neither finds any.',
    ),
    'C7': Measurement(
        'Bytes of text read in windows of 512 after training with 128: nats that SeqPE needs less '
        'than the better of ALiBi and RoPE.',
        'models',
        ('digits', '--only', 'seqpe', 'alibi', 'rope'),
        lead_in_nats('seqpe', 'alibi', 'rope', length=512),
        'nats a byte',
        margin=0.02,
        minutes=35,
        remark='SeqPE learns more slowly: within 128 bytes it has 1.31 to 1.49 nats, ALiBi 1.15 to '
        '1.16 and a table of 5-grams 1.29.',
    ),
    'C9': Measurement(
        'Sentences of 8 words, read after 500 batches: DPE minus sinusoids.',
        'models',
        TRANSLATION,
        above('dpe', 'sinusoidal', length=8),
        'of sentences',
        margin=0.02,
        minutes=10,
        remark='After 100 batches DPE is behind for every seed, by .08 to .13. Nine times the '
        'weight of its loss is no remedy.',
    ),
    'C10': Measurement(
        'Sentences of 8 words, read after 500 batches: XL PE with the true order minus sinusoids.',
        'models',
        TRANSLATION,
        above('xlpe', 'sinusoidal', length=8),
        'of sentences',
        margin=0.02,
        minutes=10,
    ),
    'C14': Measurement(
        'Text in windows of 64 bytes, 12 layers: nats that the model without positions needs less '
        'than the one with sinusoids.',
        'models',
        ('depth',),
        below('nope_12', 'sinusoidal_12', length=64),
        'nats a byte',
        margin=0.01,
        minutes=135,
        remark='The distance is .63 nats in 2 layers and .07 in 6; more than 12 were not trained. '
        'The models of 12 layers are within .04 nats of a table of 5-grams.',
    ),
    'N1': Measurement(
        'Text in windows of 64 bytes, 12 layers: how far the loss without positions stays below '
        'the better of those with sinusoids and with ALiBi, plus 0.05 nats.',
        'models',
        ('depth',),
        by_seed(
            lambda more: 0.05 + more,
            lead_in_nats('nope_12', 'sinusoidal_12', 'alibi_12', length=64),
        ),
        'nats a byte',
        margin=0.01,
        minutes=135,
        remark='The models of 12 layers are within .04 nats of a table of 5-grams.',
    ),
    'C8': Measurement(
        'Whether a letter is more frequent in the first or the second half of 20 letters, by '
        'encoders of two layers: CoPE in the first layer minus the best of RoPE, sinusoids and '
        'learned positions, as a mean over 400 steps of training.',
        'small_tasks',
        ('--groups', 'letters'),
        lead(
            *map(
                over_training,
                ('cope_complex', 'rope()', 'sinusoidal()', 'learned_absolute(max_len=20)'),
            )
        ),
        'of texts',
        margin=0.02,
        minutes=4,
        remark='The time of a step was not compared. Rounding alone moves the effect of a seed: '
        'with equal settings, before and after changes of the package that keep its results to '
        '1e-6, seed 0 has had .016, .050 and .030.',
    ),
    'C11': Measurement(
        'The offset of two of 16 x 16 pixels, in pairs that training leaves out: learnable '
        'Fourier features minus the better of sinusoids of both axes and a table, as a mean over '
        '1200 steps of training.',
        'small_tasks',
        ('--groups', 'pixels'),
        lead(*map(over_training, ('learnable_fourier', 'sinusoidal', 'table'))),
        'of pairs',
        margin=0.05,
        minutes=1,
    ),
    'C12': Measurement(
        'Half of the pixels of pictures of 64 x 64, from the other half by a linear model on 18 '
        'codes of three functions: the share of the variance of the PSNR that a square polynomial '
        'of the log stable rank of the codes explains.',
        'basis_rank',
        (),
        number('explained'),
        'of the variance',
        margin=0.7,
        minutes=1,
        remark='This measures the stable rank alone, and not how far distances are preserved.',
    ),
    'C13': Measurement(
        'Forms of 20 words, whose label is the kind of the neighbour that is read before each: a '
        'graph network with codes of the reading order and the offsets of neighbours minus one '
        'with the offsets alone.',
        'small_tasks',
        ('--groups', 'forms'),
        minus(last('codes'), last('offsets alone')),
        'of words',
        margin=0.05,
        minutes=1.5,
        remark='The labels are defined by the order that the codes tell, so a gain was to be '
        'expected.',
    ),
    'C15': Measurement(
        'Copies of texts of 6 to 12 symbols of three kinds, by a GRU with attention: the best '
        'minus the worst of attention to the content and to earlier weights, each with and '
        'without sinusoids.',
        'small_tasks',
        ('--groups', 'alignment'),
        by_seed(
            lambda *values: max(values) - min(values),
            *(
                last(f'{kind}, {positions}')
                for kind in ('content', 'location')
                for positions in ('none', 'sinusoid')
            ),
        ),
        'of exact match',
        margin=0.1,
        minutes=6,
        remark='All four copy every text, so that this task does not tell them apart.',
    ),
    'C17': Measurement(
        'A sum of three waves at the times of a stream, from another stream that has half as many '
        'samples: how many times smaller the squared error is when that stream is read as a '
        'positional encoding than with cross-attention and positions, log 10.',
        'small_tasks',
        ('--groups', 'streams'),
        by_seed(
            lambda own, other: math.log10(other / own), last('cmc_pe'), last('cross-attention')
        ),
        'orders of magnitude',
        margin=0.3,  # 2 times
        minutes=2,
    ),
}
