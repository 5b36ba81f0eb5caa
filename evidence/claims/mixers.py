"""Measurements of layers that are not attention."""

from evidence.claims.claim import SAME, Measurement, above, by_seed, gain, lead, number

MIXERS = ('mixers', '--only', 'lavo', 'lightnet', 'cheems', 'rope')


RECALL = (
    *('recall', '--only', 'attention', 'attention_rope', 'cheems', 'cheems_unrotated'),
    *('hybrid', 'hybrid_unrotated'),
)
MEASUREMENTS = {
    'M2b': Measurement(
        'The same bytes of text in windows of 128 and 1024 after training with 128: how far the '
        'rise of the loss of LightNet stays below 0.1 nats.',
        'models',
        MIXERS,
        by_seed(lambda falls: 0.1 + falls, gain('lightnet', 128, 1024, **SAME)),
        'nats a byte',
        margin=0.05,
        minutes=60,
    ),
    'M3': Measurement(
        'The same bytes of text in windows of 128 and 1024 after training with 128: nats that the '
        'loss of LAVO rises less than that of LightNet and of Cheems.',
        'models',
        MIXERS,
        lead(*(gain(name, 128, 1024, **SAME) for name in ('lavo', 'lightnet', 'cheems'))),
        'nats a byte',
        margin=0.01,
        minutes=60,
        remark='LAVO and Cheems, a scan, keep their loss; LightNet, with rotary positions, rises '
        'by 2.5 to 3.2 nats. Within 128 bytes Cheems and attention are better than LAVO.',
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
        remark='The cause is the rotary encoding of attention: a rotated scan below attention '
        'without positions has 1.0, 1.0 and .87, and with RoPE in attention alone the task '
        'is not learned.',
    ),
    'M4b': Measurement(
        'Associative recall in 256 tokens after training with 64: a rotated scan below attention '
        'with RoPE, as published, minus the better of two scans and two layers of attention with '
        'RoPE.',
        'models',
        RECALL,
        lead(
            *(
                number(name, length=256)
                for name in ('hybrid', 'cheems', 'cheems_unrotated', 'attention_rope')
            )
        ),
        'of exact match',
        margin=0.05,
        minutes=25,
        remark='Without rotation in either layer the hybrid has .63, .66 and .20 more than the '
        'better of its parts.',
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
        remark='This measures recall without positions, and not the throughput of decoding. '
        '`benchmarks/hybrid_decode.py` measures that: 2.3 to 3.2 times, where the paper has up to '
        '10.',
    ),
}
