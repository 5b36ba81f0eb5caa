"""Measurements of extensions of one trained model of text, as it is and tuned."""

import functools

from evidence.claims.claim import (
    Measure,
    Measurement,
    MissingResultError,
    Results,
    below,
    by_seed,
    gain,
    lead,
    lead_in_nats,
    least,
    minus,
    number,
)

LENGTH = 256
REACH = 0.1  # nats a byte: a tenth more perplexity still counts as reaching a length


def nats(name: str, folder: str, length: int) -> Measure:
    """The loss of a model that was trained here."""
    return number(name, 'nll', folder=folder, length=length)


def searched(run: str, folder: str, length: int, short: bool = False) -> Measure:
    """The loss with searched factors, which differ from seed to seed; `short` tells whether there
    are factors for the original length too.
    """

    def measure(results: Results) -> dict[int, float]:
        found = {
            row['seed']: row['nll']
            for row in results.rows
            if (row['folder'], row.get('length')) == (folder, length)
            and row['name'].startswith(f'{run} | longrope')
            and ('short=' in row['name']) == short
        }
        if not found:
            raise MissingResultError(f'no loss of {run} with searched factors')
        return found

    return measure


def within(allowed: float, own: Measure, reference: Measure) -> Measure:
    """The nats that are allowed minus those that a model needs more than the reference."""
    return by_seed(lambda own, reference: allowed - (own - reference), own, reference)


def reaches(own: Measure, folder: str) -> Measure:
    """`REACH` minus what a model needs more than the base within its trained length."""
    return within(REACH, own, nats('base', folder, LENGTH))


def ahead(folder: str, length: int, own: tuple[str, ...], others: tuple[str, ...]) -> Measure:
    """How many nats fewer the better of `own` needs than the best of the others."""
    best = lambda names: least(*(nats(name, folder, length) for name in names))
    return minus(best(others), best(own))


def measurement(
    test: str, measure: Measure, margin: float, remark: str = '', unit: str = 'nats a byte'
) -> Measurement:
    """A measurement by the sweep of extensions of text."""
    return Measurement(
        test, 'text_extension', (), measure, unit, margin, minutes=110, remark=remark
    )


def untuned(*specs: str) -> tuple[str, ...]:
    """Names of the base with extensions."""
    return tuple(f'base | {spec}' for spec in specs)


def progressive(test: str, measure: Measure, margin: float) -> Measurement:
    """A measurement by the sweep of LongRoPE's whole recipe."""
    return Measurement(test, 'progressive', (), measure, 'nats a byte', margin, minutes=75)


searched_twice = functools.partial(searched, 'tuned', 'comparison')
YARN, NTK = 'yarn(factor=4.0)', 'dynamic_ntk(factor=4.0)'
GALI = untuned('gali(chunk=64)', 'gali(chunk=64, noise=1.0)')
# Other methods without training, for 4 and for 8 times the length.
NEAR = untuned(YARN, NTK, 'dca()', 'self_extend(group=8)')
FAR = untuned('yarn(factor=8.0)', 'dynamic_ntk(factor=8.0)', 'dca()', 'self_extend(group=16)')
MEASUREMENTS = {
    'R4': measurement(
        'A model of 256 bytes of code, tuned with PI of factor 16 for 100 steps of 4096 bytes: how '
        'far its loss in windows of 4096 bytes stays below that of the model before in windows of '
        '256, plus 0.1 nats, on the same bytes.',
        reaches(nats('pi_16', 'far', 4096), 'far'),
        margin=0.02,
    ),
    'R8': measurement(
        'A model of 256 bytes of code, tuned at 1024 bytes with YaRN of factor 16: how far the '
        'rise of its loss from windows of 1024 to 2048 bytes stays below 0.05 nats, on the same '
        'bytes.',
        within(0.05, nats('yarn_16', 'tuned', 2048), nats('yarn_16', 'tuned', 1024)),
        margin=0.005,
    ),
    'R10': measurement(
        'Factors that are searched for 2048 bytes, in a model of 256 bytes of code without tuning: '
        'how far its loss in windows of 2048 bytes stays below that of the plain model in windows '
        'of 256, plus 0.1 nats, on the same bytes.',
        reaches(searched('base', 'eighth', 2048), 'eighth'),
        margin=0.02,
    ),
    'R11': progressive(
        'A model of 256 bytes of code, tuned at 1024 bytes with searched factors and then given '
        'factors for 4096: how far its loss in windows of 4096 bytes stays below that of the model '
        'before in windows of 256, plus 0.1 nats, on the same bytes.',
        reaches(searched_twice(4096), 'comparison'),
        margin=0.02,
    ),
    'R12': progressive(
        'The models of R11 in windows of 256 bytes: nats that the readjusted factors save, or how '
        'far their loss stays below that of the model before the second search, plus 0.05 nats; '
        'the less of both.',
        least(
            minus(searched_twice(LENGTH), searched_twice(LENGTH, short=True)),
            within(0.05, searched_twice(LENGTH, short=True), nats('tuned', 'comparison', LENGTH)),
        ),
        margin=0.01,
    ),
    'R14': measurement(
        'A model of 256 bytes of code, tuned at 1024 bytes: how many nats less the loss of the '
        'same bytes rises from windows of 1024 bytes to 2048 with the truncated basis than with '
        'PI and with plain RoPE, the better of them.',
        lead(
            *(
                gain(name, 1024, 2048, folder='tuned')
                for name in ('truncated', 'pi', 'rope')
            )
        ),
        margin=0.02,
    ),
    'R17': measurement(
        'A model of 256 bytes of code in windows of 1024 bytes: nats that a larger base (ABF) '
        'needs less than the better of plain RoPE and PI, all tuned for 100 steps.',
        lead_in_nats('abf', 'rope', 'pi', folder='tuned', length=1024),
        margin=0.01,
    ),
    'R18': measurement(
        'A model of 256 bytes of code, tuned at 1024 bytes by adapters with PI: by how much more '
        'nats PSC lowers the loss, against adapters of as many parameters, in windows of 1024 '
        'bytes than of 256.',
        minus(
            below('pi_psc', 'pi_adapters', folder='tuned', length=1024),
            below('pi_psc', 'pi_adapters', folder='tuned', length=LENGTH),
        ),
        margin=0.01,
    ),
    'R24': measurement(
        'DCA in a model of 256 bytes of code without tuning: how far its loss in windows '
        'of 8192 bytes, 32 times the length, stays below that of the plain model in windows of '
        '256, plus 0.1 nats, on the same bytes.',
        reaches(nats('base | dca()', 'very_far', 8192), 'very_far'),
        margin=0.02,
    ),
    'R25': measurement(
        'A model of 256 bytes of code in windows of 1024 bytes: how far the loss of DCA without '
        'tuning stays below that of the best of PI, the NTK-aware rule and YaRN after 100 steps '
        'of tuning, plus 0.05 nats.',
        by_seed(
            lambda lead: 0.05 + lead,
            ahead('tuned', 1024, ('base | dca()',), ('pi', 'ntk_aware', 'yarn')),
        ),
        margin=0.005,
    ),
    'R26': measurement(
        'A model of 256 bytes of code without tuning, in windows of 1024 and of 2048 bytes: nats '
        'that GALI in chunks of 64, with or without the released noise, needs less than the best '
        'of YaRN, the dynamic NTK rule, Self-Extend and DCA; the less of the two lengths.',
        least(
            ahead('as_it_is', 1024, GALI, NEAR),
            ahead('gali', 2048, GALI, FAR),
        ),
        margin=0.02,
    ),
    'R27': measurement(
        'A model of 256 bytes of code without tuning, in windows of 256 bytes: nats that GALI with '
        'half of the trained positions needs less than the plain model.',
        below('base | gali(chunk=64, train_len=128)', 'base', folder='as_it_is', length=LENGTH),
        margin=0.01,
    ),
    'R28': measurement(
        'LM-Infinite in a model of 256 bytes of code without tuning: how far its loss in '
        'windows of 4096 bytes, 16 times the length, stays below that of the plain model in '
        'windows of 256, plus 0.1 nats, on the same bytes.',
        reaches(nats('base | lm_infinite()', 'far', 4096), 'far'),
        margin=0.02,
    ),
}  # fmt: skip
