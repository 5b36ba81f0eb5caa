"""Measurements of encodings of images, coordinates, points and graphs."""

from configs.claims.claim import (
    Measure,
    Measurement,
    MissingResultError,
    Results,
    above,
    lead,
    minus,
    number,
)

GROWN = 24  # pixels; models are trained on 16


def best_psnr(results: Results, field: str, step: float) -> dict[int, float]:
    """The PSNR of a network at a step, of the learning rate with the largest mean over seeds."""
    found: dict[str, dict[int, float]] = {}
    for row in results.rows:
        if row['name'].split(',')[0] == field and row.get('x') == step:
            found.setdefault(row['name'], {})[row['seed']] = row['value']
    if not found:
        raise MissingResultError(f'no PSNR of {field} at step {step:g}')
    return max(found.values(), key=lambda values: sum(values.values()) / len(values))


def faster(results: Results) -> dict[int, float]:
    """How many dB more SPDER has than SIREN after 90 steps."""
    own, other = (best_psnr(results, name, 90.0) for name in ('spder', 'siren'))
    return {seed: own[seed] - other[seed] for seed in sorted(own)}


def at_equal_size(field: str, other: str) -> Measurement:
    """How many dB more a network has than another of equal size, of the better rate of each."""
    psnr = lambda name: lambda results: best_psnr(results, name, 500.0)
    return Measurement(
        f'A picture of 48 x 48 pixels, networks of 2000 parameters, 500 steps: dB that {field} has '
        f'more than {other}.',
        'fields',
        ('--groups', 'equal'),
        minus(psnr(field), psnr(other)),
        'dB',
        margin=1.0,
        minutes=15,
    )


def on_the_globe(head: str, encoder: str) -> Measure:
    """The accuracy beyond 60 degrees of latitude."""
    return number(encoder, panel=head, folder='poles')


def without_error(results: Results, variant: str) -> dict[int, float]:
    """1 where a network ends without a wrong bit, of the learning rate with the fewest."""
    rows = [row for row in results.rows if row['name'].split(',')[0] == variant]
    if not rows:
        raise MissingResultError(f'no rates of wrong bits of {variant}')
    last = max(row['x'] for row in rows)
    return {row['seed']: float(row['value'] == 0) for row in rows if row['x'] == last}


def grown(name: str, larger: str, shown: str) -> Measurement:
    """What a model loses on images larger than in training, against a learned table."""
    kept = lambda run: minus(
        number(run, length=GROWN, folder=larger), number(run, length=16, folder=larger)
    )
    return Measurement(
        f'The quarter of an image that has a blob, in images of 24 pixels that show {shown} after '
        'training with 16: the accuracy that a learned table loses, minus what this model loses.',
        'images',
        ('growing',),
        minus(kept(name), kept('learned_grid')),
        'of images',
        margin=0.02,
        minutes=8,
    )


MEASUREMENTS = {
    'S1': grown('peg', 'scene', 'more of the scene'),
    'S2': Measurement(
        'Real digits: classes that are right with contextual terms of offsets, minus those with '
        'one bias for each offset.',
        'images',
        ('offsets',),
        above('contextual', 'bias', length=8),
        'of images',
        margin=0.05,  # the interval of one cell
        minutes=8,
    ),
    'S3': grown('mix_ffn', 'detail', 'it at a higher resolution'),
    'S4': Measurement(
        'Real digits under random shifts on a torus: the share that keeps its class after two '
        'shifts, minus that of a learned table.',
        'images',
        ('shift',),
        above('polyphase_anchor', 'learned_grid', panel='consistency'),
        'of images',
        margin=0.2,
        minutes=8,
    ),
    'S6': Measurement(
        'A checkerboard of 100 places on the globe: classes that are right beyond 60 degrees of '
        'latitude with harmonics and a Siren network, minus those of the best of three other '
        'encoders with any of three networks.',
        'globe',
        ('--only', 'geo_sh', 'geo_grid', 'geo_wrap', 'geo_direct'),
        lead(
            on_the_globe('siren', 'geo_sh'),
            *(
                on_the_globe(head, encoder)
                for encoder in ('geo_grid', 'geo_wrap', 'geo_direct')
                for head in ('linear', 'siren', 'fcnet')
            ),
        ),
        'of places',
        margin=0.02,
        minutes=30,
    ),
    'S7': Measurement(
        'A picture of 48 x 48 pixels after 90 steps of Adam, all with the rate of the papers: dB '
        'that SPDER has more than SIREN.',
        'fields',
        ('--groups', 'activations', '--only', 'spder', 'siren', '--rates', '1e-4'),
        faster,
        'dB',
        margin=32.0,  # a factor of 1,500, the least that the paper has
        minutes=6,
        remark='With a rate of 1e-3 SIREN is as early at 40 dB, and SPDER does not train.',
    ),
    'S8': at_equal_size('pins', 'siren'),
    'S9': at_equal_size('poly_inr', 'relu'),
    'S11': at_equal_size('doh', 'siren'),
    'S12': at_equal_size('recombiner_lpe', 'siren'),
    'S10': Measurement(
        'Pictures of 16 x 16 pixels of 16 bits after 2000 steps: 1 if a network of bit planes ends '
        'without a wrong bit, minus 1 if the same network of values does.',
        'fields',
        ('--groups', 'bits16'),
        minus(
            lambda results: without_error(results, 'bit_plane_inr'),
            lambda results: without_error(results, 'values'),
        ),
        'of pictures',
        margin=1.0,
        minutes=15,
    ),
    'S14': Measurement(
        'Up to three rectangles in a picture, after four steps of the decoder: objects that are '
        'found by one layer with encodings of boxes, minus those of four layers without.',
        'box_pe',
        ('--variants', 'unshared', 'recursive_both'),
        above('recursive_both', 'unshared', panel='rectangles', x=4.0),
        'of objects',
        margin=0.02,
        minutes=15,
    ),
    'S13': Measurement(
        'Clouds of 128 points in five shapes: scans along three orders of coordinates minus scans '
        'in the order of drawing, in classes that are right.',
        'points',
        ('--only', 'cheems_snake', 'cheems_random'),
        above('cheems_snake', 'cheems_random', length=128),
        'of clouds',
        margin=0.02,
        minutes=20,
    ),
    'S15': Measurement(
        'Triangles at each node of random regular graphs of 16 nodes: propagated random features '
        'minus the best of eigenvectors, returns of random walks and random features that are not '
        'propagated, in nodes that are right.',
        'graphs',
        ('triangles', '--only', 'none', 'lap_pe', 'rwse', 'random', 'rfp'),
        lead(
            *(
                number(name, metric='token_accuracy', length=16)
                for name in ('rfp', 'lap_pe', 'rwse', 'random')
            )
        ),
        'of nodes',
        margin=0.02,
        minutes=10,
    ),
    'S16': Measurement(
        'The rook and the Shrikhande graph: graphs told apart with curvature, minus the better of '
        'eigenvectors and random walks.',
        'graphs',
        (
            'pairs', '--only', 'rook_shrikhande_none', 'rook_shrikhande_lap_pe',
            'rook_shrikhande_rwse', 'rook_shrikhande_lcp',
        ),
        lead(*(number(f'rook_shrikhande_{name}', length=1) for name in ('lcp', 'lap_pe', 'rwse'))),
        'of graphs',
        margin=0.1,
        minutes=5,
    ),
}  # fmt: skip
