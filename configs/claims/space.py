"""Measurements of encodings of images, coordinates, points and graphs."""

from configs.claims.claim import Measurement, above

MEASUREMENTS = {
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
        'minus eigenvectors, in nodes that are right.',
        'graphs',
        ('triangles',),
        above('rfp', 'lap_pe', 'token_accuracy', length=16),
        'of nodes',
        margin=0.02,
        minutes=20,
    ),
}
