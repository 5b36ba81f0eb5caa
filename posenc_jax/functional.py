"""The pure functions behind the encodings, on arrays: for notebooks, for other attention code, and
for other frameworks on JAX.

This module only collects them. Each function is defined and documented in the module of its method,
which is imported when the function is used; the classes in these modules hold the variables and
call the functions. `posenc_jax.lab.functional` has those of caches, conversions, analyses and
tasks.
"""

from posenc_jax import moved
from posenc_jax.protocol.lazy import names_from

_FUNCTIONS = {  # module -> its functions
    'base.convolution': 'depthwise',
    'base.phases': 'phase',
    'base.products': 'scaled_dot_product weighted_sum',
    'base.rotations': 'cayley exponential_less_one skew',
    'features.coordinates.barf': 'barf_features barf_window',
    'features.coordinates.gaussians': (
        'contracted_gaussian contracted_points expanded_points section_gaussian section_moments'
    ),
    'features.coordinates.geo.geo_sh': 'spherical_harmonics',
    'features.coordinates.grid_levels': 'grid_features grid_levels growth_factor spatial_hash',
    'features.coordinates.integrated_pe': 'integrated_features',
    'features.coordinates.point_orders': 'grid_cells point_key point_order',
    'features.coordinates.traced_orders': 'traced_order',
    'features.coordinates.triplane': 'plane_features',
    'features.graphs.curvature': 'forman_ricci ollivier_bounds ollivier_ricci',
    'features.graphs.graphormer': 'path_edges shortest_paths with_graph_token',
    'features.graphs.lap_pe': 'laplacian_eigenvectors sign_invariant',
    'features.graphs.lcp': 'curvature_profile',
    'features.graphs.pearl': 'filter_responses',
    'features.graphs.rfp': 'propagate_features',
    'features.graphs.rfp_learned': 'neighbour_attention propagate_learned',
    'features.graphs.rrwp': 'walk_probabilities',
    'features.graphs.rwse': 'return_probabilities',
    'methods.algebraic_pe': 'algebraic_sequence algebraic_start',
    'methods.algebraic_tree': 'algebraic_tree',
    'fields.finer': 'finer_activation',
    'fields.gauss': 'gauss_activation',
    'fields.wire': 'wire_activation',
    'methods.alibi': 'alibi_bias alibi_half alibi_slopes',
    'methods.alibi_pi': 'alibi_pi_scale',
    'methods.attention_sink': 'sink_share',
    'methods.axial_rope2d': 'axial_rope2d',
    'methods.bam': 'bam_prior',
    'methods.bipe': 'bipe_ids bipe_slopes',
    'methods.cable': 'cable_bias',
    'methods.cape': 'augmented centred',
    'methods.carope': 'carope_bias carope_increments carope_last carope_log_rate carope_match',
    'methods.conflator': 'conflator_bigrams switching_ids switching_points',
    'methods.cope': 'cope_bias',
    'methods.cream': 'cream_bounds cream_heads cream_ids cream_thresholds',
    'methods.dape': 'along_keys dape_adjustment',
    'methods.dca': 'dca_distance',
    'methods.dinov3_rope': 'dinov3_augmented dinov3_coordinates dinov3_periods dinov3_rope',
    'methods.deberta': 'deberta_bucket deberta_index deberta_logits deberta_terms',
    'methods.dpe': 'order_loss',
    'methods.dynamic_ntk': 'dynamic_ntk_frequencies',
    'methods.fire': 'fire_network fire_progress fire_transform',
    'methods.fox': 'fox_bias fox_horizons',
    'methods.fope': 'fope_frequencies fope_start fope_turn',
    'methods.gali': 'gali_chunks gali_ids gali_slots pair_normals',
    'methods.giraffe': 'giraffe_frequencies',
    'methods.giraffe_random': 'giraffe_ids',
    'methods.gpe': 'gpe_ids gpe_loss wait_k_reads',
    'methods.grape_a': 'grape_bias grape_gate',
    'methods.grape_ap': 'grape_ap_bias grape_ap_turn grape_ap_unit',
    'methods.grape_m': 'grape_frequencies grape_turn',
    'methods.grape_m_contextual': 'grape_increments grape_match',
    'methods.graphormer': 'graphormer_edge graphormer_spatial',
    'methods.hirope': 'hierarchical_ids',
    'methods.hope_rope': 'hope_rope_frequencies',
    'methods.irope': 'irope_pattern unit_rms',
    'methods.irpe': 'irpe_bias irpe_terms irpe_values',
    'methods.irpe_index': 'irpe_buckets irpe_ids irpe_piecewise irpe_thresholds',
    'methods.kernelized_rpe': (
        'distance_bias kernel_features kernel_logits kernelized_rpe_attention random_directions'
    ),
    'methods.kerple': 'kerple_log kerple_log3 kerple_power kerple_weight',
    'methods.learnable_fourier': 'learnable_fourier_features learnable_fourier_network',
    'methods.learned_absolute': 'fairseq_ids interpolated_positions',
    'methods.learned_grid': 'cubic_weights learned_grid_vectors',
    'methods.liere': 'liere liere_coordinates',
    'methods.llama3_rope': 'llama3_frequencies',
    'methods.log_length': 'llama4_factor logn_factor scaled_queries',
    'methods.longrope': 'longrope_temperature rescaled_factors',
    'methods.longrope2': 'critical_plane longrope2_base longrope2_factors',
    'methods.ms_poe': 'head_order head_scores ms_poe_ratios ratio_index',
    'methods.multimodal_rotary': 'component_reads component_rotary',
    'methods.nar': 'near_to_far_order near_to_far_positions',
    'methods.navit_factorized': 'factorized_vectors fractional_rows',
    'methods.nope_temperature': 'attention_entropy nope_temperature_curve',
    'methods.ntk_aware': 'ntk_aware_base',
    'methods.ntk_rope_mixed': 'ntk_rope_mixed_frequencies',
    'methods.p_rope': 'p_rope_frequencies',
    'methods.papeft': 'document_locations located_prompts location_code shuffled_documents',
    'methods.path': 'evolve_keys forget_bias path_directions path_match',
    'methods.pcm': 'pcm_linear pcm_network',
    'methods.peg': 'peg',
    'methods.pi': 'pi_frequencies',
    'methods.piecewise': 'piecewise_logits',
    'methods.point_transformer_bias': 'offset_units',
    'methods.polyphase_anchor': 'anchor_place anchored',
    'methods.pope': 'pope_delta pope_frequencies pope_polar',
    'methods.position_coupling': 'random_start',
    'methods.positional_attention': 'project_positions',
    'methods.positional_description': 'random_tags',
    'methods.psc': 'psc_calibrate',
    'methods.random_offsets': 'random_magnitudes',
    'methods.randomized_alibi': 'randomized_alibi_bias',
    'methods.randomized_pe': 'random_ids spaced_ids',
    'methods.rcmha': 'rcmha_bias rcmha_convolution',
    'methods.resonance_rope': 'resonant_frequencies',
    'methods.reverse_pe': 'newest_first reverse_ids',
    'methods.rope': 'rope rope_frequencies rotate',
    'methods.rope_3d': 'rope_3d',
    'methods.rope_alibi_harmonic': 'harmonic_number harmonic_penalty',
    'methods.rope_vit': 'rope_axial rope_mixed rope_mixed_start',
    'methods.rpe_convergent': 'convergent_bias',
    'methods.rrwp': 'rrwp_bias rrwp_network_bias',
    'methods.sandwich': 'sandwich_bias sandwich_curve sandwich_slopes',
    'methods.segmented_sequences': 'chunk_ids prefix_ids stretched_table',
    'methods.selective_rope': 'selective_increments selective_temperatures selective_units',
    'methods.self_extend': 'self_extend_capacity self_extend_distance',
    'methods.shape': 'document_numbers of_documents',
    'methods.shaw': 'shaw_index shaw_logits shaw_terms shaw_values',
    'methods.sigma_gpt': 'sigma_gpt_sinusoid',
    'methods.sincos2d': 'sincos2d_detr sincos2d_table',
    'methods.sinusoidal': 'sinusoidal_frequencies sinusoidal_table',
    'methods.soft_cap': 'soft_capped',
    'methods.ssmax': 'ssmax_factor',
    'methods.stick_breaking': 'stick_breaking_logits',
    'methods.streaming': 'without_gaps',
    'methods.string': 'string_distance',
    'methods.string_pe': (
        'string_cayley string_cayley_basis string_circulant string_circulant_start'
    ),
    'methods.swin_table': 'offset_bias offset_ids resized_offsets same_window',
    'methods.swin_v2_cpb': 'cosine_logits cpb_coordinates cpb_network',
    'methods.t5_rpe': 't5_bias t5_bucket t5_thresholds',
    'methods.tapa': 'tapa_distance tapa_logits',
    'methods.tape': 'tape_attended tape_fed tape_start tape_turn',
    'methods.tra': 'tra_logits',
    'methods.transformer_xl': (
        'transformer_xl_frequencies transformer_xl_table transformer_xl_turned'
    ),
    'methods.tree_paths': 'root_first tree_paths tree_steps',
    'methods.tree_pe': 'tree_features tree_weights',
    'methods.tupe': 'tupe_bias tupe_bucket',
    'methods.uni_encoder': (
        'candidate_means uni_encoder_ids uni_encoder_layout uni_encoder_loss uni_encoder_masks'
    ),
    'methods.urpe': 'urpe_bucket urpe_diagonal',
    'methods.v2pe': 'v2pe_ids',
    'methods.visual_layout': 'visual_layout visual_tokens',
    'methods.visual_positions': 'visual_ids',
    'methods.xlpe': 'btg_order order_from_alignment',
    'methods.xpos': 'xpos_decay xpos_scale',
    'methods.yarn': 'yarn_frequencies yarn_ramp yarn_temperature',
    'mixers.box_features': (
        'box_features centerness dynamic_convolution kernel_positions position_term '
        'proposal_attention sine_features sine_map'
    ),
    'mixers.grit': 'grit_attention signed_root',
    'mixers.location_weights': 'location_centre location_weights soft_stair step_size',
    'mixers.monotonic_location': 'mix_directions',
    'mixers.peg_causal': 'causal_depthwise',
    'mixers.point_transformer': 'nearest_points vector_attention',
    'mixers.spatial_reduction': 'reduced_grid',
    'mixers.ssd': 'ssd_chunks ssd_scan',
    'protocol.families': 'signed_distance',
    'protocol.grids': 'on_grid',
}
_AREAS = {
    'methods': 'Encodings and rules for frequencies',
    'features.coordinates': 'Features of coordinates',
    'features.graphs': 'Features of graphs',
    'fields': 'Activations of networks of coordinates',
    'mixers': 'Layers in the place of attention',
    'base': 'Numbers',
    'protocol': 'Positions',
}


def _index() -> str:
    """The functions by area and method, for `help` and for readers of `__doc__`."""
    lines = []
    for area, title in _AREAS.items():
        lines += ['', f'{title}:', '']
        own = {key: names for key, names in _FUNCTIONS.items() if key.startswith(f'{area}.')}
        lines += [
            f'    {key.rpartition(".")[2]}: {", ".join(names.split())}'
            for key, names in sorted(own.items())
        ]
    return '\n'.join(lines)


__doc__ = f'{__doc__}{_index()}\n'
__all__, _read = names_from(__name__, 'posenc_jax', _FUNCTIONS)
__dir__ = __all__.copy


def __getattr__(name: str):
    if name in moved.FUNCTIONS:
        raise ImportError(f'{__name__}.{name} has moved to posenc_jax.lab.functional')
    return _read(name)
