"""Methods without a claim of their own in papers.csv, and why."""

NOWHERE = 'the ledger has no claim of its paper, and no claim compares it'
GLOBE = 'one of the five encoders of the globe that claim S6 compares'
OF_GLOBE = f'an encoder of the globe; {NOWHERE}, since S6 compares five others'
MASK = f'a mask, which says what may be seen; {NOWHERE}'
WITHOUT = {
    'attention_entropy': 'an analysis; claim X8 reads the entropy of attention',
    'receptive_field': 'an analysis; claim B9 reads it',
    'lm_eval': 'an analysis; the claims on nats of text have its protocols',
    'rope_usage': 'the measurement under `rope_frequency_usage`, claim R2',
    'fourier_features': 'a baseline in claims S7a and S8',
    **dict.fromkeys(('geo_direct', 'geo_grid', 'geo_spherecplus', 'geo_wrap'), GLOBE),
    **dict.fromkeys(
        (
            'geo_cartesian3d', 'geo_dfs', 'geo_spherec', 'geo_spherem', 'geo_spheremplus',
            'geo_theory',
        ),
        OF_GLOBE,
    ),
    'nope': 'a baseline in claims A2, A10, B12, B14, C1, C2a, C2b and N10; the model without '
    'positions of claims A12, B21, B22, C14, M4a, M5 and N1 to N5',
    'sinusoidal': 'a baseline in claims A7, A9, A10, A12, B2 to B4, B10, B11, C3, C8 to C11, C14 '
    'and N1',
    'learned_absolute': 'a baseline in claims A34, C8, N7 and N10; the encoding of the models of '
    'claims A21, A23 and A25',
    'shaw': f'a baseline of other papers; {NOWHERE}',
    't5_rpe': 'a baseline in claims A10, A12, B4 to B6, B15 and B16; claims B7 and B9 have its '
    'biases',
    'transformer_xl': 'a baseline in claim B23',
    'xpos': f'a baseline of other papers; {NOWHERE}',
    'xpos_abf': f'a form of `xpos`; {NOWHERE}',
    'axial_rope2d': 'the encoding of both sides of claim A38',
    'learned_grid': 'a baseline in claims S1, S3 and S4',
    'sincos2d': f'a baseline of other papers; {NOWHERE}',
    'fcnet': 'one of the three networks of claim S6',
    'linear': 'one of the three networks of claim S6',
    'mlp': 'a baseline in claims S7a, S8 and S9',
    'siren': 'a baseline in claims S7a, S7b and S10 to S12, and one of the networks of claim S6',
    'lap_pe': 'a baseline in claims S15 and S16, and a part of claim S17',
    'rwse': 'a baseline in claims S15 and S16',
    'gin': 'the network of claims S15 to S17',
    'graph_attention': f'a network of graphs; {NOWHERE}',
    'gru': f'a recurrent layer; {NOWHERE}',
    'lstm': f'a recurrent layer; {NOWHERE}',
    **dict.fromkeys(('causal', 'document', 'full', 'prefix', 'window'), MASK),
    'per_head': f'a way to combine other encodings; {NOWHERE}',
    'giraffe_random': f'a control of the truncated basis of claim R14; {NOWHERE}',
    'lightnet_whole': f'LightNet in both directions, for grids as in claim M2a; {NOWHERE}',
    'md_lrpe': 'the positions of LightNet in claims M2b and M3',
    'md_tpe': f'positions of LightNet for grids; {NOWHERE}',
    'pcm_layer': 'the layer of both sides of claim S13',
    'peg_causal': f'the causal form of `peg`; {NOWHERE}',
    'spatial_reduction': f'the attention of the paper of claim S3; {NOWHERE}',
    'randomized_alibi': f'`randomized_pe` with ALiBi; {NOWHERE}, since A9 has sinusoids',
    'randomized_transformer_xl': f'`randomized_pe` with Transformer-XL; {NOWHERE}, since A9 has '
    'sinusoids',
    'self_extend': 'a baseline in claim R26',
    'ssmax': 'a part of the method of claim B12',
    'soft_cap': f'a part of public checkpoints; {NOWHERE}',
    'dynamic_ntk': 'a baseline in claims R9 and R26',
    'ntk_aware': 'a baseline in claims B22, R7, R9, R13, R21 and R25, and an extension of claim '
    'R32',
    'llama3_rope': f'frequencies of public checkpoints; {NOWHERE}',
}  # fmt: skip
