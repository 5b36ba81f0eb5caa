"""Measurements of layers that are not attention."""

from configs.claims.claim import Measurement, above, by_seed, lead, minus, number

MIXERS = ('mixers', '--only', 'lavo', 'lightnet', 'rope')


def rise(name: str, near: int, far: int):
    """How many nats the loss of a run rises from one length to another."""
    return minus(number(name, 'nll', length=far), number(name, 'nll', length=near))


RECALL = (
    *('recall', '--only', 'attention', 'attention_rope', 'cheems', 'cheems_unrotated'),
    *('hybrid', 'hybrid_unrotated'),
)
MEASUREMENTS = {
    'M2b': Measurement(
        'Bytes of text read in windows of 128 and of 1024 after training with 128: nats that the '
        'loss of LightNet rises less than that of attention with RoPE.',
        'models',
        MIXERS,
        minus(rise('rope', 128, 1024), rise('lightnet', 128, 1024)),
        'nats a byte',
        margin=0.05,
        minutes=20,
        remark='LightNet has learned far less than attention after the same batches.',
    ),
    'M3': Measurement(
        'Bytes of text read in windows of 128 and of 1024 after training with 128: 0.02 '
        'nats minus the rise of the loss of LAVO.',
        'models',
        MIXERS,
        by_seed(lambda more: 0.02 - more, rise('lavo', 128, 1024)),
        'nats a byte',
        margin=0.005,
        minutes=20,
    ),
    'M4a': Measurement(
        'Associative recall in 256 tokens after training with 64, a scan below attention: with '
        'rotation in both minus without in either.',
        'models',
        RECALL,
        above('hybrid', 'hybrid_unrotated', length=256),
        'of exact match',
        margin=0.05,
        minutes=25,
        remark='The rotation of the scan and of attention were changed together; which one costs '
        'recall was not tested.',
    ),
    'M4b': Measurement(
        'Associative recall in 256 tokens after training with 64: a scan below attention without '
        'positions, minus the better of two scans and two layers of attention with RoPE.',
        'models',
        RECALL,
        lead(
            *(
                number(name, length=256)
                for name in ('hybrid_unrotated', 'cheems', 'cheems_unrotated', 'attention_rope')
            )
        ),
        'of exact match',
        margin=0.05,
        minutes=25,
    ),
    'M5': Measurement(
        'Recall of 8 pairs in 1024 tokens after training with 64: the hybrid without '
        'positions minus a plain decoder with RoPE.',
        'gmu_hybrid',
        ('--only', 'hybrid', 'rope'),
        above('hybrid', 'rope', length=1024),
        'of exact match',
        margin=0.05,
        minutes=25,
    ),
}
