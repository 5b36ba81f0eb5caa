"""The pure functions behind the encodings, on arrays: for notebooks, for other attention code, and
for other frameworks on JAX.

This module only collects them. Each function is defined and documented in the module of its method;
the classes in these modules hold the variables and call the functions.
"""

from posenc_jax.base.convolution import depthwise
from posenc_jax.base.phases import phase
from posenc_jax.base.products import scaled_dot_product, weighted_sum
from posenc_jax.features.coordinates.geo.geo_sh import spherical_harmonics
from posenc_jax.features.coordinates.point_orders import grid_cells, point_key, point_order
from posenc_jax.features.coordinates.traced_orders import traced_order
from posenc_jax.features.graphs.curvature import forman_ricci, ollivier_bounds, ollivier_ricci
from posenc_jax.features.graphs.lap_pe import laplacian_eigenvectors, sign_invariant
from posenc_jax.features.graphs.lcp import curvature_profile
from posenc_jax.features.graphs.rfp import propagate_features
from posenc_jax.features.graphs.rfp_learned import neighbour_attention, propagate_learned
from posenc_jax.features.graphs.rwse import return_probabilities
from posenc_jax.lab.analyse.attention_entropy import row_entropy
from posenc_jax.lab.analyse.decay_kernel import decay_kernel, field_of, theoretical_field
from posenc_jax.lab.analyse.pi_bound import extrapolation_bound, interpolation_constant
from posenc_jax.lab.analyse.rope_usage import positional_head
from posenc_jax.lab.analyse.token_distance import plane_logits
from posenc_jax.lab.conversion.pos2distill import (
    answer_divergence,
    joint_weights,
    moved_evidence,
    pos2distill_loss,
    slot_shares,
    slot_weights,
)
from posenc_jax.lab.conversion.tulip import distillation_loss, expansion_factor
from posenc_jax.lab.decoding.ape_parallel import ape_layout, ape_merge
from posenc_jax.lab.decoding.duo_attention import retrieval_heads
from posenc_jax.lab.decoding.graph_kv import complete_edges, graph_layout, graph_sources
from posenc_jax.lab.decoding.label_channels import (
    channel_scores,
    double_sparsity_attention,
    key_labels,
    label_channels,
    label_logits,
    top_keys,
)
from posenc_jax.lab.decoding.nar import nar_logits, nar_sources
from posenc_jax.lab.decoding.parallel_context_entropy import (
    best_pieces,
    piece_layout,
    piece_scores,
    pool_scores,
    select_pieces,
)
from posenc_jax.lab.decoding.pie import pie_keys
from posenc_jax.lab.tasks.coupling import (
    coupled_addition_ids,
    coupled_copy_ids,
    coupled_grid_ids,
    coupled_multiplication_ids,
    coupled_parity_ids,
    coupled_reverse_ids,
    coupled_sum_ids,
    plain_ids,
)
from posenc_jax.methods.alibi import alibi_bias, alibi_half, alibi_slopes
from posenc_jax.methods.alibi_pi import alibi_pi_scale
from posenc_jax.methods.axial_rope2d import axial_rope2d
from posenc_jax.methods.bam import bam_prior
from posenc_jax.methods.bipe import bipe_ids, bipe_slopes
from posenc_jax.methods.cable import cable_bias
from posenc_jax.methods.carope import (
    carope_bias,
    carope_increments,
    carope_last,
    carope_log_rate,
    carope_match,
)
from posenc_jax.methods.conflator import conflator_bigrams, switching_ids, switching_points
from posenc_jax.methods.cope import cope_bias
from posenc_jax.methods.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from posenc_jax.methods.dca import dca_distance
from posenc_jax.methods.dpe import order_loss
from posenc_jax.methods.dynamic_ntk import dynamic_ntk_frequencies
from posenc_jax.methods.fire import fire_network, fire_progress, fire_transform
from posenc_jax.methods.gali import gali_chunks, gali_ids, gali_slots, pair_normals
from posenc_jax.methods.giraffe import giraffe_frequencies
from posenc_jax.methods.giraffe_random import giraffe_ids
from posenc_jax.methods.gpe import gpe_ids, gpe_loss, wait_k_reads
from posenc_jax.methods.hirope import hierarchical_ids
from posenc_jax.methods.irpe import irpe_bias, irpe_terms, irpe_values
from posenc_jax.methods.irpe_index import irpe_buckets, irpe_ids, irpe_piecewise, irpe_thresholds
from posenc_jax.methods.kernelized_rpe import (
    distance_bias,
    kernel_features,
    kernel_logits,
    kernelized_rpe_attention,
    random_directions,
)
from posenc_jax.methods.kerple import kerple_log, kerple_log3, kerple_power, kerple_weight
from posenc_jax.methods.learnable_fourier import (
    learnable_fourier_features,
    learnable_fourier_network,
)
from posenc_jax.methods.learned_absolute import fairseq_ids, interpolated_positions
from posenc_jax.methods.learned_grid import cubic_weights, learned_grid_vectors
from posenc_jax.methods.llama3_rope import llama3_frequencies
from posenc_jax.methods.longrope import longrope_temperature, rescaled_factors
from posenc_jax.methods.ms_poe import head_order, head_scores, ms_poe_ratios, ratio_index
from posenc_jax.methods.nar import near_to_far_order, near_to_far_positions
from posenc_jax.methods.nope_temperature import attention_entropy, nope_temperature_curve
from posenc_jax.methods.ntk_aware import ntk_aware_base
from posenc_jax.methods.p_rope import p_rope_frequencies
from posenc_jax.methods.papeft import (
    document_locations,
    located_prompts,
    location_code,
    shuffled_documents,
)
from posenc_jax.methods.path import evolve_keys, forget_bias, path_directions, path_match
from posenc_jax.methods.pcm import pcm_linear, pcm_network
from posenc_jax.methods.peg import peg
from posenc_jax.methods.pi import pi_frequencies
from posenc_jax.methods.piecewise import piecewise_logits
from posenc_jax.methods.polyphase_anchor import anchor_place, anchored
from posenc_jax.methods.position_coupling import random_start
from posenc_jax.methods.positional_attention import project_positions
from posenc_jax.methods.positional_description import random_tags
from posenc_jax.methods.psc import psc_calibrate
from posenc_jax.methods.random_offsets import random_magnitudes
from posenc_jax.methods.randomized_alibi import randomized_alibi_bias
from posenc_jax.methods.randomized_pe import random_ids, spaced_ids
from posenc_jax.methods.rcmha import rcmha_bias, rcmha_convolution
from posenc_jax.methods.reverse_pe import newest_first, reverse_ids
from posenc_jax.methods.rope import rope, rope_frequencies, rotate
from posenc_jax.methods.rope_alibi_harmonic import harmonic_number, harmonic_penalty
from posenc_jax.methods.rpe_convergent import convergent_bias
from posenc_jax.methods.sandwich import sandwich_bias, sandwich_curve, sandwich_slopes
from posenc_jax.methods.segmented_sequences import chunk_ids, prefix_ids, stretched_table
from posenc_jax.methods.self_extend import self_extend_capacity, self_extend_distance
from posenc_jax.methods.shaw import shaw_index, shaw_logits, shaw_terms, shaw_values
from posenc_jax.methods.sigma_gpt import sigma_gpt_sinusoid
from posenc_jax.methods.sincos2d import sincos2d_detr, sincos2d_table
from posenc_jax.methods.sinusoidal import sinusoidal_frequencies, sinusoidal_table
from posenc_jax.methods.soft_cap import soft_capped
from posenc_jax.methods.ssmax import ssmax_factor
from posenc_jax.methods.string import string_distance
from posenc_jax.methods.t5_rpe import t5_bias, t5_bucket, t5_thresholds
from posenc_jax.methods.tapa import tapa_distance, tapa_logits
from posenc_jax.methods.tape import tape_attended, tape_fed, tape_start, tape_turn
from posenc_jax.methods.tra import tra_logits
from posenc_jax.methods.transformer_xl import (
    transformer_xl_frequencies,
    transformer_xl_table,
    transformer_xl_turned,
)
from posenc_jax.methods.uni_encoder import (
    candidate_means,
    uni_encoder_ids,
    uni_encoder_layout,
    uni_encoder_loss,
    uni_encoder_masks,
)
from posenc_jax.methods.urpe import urpe_bucket, urpe_diagonal
from posenc_jax.methods.v2pe import v2pe_ids
from posenc_jax.methods.xlpe import btg_order, order_from_alignment
from posenc_jax.methods.xpos import xpos_decay, xpos_scale
from posenc_jax.methods.yarn import yarn_frequencies, yarn_ramp, yarn_temperature
from posenc_jax.mixers.box_features import (
    box_features,
    centerness,
    dynamic_convolution,
    kernel_positions,
    position_term,
    proposal_attention,
    sine_features,
    sine_map,
)
from posenc_jax.mixers.location_weights import (
    location_centre,
    location_weights,
    soft_stair,
    step_size,
)
from posenc_jax.mixers.monotonic_location import mix_directions
from posenc_jax.mixers.peg_causal import causal_depthwise
from posenc_jax.mixers.spatial_reduction import reduced_grid
from posenc_jax.mixers.ssd import ssd_chunks, ssd_scan
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.grids import on_grid

__all__ = [
    'alibi_bias', 'alibi_half', 'alibi_pi_scale', 'alibi_slopes', 'anchor_place', 'anchored',
    'answer_divergence', 'ape_layout', 'ape_merge', 'attention_entropy', 'axial_rope2d',
    'bam_prior', 'best_pieces', 'bipe_ids', 'bipe_slopes', 'box_features', 'btg_order',
    'cable_bias', 'candidate_means', 'carope_bias', 'carope_increments', 'carope_last',
    'carope_log_rate', 'carope_match', 'causal_depthwise', 'centerness', 'channel_scores',
    'chunk_ids', 'complete_edges', 'conflator_bigrams', 'convergent_bias', 'cope_bias',
    'coupled_addition_ids', 'coupled_copy_ids', 'coupled_grid_ids', 'coupled_multiplication_ids',
    'coupled_parity_ids', 'coupled_reverse_ids', 'coupled_sum_ids', 'cream_bounds', 'cream_heads',
    'cream_ids', 'cream_thresholds', 'cubic_weights', 'curvature_profile', 'dca_distance',
    'decay_kernel', 'depthwise', 'distance_bias', 'distillation_loss', 'document_locations',
    'double_sparsity_attention', 'dynamic_convolution', 'dynamic_ntk_frequencies', 'evolve_keys',
    'expansion_factor', 'extrapolation_bound', 'fairseq_ids', 'field_of', 'fire_network',
    'fire_progress', 'fire_transform', 'forget_bias', 'forman_ricci', 'gali_chunks', 'gali_ids',
    'gali_slots', 'giraffe_frequencies', 'giraffe_ids', 'gpe_ids', 'gpe_loss', 'graph_layout',
    'graph_sources', 'grid_cells', 'harmonic_number', 'harmonic_penalty', 'head_order',
    'head_scores', 'hierarchical_ids', 'interpolated_positions', 'interpolation_constant',
    'irpe_bias', 'irpe_buckets', 'irpe_ids', 'irpe_piecewise', 'irpe_terms', 'irpe_thresholds',
    'irpe_values', 'joint_weights', 'kernel_features', 'kernel_logits', 'kernel_positions',
    'kernelized_rpe_attention', 'kerple_log', 'kerple_log3', 'kerple_power', 'kerple_weight',
    'key_labels', 'label_channels', 'label_logits', 'laplacian_eigenvectors',
    'learnable_fourier_features', 'learnable_fourier_network', 'learned_grid_vectors',
    'llama3_frequencies', 'located_prompts', 'location_centre', 'location_code', 'location_weights',
    'longrope_temperature', 'mix_directions', 'moved_evidence', 'ms_poe_ratios', 'nar_logits',
    'nar_sources', 'near_to_far_order', 'near_to_far_positions', 'neighbour_attention',
    'newest_first', 'nope_temperature_curve', 'ntk_aware_base', 'ollivier_bounds', 'ollivier_ricci',
    'on_grid', 'order_from_alignment', 'order_loss', 'p_rope_frequencies', 'pair_normals',
    'path_directions', 'path_match', 'pcm_linear', 'pcm_network', 'peg', 'phase', 'pi_frequencies',
    'pie_keys', 'piece_layout', 'piece_scores', 'piecewise_logits', 'plain_ids', 'plane_logits',
    'point_key', 'point_order', 'pool_scores', 'pos2distill_loss', 'position_term',
    'positional_head', 'prefix_ids', 'project_positions', 'propagate_features', 'propagate_learned',
    'proposal_attention', 'psc_calibrate', 'random_directions', 'random_ids', 'random_magnitudes',
    'random_start', 'random_tags', 'randomized_alibi_bias', 'ratio_index', 'rcmha_bias',
    'rcmha_convolution', 'reduced_grid', 'rescaled_factors', 'retrieval_heads',
    'return_probabilities', 'reverse_ids', 'rope', 'rope_frequencies', 'rotate', 'row_entropy',
    'sandwich_bias', 'sandwich_curve', 'sandwich_slopes', 'scaled_dot_product', 'select_pieces',
    'self_extend_capacity', 'self_extend_distance', 'shaw_index', 'shaw_logits', 'shaw_terms',
    'shaw_values', 'shuffled_documents', 'sigma_gpt_sinusoid', 'sign_invariant', 'signed_distance',
    'sincos2d_detr', 'sincos2d_table', 'sine_features', 'sine_map', 'sinusoidal_frequencies',
    'sinusoidal_table', 'slot_shares', 'slot_weights', 'soft_capped', 'soft_stair', 'spaced_ids',
    'spherical_harmonics', 'ssd_chunks', 'ssd_scan', 'ssmax_factor', 'step_size', 'stretched_table',
    'string_distance', 'switching_ids', 'switching_points', 't5_bias', 't5_bucket', 't5_thresholds',
    'tapa_distance', 'tapa_logits', 'tape_attended', 'tape_fed', 'tape_start', 'tape_turn',
    'theoretical_field', 'top_keys', 'tra_logits', 'traced_order', 'transformer_xl_frequencies',
    'transformer_xl_table', 'transformer_xl_turned', 'uni_encoder_ids', 'uni_encoder_layout',
    'uni_encoder_loss', 'uni_encoder_masks', 'urpe_bucket', 'urpe_diagonal', 'v2pe_ids',
    'wait_k_reads', 'weighted_sum', 'xpos_decay', 'xpos_scale', 'yarn_frequencies', 'yarn_ramp',
    'yarn_temperature',
]  # fmt: skip


def __getattr__(name: str):
    from posenc_jax.protocol.attributes import missing

    raise missing(__name__, name, __all__)
