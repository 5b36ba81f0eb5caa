"""Methods without a claim of their own in papers.csv, and why."""

BASELINE = 'a baseline of the methods that are compared with it'
GLOBE = 'one of the encoders of the globe that claim S6 compares'
OF_GLOBE = 'an encoder of the globe from the same paper as `geo_sh`, which no claim compares yet'
WITHOUT = {
    'attention_entropy': 'an analysis; claim X8 reads it',
    'receptive_field': 'an analysis; claim B9 reads it',
    'fourier_features': 'a baseline of fields, in claims S7a and C12',
    **dict.fromkeys(
        ('geo_direct', 'geo_grid', 'geo_spherecplus', 'geo_wrap'),
        GLOBE,
    ),
    **dict.fromkeys(
        (
            'geo_cartesian3d', 'geo_dfs', 'geo_spherec', 'geo_spherem', 'geo_spheremplus',
            'geo_theory',
        ),
        OF_GLOBE,
    ),
    **dict.fromkeys(
        (
            'nope', 'sinusoidal', 'learned_absolute', 'sandwich', 'shaw', 't5_rpe',
            'transformer_xl', 'xpos', 'axial_rope2d', 'learned_grid', 'sincos2d', 'fcnet',
            'linear', 'mlp', 'siren', 'lap_pe', 'rwse', 'gin', 'graph_attention', 'gru', 'lstm',
        ),
        BASELINE,
    ),
    **dict.fromkeys(
        ('causal', 'document', 'full', 'prefix', 'window'), 'a mask; what may be seen, no claim'
    ),
    'lm_eval': 'an analysis; the claims on perplexity read it',
    'rope_usage': 'the measurement under `rope_frequency_usage`, claim R2',
    'per_head': 'a way to combine other encodings',
    'giraffe_random': 'a control of the truncated basis, claim R14',
    'lightnet_whole': 'LightNet in both directions, claim M2a',
    'md_lrpe': 'the positions of LightNet, claim M2a',
    'md_tpe': 'the positions of LightNet, claim M2a',
    'pcm_layer': 'a layer of the method of claim S13',
    'peg_causal': 'the causal form of `peg`, claim S1',
    'spatial_reduction': 'the attention of the model of claim S3',
    'randomized_alibi': 'a form of `randomized_pe`, claim A9',
    'randomized_transformer_xl': 'a form of `randomized_pe`, claim A9',
    'self_extend': 'a baseline of claim R26',
    'ssmax': 'a part of the method of claim B12',
    'soft_cap': 'a part of public checkpoints; its paper makes no claim of positions',
    'xpos_abf': 'a baseline of claim R25',
    'dynamic_ntk': 'a baseline of claim R9',
    'ntk_aware': 'a baseline of claim R9',
    'llama3_rope': 'frequencies of public checkpoints; its paper makes no claim of them',
}  # fmt: skip
