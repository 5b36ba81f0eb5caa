"""Measurements of biases, contextual and absolute positions on text, and of passkeys in it."""

from evidence.claims.claim import (
    SAME,
    Measure,
    Measurement,
    above,
    below,
    best,
    by_seed,
    gain,
    lead,
    lead_in_nats,
    mean,
    minus,
    number,
)

LENGTHS, PASSKEYS = ('lengths',), ('passkeys',)
MINUTES = {'lengths': 110, 'twice': 50, 'biases': 85}
LISTINGS = ('listings',)
WINDOW, TWICE, FAR = {'length': 128, **SAME}, {'length': 256, **SAME}, {'length': 1024, **SAME}
ALIBI_PI = 'alibi | alibi_pi(mode="dynamic")'
HIROPE = 'rope | hirope(window=128)'
HEATED = tuple(f'nope | nope_temperature(temperature={value})' for value in (1.2, 1.5))
STRETCHED = tuple(f'rope | {name}(factor=16.0)' for name in ('pi', 'ntk_aware', 'yarn'))


def on_text(
    test: str, measure: Measure, margin: float = 0.02, remark: str = '', group: str = 'lengths'
) -> Measurement:
    """A measurement by models of text that are trained in windows of 128 bytes."""
    return Measurement(
        test, 'text', (group,), measure, 'nats a byte', margin, MINUTES[group], remark=remark
    )


def on_listings(test: str, measure: Measure) -> Measurement:
    """A measurement by the models of listings, in which far context helps."""
    return Measurement(
        f'Listings read in windows of 8192 after training with 128: {test}',
        'text',
        LISTINGS,
        measure,
        'nats a byte',
        margin=0.02,
        minutes=60,
    )


def gained_on_listings(name: str) -> Measurement:
    """How much of the far context a model uses: a reader that knows all values gains 0.28 nats."""
    return on_listings(
        f'nats that {name} needs less than for the same bytes in windows of 128.',
        gain(name.lower(), 128, 8192, **SAME),
    )


def on_passkeys(test: str, measure: Measure, remark: str = '') -> Measurement:
    """A measurement by the models of passkeys."""
    return Measurement(
        test, 'text', PASSKEYS, measure, 'of keys', margin=0.05, minutes=25, remark=remark
    )


def found(name: str, length: int) -> Measure:
    """The share of keys that are found, at the start, in the middle and at the end of texts."""
    depths = [number(name, length=length, depth=depth) for depth in (0.0, 0.5, 1.0)]
    return mean(*depths)


MEASUREMENTS = {
    'B1': on_text(
        'The same bytes of text in windows of 128 and 256 after training with 128: how far the '
        'rise of the loss of ALiBi stays below 0.02 nats.',
        by_seed(lambda nats: nats + 0.02, gain('alibi', 128, 256, **SAME)),
        margin=0.005,
    ),
    'B2': on_text(
        'The same bytes of text in windows of 256: how far the loss of ALiBi, trained in windows '
        'of 128, stays below that of sinusoids that are trained in windows of 256 with as many '
        'bytes, plus 0.02 nats.',
        by_seed(lambda nats: nats + 0.02, below('alibi', 'sinusoidal_256', **TWICE)),
        margin=0.005,
        group='twice',
    ),
    'B4': on_text(
        'Text in windows of 128 bytes, as in training: nats that ALiBi needs less than the best of '
        'RoPE, sinusoids and the biases of T5, all at one learning rate.',
        lead_in_nats('alibi', 'rope', 'sinusoidal', 't5_rpe', **WINDOW),
    ),
    'B5': on_text(
        'The same bytes of text in windows of 1024 after training with 128: nats that KERPLE needs '
        'less than the better of ALiBi and T5.',
        lead_in_nats('kerple', 'alibi', 't5_rpe', **FAR),
    ),
    'B6': on_text(
        'The same bytes of text in windows of 1024 after training with 128: nats that FIRE needs '
        'less than the best of T5, ALiBi and KERPLE.',
        lead_in_nats('fire', 'alibi', 't5_rpe', 'kerple', **FAR),
    ),
    'B9': Measurement(
        'Heads of ALiBi, KERPLE and T5 in models of text of 4 layers: the rank correlation of the '
        'receptive field of the bias alone and that of the attention.',
        'text',
        LENGTHS,
        number('additive biases', panel='rank correlation'),
        'of correlation',
        margin=0.5,
        minutes=110,
    ),
    'B10': on_text(
        'The same bytes of text in windows of 256: nats that CABLE, trained in windows of 128, '
        'needs less than sinusoids that are trained in windows of 256 with as many bytes.',
        below('cable', 'sinusoidal_256', **TWICE),
        group='twice',
    ),
    'B16': on_text(
        'Text in windows of 128 bytes, as in training: nats that URPE needs less than the biases '
        'of T5.',
        below('urpe', 't5_rpe', **WINDOW),
        margin=0.01,
    ),
    'B19': on_text(
        'The same bytes of text in windows of 1024 after training with 128: nats that ALiBi needs '
        'less with slopes that are divided by 8.',
        below(ALIBI_PI, 'alibi', **FAR),
    ),
    'B25': gained_on_listings('ALiBi'),
    'B26': gained_on_listings('KERPLE'),
    'B27': on_listings(
        'nats that FIRE needs less than the best of T5, ALiBi and KERPLE.',
        lead_in_nats('fire', 'alibi', 't5_rpe', 'kerple', length=8192, **SAME),
    ),
    'B28': gained_on_listings('CABLE'),
    'B29': gained_on_listings('Sandwich'),
    'C3': on_text(
        'Text in windows of 128 bytes, as in training: nats that CoPE needs less than the better '
        'of RoPE and sinusoids.',
        lead_in_nats('cope', 'rope', 'sinusoidal', **WINDOW),
    ),
    'C5': on_text(
        'Text in windows of 128 bytes, as in training: nats that PaTH needs less than RoPE.',
        below('path', 'rope', **WINDOW),
        group='biases',
    ),
    'B8': on_text(
        'The same bytes of text in windows of 128 and 1024 after training with 128: how much more '
        'the loss rises with a series that diverges (harmonic) than with one that converges (1).',
        minus(gain('rpe_type1', 128, 1024, **SAME), gain('rpe_harmonic', 128, 1024, **SAME)),
        group='biases',
    ),
    'B13': on_text(
        'The same bytes of text in windows of 1024 after training with 128: how far the loss '
        'of BAM stays below that of ALiBi, plus 0.05 nats.',
        by_seed(lambda more: 0.05 + more, below('bam', 'alibi', **FAR)),
        group='biases',
    ),
    'B23': Measurement(
        'Bytes of text in windows of 128, as in training: next bytes that RCMHA predicts right, '
        'minus those of Transformer-XL attention.',
        'text',
        ('convolved',),
        above('rcmha', 'transformer_xl', 'token_accuracy', **WINDOW),
        'of bytes',
        margin=0.005,
        minutes=40,
    ),
    'B12': on_passkeys(
        'Passkeys in 1024 tokens after training with 16 to 64: BAM with scalable softmax minus the '
        'best of ALiBi, RoPE and no positions.',
        lead(*(found(name, 1024) for name in ('bam_ssmax', 'alibi', 'rope', 'nope'))),
        remark='The texts are 16 times as long as those of training. BAM without scalable softmax '
        'is not ahead for every seed, and scalable softmax was not combined with the others.',
    ),
    'B20': on_passkeys(
        'Passkeys in 1024 tokens after training with 16 to 64: ALiBi with slopes that are divided '
        'by 16 minus ALiBi.',
        minus(found(ALIBI_PI, 1024), found('alibi', 1024)),
    ),
    'B22': on_passkeys(
        'Passkeys in 1024 tokens after training with 16 to 64: how far the better of two '
        'temperatures without positions stays above the best of three extensions of RoPE less '
        '0.1.',
        by_seed(
            lambda own, other: 0.1 + own - other,
            best(*(found(name, 1024) for name in HEATED)),
            best(*(found(name, 1024) for name in STRETCHED)),
        ),
    ),
    'B21': Measurement(
        'The same bytes of text in windows of 512 after training with 128, without positions: nats '
        'that the model needs less with a temperature for each head that is trained there.',
        'continued',
        ('temperatures', '--steps', '8000'),
        below('heads', 'first', length=512, **SAME),
        'nats a byte',
        margin=0.1,
        minutes=45,
        remark='In its own windows the model has 1.17 to 1.19 nats, where a table of 5-grams has '
        '1.28. In windows of 512 it has 3.48 to 3.65 nats before and 2.59 to 2.72 after, where a '
        'table of pairs has 2.59; the temperatures cost 0.21 to 0.33 nats in windows of 128.',
    ),
    'A18': Measurement(
        'The same bytes of text: how far the loss in windows of 512 after CREAM on rows of 128 '
        'stays below that of the model before in the windows of 128 of its training, plus 0.1 '
        'nats.',
        'continued',
        ('parts', '--tuned', '400'),
        by_seed(
            lambda before, after: 0.1 + before - after,
            number('first', 'nll', length=128, **SAME),
            number('cream', 'nll', length=512, **SAME),
        ),
        'nats a byte',
        margin=0.02,
        minutes=20,
        remark='After 400 steps CREAM reads windows of 512 as well as models that are tuned on '
        'rows of 512 bytes with PI. After 100 steps it has .15 nats more than this claim allows.',
    ),
    'A20': Measurement(
        'The same bytes of text: nats that a model needs in the windows of 128 of its training, '
        'minus those in windows of 512 after tuning on rows of 128 in segments of 16 from 512.',
        'continued',
        ('parts', '--tuned', '400'),
        minus(
            number('first', 'nll', length=128, **SAME),
            number('segments', 'nll', length=512, **SAME),
        ),
        'nats a byte',
        margin=0.01,
        minutes=20,
    ),
    'A35': Measurement(
        'The same bytes of Python source in windows of 256 and 4096 after training with 256: how '
        'far the rise of the loss with HiRoPE stays below 0.1 nats.',
        'hirope_code',
        (),
        by_seed(lambda nats: nats + 0.1, gain(HIROPE, 256, 4096, **SAME)),
        'nats a byte',
        margin=0.02,
        minutes=34,
        remark='After 600 batches the models know less than a table of 5-grams. A model of 2000, '
        'which knows more, rises by 2.0 nats. In windows of 4096 '
        'bytes .82 of the bytes are farther from the start of their function or class than the '
        'trained length, so counting from there does not shorten the distances enough.',
    ),
}
