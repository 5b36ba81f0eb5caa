"""The pure functions behind the encodings, on arrays: for notebooks, for other attention code, and
for other frameworks on JAX.

    import posenc_jax.functional as F

    F.alibi_bias(F.alibi_slopes(heads), q_pos, k_pos)   [B, heads, T, S], added to the logits
    F.rope(x, positions)                                queries or keys [B, L, heads, H], rotated

The name of a function begins with the key of its method, so completing `F.alibi_` lists what ALiBi
has. Functions that several methods share have names of their own. `docs/functions.md` has the
arguments and a sentence for each.

This module only collects them. Each function is defined and documented in the module of its method,
which is imported when the function is used; the classes in these modules hold the variables and
call the functions. `posenc_jax.lab.functional` has those of caches, conversions, analyses and
tasks.
"""

from posenc_jax import moved
from posenc_jax.protocol.lazy import names_from

FAMILIES = {  # family -> module of a method -> its functions
    'Rotations of queries and keys': {
        'methods.algebraic_pe': 'algebraic_grid algebraic_pe algebraic_pe_start',
        'methods.algebraic_tree': 'algebraic_tree',
        'methods.axial_rope2d': 'axial_rope2d',
        'methods.carope': 'carope_increments carope_last carope_log_rate carope_match carope_start',
        'methods.conflator': 'conflator_bigrams conflator_ids conflator_points',
        'methods.dinov3_rope': (
            'dinov3_rope dinov3_rope_augmented dinov3_rope_coordinates dinov3_rope_periods'
        ),
        'methods.fope': 'fope_frequencies fope_start fope_turn',
        'methods.grape_m': 'grape_m_frequencies grape_m_turn',
        'methods.grape_m_contextual': 'grape_m_contextual_increments grape_m_contextual_match',
        'methods.liere': 'liere liere_coordinates',
        'methods.md_lrpe': 'md_lrpe md_lrpe_angles md_lrpe_frequencies',
        'methods.mrope': 'mhrope mrope mrope_interleaved',
        'methods.multimodal_rotary': 'component_reads component_rotary',
        'methods.path': 'path_directions path_forget_bias path_keys path_match',
        'methods.pope': 'pope_delta pope_frequencies pope_polar',
        'methods.rope': 'rope rope_frequencies rotate',
        'methods.rope_3d': 'rope_3d',
        'methods.rope_vit': 'rope_axial rope_mixed rope_mixed_start',
        'methods.selective_rope': (
            'selective_rope_increments selective_rope_maps selective_rope_temperatures '
            'selective_rope_units'
        ),
        'methods.string_pe': (
            'string_cayley string_cayley_basis string_circulant string_circulant_start'
        ),
        'methods.tape': 'tape_attended tape_fed tape_start tape_turn',
        'methods.videorope': 'hope_video videorope',
        'methods.xpos': 'xpos_decay xpos_scale',
    },
    'Rules for rotary frequencies': {
        'methods.abf': 'abf_frequencies',
        'methods.dynamic_ntk': 'dynamic_ntk_frequencies',
        'methods.giraffe': 'giraffe_frequencies',
        'methods.hope_rope': 'hope_rope_frequencies',
        'methods.llama3_rope': 'llama3_rope_frequencies',
        'methods.longrope': 'longrope_factors longrope_temperature',
        'methods.longrope2': 'longrope2_base longrope2_critical_plane longrope2_factors',
        'methods.ntk_aware': 'ntk_aware_base',
        'methods.ntk_rope_mixed': 'ntk_rope_mixed_frequencies',
        'methods.p_rope': 'p_rope_frequencies',
        'methods.pi': 'pi_frequencies',
        'methods.resonance_rope': 'resonance_rope_frequencies',
        'methods.yarn': 'yarn_frequencies yarn_ramp yarn_temperature',
    },
    'Biases of logits by positions': {
        'methods.alibi': 'alibi_bias alibi_half alibi_slopes',
        'methods.bam': 'bam_prior',
        'methods.beit_table': 'beit_table_resized',
        'methods.fire': 'fire_bias fire_network fire_progress fire_transform',
        'methods.grape_a': 'grape_a_bias grape_a_gate',
        'methods.graphormer': 'graphormer_degree graphormer_edge graphormer_spatial',
        'methods.kerple': 'kerple_log kerple_log3 kerple_power kerple_weight',
        'methods.randomized_alibi': 'randomized_alibi_bias',
        'methods.rope_alibi_harmonic': 'rope_alibi_harmonic_number rope_alibi_harmonic_penalty',
        'methods.rpe_convergent': 'rpe_convergent_bias',
        'methods.rrwp': 'rrwp_bias rrwp_network_bias',
        'methods.sandwich': 'sandwich_bias sandwich_curve sandwich_slopes',
        'methods.swin_table': (
            'swin_table_bias swin_table_ids swin_table_resized swin_table_same_window'
        ),
        'methods.swin_v2_cpb': 'swin_v2_cpb_coordinates swin_v2_cpb_logits swin_v2_cpb_network',
        'methods.t5_rpe': 't5_rpe_bias t5_rpe_bucket t5_rpe_thresholds',
    },
    'Logits of content and positions': {
        'methods.cable': 'cable_bias',
        'methods.cope': 'cope_bias',
        'methods.cope_complex': 'cope_complex_sines',
        'methods.dape': 'dape_adjustment dape_along_keys',
        'methods.deberta': 'deberta_bucket deberta_index deberta_logits deberta_terms',
        'methods.fox': 'fox_bias fox_horizons',
        'methods.grape_ap': 'grape_ap_bias grape_ap_turn grape_ap_unit',
        'methods.irpe': 'irpe_bias irpe_terms irpe_values',
        'methods.irpe_index': 'irpe_buckets irpe_ids irpe_piecewise irpe_thresholds',
        'methods.kernelized_rpe': (
            'kernelized_rpe_attention kernelized_rpe_bias kernelized_rpe_directions '
            'kernelized_rpe_features kernelized_rpe_logits'
        ),
        'methods.piecewise': 'piecewise_logits',
        'methods.positional_attention': 'positional_attention_projected',
        'methods.randomized_transformer_xl': 'randomized_transformer_xl_terms',
        'methods.rcmha': 'rcmha_bias rcmha_convolution',
        'methods.seqpe': 'seqpe_logits',
        'methods.seqpe_encoder': 'seqpe_block seqpe_digits seqpe_padding seqpe_positions',
        'methods.seqpe_losses': (
            'seqpe_comparisons seqpe_contrastive_loss seqpe_labels seqpe_transfer_loss '
            'seqpe_windows'
        ),
        'methods.shaw': 'shaw_index shaw_logits shaw_terms shaw_values',
        'methods.tapa': 'tapa_distance tapa_logits',
        'methods.tra': 'tra_logits',
        'methods.transformer_xl': (
            'transformer_xl_frequencies transformer_xl_table transformer_xl_turned'
        ),
        'methods.tupe': 'tupe_bias tupe_bucket',
    },
    'Vectors added to tokens': {
        'methods.dpe': 'dpe_loss',
        'methods.learnable_fourier': 'learnable_fourier_features learnable_fourier_network',
        'methods.learned_absolute': 'learned_absolute_ids learned_absolute_positions',
        'methods.learned_grid': 'learned_grid_vectors learned_grid_weights',
        'methods.navit_factorized': 'navit_factorized_rows navit_factorized_vectors',
        'methods.papeft': 'papeft_code papeft_documents papeft_locations papeft_prompts',
        'methods.pcm': 'pcm_linear pcm_network',
        'methods.peg': 'peg',
        'methods.polyphase_anchor': 'polyphase_anchor_image polyphase_anchor_place',
        'methods.positional_description': 'positional_description_tags',
        'methods.sigma_gpt': 'sigma_gpt_sinusoid',
        'methods.sincos2d': 'sincos2d_detr sincos2d_table',
        'methods.sinusoidal': 'sinusoidal_frequencies sinusoidal_table',
        'methods.tree_paths': 'root_first tree_paths tree_steps',
        'methods.tree_pe': 'tree_pe_features tree_pe_weights',
        'methods.xlpe': 'xlpe_btg_order xlpe_order',
    },
    'Keys that a query sees': {
        'methods.lm_infinite': 'lm_infinite_mask',
        'methods.nar': 'nar_mask near_to_far_order near_to_far_positions',
        'methods.prefix': 'prefix_mask',
        'methods.window': 'window_mask',
        'protocol.masks': 'causal_mask document_mask',
    },
    'Positions of tokens': {
        'methods.bipe': 'bipe_ids bipe_slopes',
        'methods.cape': 'cape2d_coordinates cape2d_table cape_augmented cape_centred',
        'methods.cream': 'cream_bounds cream_heads cream_ids cream_thresholds',
        'methods.giraffe_random': 'giraffe_random_ids',
        'methods.gpe': 'gpe_ids gpe_loss gpe_wait_k_reads',
        'methods.image_shift': 'image_shift_ids',
        'methods.irope': 'irope_pattern irope_unit_rms',
        'methods.position_coupling': 'position_coupling_start',
        'methods.random_offsets': 'random_magnitudes',
        'methods.randomized_pe': 'randomized_pe_ids randomized_pe_spaced_ids',
        'methods.reverse_pe': 'reverse_pe_ids reverse_pe_newest_first',
        'methods.shape': 'shape_document_numbers shape_of_documents',
        'methods.uni_encoder': (
            'uni_encoder_ids uni_encoder_layout uni_encoder_loss uni_encoder_masks '
            'uni_encoder_means'
        ),
        'methods.v2pe': 'v2pe_ids',
        'methods.visual_layout': 'visual_layout visual_tokens',
        'methods.visual_positions': 'circlerope_offset visual_ids',
    },
    'Extensions to longer texts': {
        'methods.alibi_pi': 'alibi_pi_scale',
        'methods.dca': 'dca_distance',
        'methods.gali': 'gali_chunks gali_ids gali_normals gali_slots',
        'methods.hirope': 'hirope_ids',
        'methods.log_length': 'log_length_llama4_factor log_length_logn_factor log_length_queries',
        'methods.ms_poe': 'ms_poe_index ms_poe_order ms_poe_ratios ms_poe_scores',
        'methods.nope_temperature': 'nope_temperature_curve nope_temperature_entropy',
        'methods.psc': 'psc_calibrate',
        'methods.rerope': 'leaky_rerope_distance rerope_distance',
        'methods.segmented_sequences': (
            'segmented_sequences_chunk_ids segmented_sequences_prefix_ids segmented_sequences_table'
        ),
        'methods.self_extend': 'self_extend_capacity self_extend_distance',
        'methods.streaming': 'streaming_positions',
        'methods.string': 'string_distance',
    },
    'Scales, caps and sums of weights': {
        'methods.attention_sink': 'attention_sink_share',
        'methods.point_transformer_bias': 'point_transformer_bias_units',
        'methods.soft_cap': 'soft_cap_logits',
        'methods.ssmax': 'ssmax_factor',
        'methods.stick_breaking': 'stick_breaking_logits',
        'methods.urpe': 'urpe_bucket urpe_diagonal',
    },
    'Features of coordinates': {
        'features.coordinates.barf': 'barf_features barf_window',
        'features.coordinates.gaussians': (
            'contracted_gaussian contracted_points expanded_points section_gaussian section_moments'
        ),
        'features.coordinates.fourier_features': (
            'fourier_features_bands fourier_features_nerf fourier_features_random'
        ),
        'features.coordinates.geo.geo_sh': 'geo_sh_harmonics',
        'features.coordinates.geo.multi_scale': 'geo_radii',
        'features.coordinates.geo.one_scale': 'geo_cartesian3d geo_direct geo_wrap',
        'features.coordinates.geo.space2vec': 'geo_grid geo_theory',
        'features.coordinates.geo.sphere2vec': (
            'geo_dfs geo_spherec geo_spherecplus geo_spherem geo_spheremplus'
        ),
        'features.coordinates.grid_levels': 'grid_features grid_levels growth_factor spatial_hash',
        'features.coordinates.integrated_pe': 'integrated_pe_features',
        'features.coordinates.mspe': 'mspe',
        'features.coordinates.point_orders': 'grid_cells point_key point_order',
        'features.coordinates.recombiner_lpe': (
            'recombiner_lpe_enlarged recombiner_lpe_read recombiner_lpe_waves'
        ),
        'features.coordinates.shifted_basis': 'shifted_basis',
        'features.coordinates.traced_orders': 'traced_order',
        'features.coordinates.triplane': 'triplane_features',
    },
    'Features of graphs': {
        'features.graphs.curvature': 'forman_ricci ollivier_bounds ollivier_ricci',
        'features.graphs.graphormer': (
            'graphormer_path_edges graphormer_shortest_paths graphormer_with_token'
        ),
        'features.graphs.lap_pe': 'lap_pe_eigenvectors lap_pe_sign_invariant',
        'features.graphs.lcp': 'lcp_profile',
        'features.graphs.pearl': 'pearl_responses',
        'features.graphs.rfp': 'rfp_features',
        'features.graphs.rfp_learned': 'neighbour_attention propagate_learned',
        'features.graphs.rrwp': 'rrwp_probabilities',
        'features.graphs.rwse': 'rwse_probabilities',
    },
    'Networks of coordinates': {
        'fields.doh': 'doh_weights',
        'fields.finer': 'finer_activation',
        'fields.gauss': 'gauss_activation',
        'fields.spder': 'spder_activation',
        'fields.wire': 'wire_activation',
    },
    'Layers in the place of attention': {
        'mixers.box_features': (
            'box_features centerness dynamic_convolution kernel_positions position_term '
            'proposal_attention sine_features sine_map'
        ),
        'mixers.grit': 'grit_attention grit_signed_root',
        'mixers.lavo': 'lavo',
        'mixers.location_weights': 'location_centre location_weights soft_stair step_size',
        'mixers.monotonic_location': 'monotonic_location_mix',
        'mixers.peg_causal': 'peg_causal_depthwise',
        'mixers.point_transformer': 'point_transformer_attention point_transformer_neighbours',
        'mixers.spatial_reduction': 'spatial_reduction_grid',
        'mixers.ssd': 'ssd_chunks ssd_scan',
    },
    'Parts of several methods': {
        'base.convolution': 'depthwise',
        'base.phases': 'phase',
        'base.products': 'scaled_dot_product weighted_sum',
        'base.rotations': 'cayley exponential_less_one skew',
        'protocol.families': 'signed_distance',
        'protocol.grids': 'on_grid',
    },
}


def _index() -> str:
    """The functions by family and method, for `help` and for readers of `__doc__`."""
    lines = []
    for title, methods in FAMILIES.items():
        lines += ['', f'{title}:', '']
        lines += [
            f'    {module.rpartition(".")[2]}: {", ".join(names.split())}'
            for module, names in methods.items()
        ]
    return '\n'.join(lines)


__doc__ = f'{__doc__}{_index()}\n'
__all__, _read = names_from(
    __name__, 'posenc_jax', {m: names for of in FAMILIES.values() for m, names in of.items()}
)
__dir__ = __all__.copy


def __getattr__(name: str):
    if name in moved.FUNCTIONS:
        raise ImportError(f'{__name__}.{name} has moved to posenc_jax.lab.functional')
    if name in moved.RENAMED_FUNCTIONS:
        raise ImportError(f'{__name__}.{name} is called {moved.RENAMED_FUNCTIONS[name]}')
    return _read(name)
