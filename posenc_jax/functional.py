"""The pure functions behind the encodings, on arrays: for notebooks, for other attention code, and
for other frameworks on JAX.

This module only collects them. Each function is defined and documented in the module of its method;
the classes in these modules hold the variables and call the functions.
"""

from posenc_jax.analysis.attention_entropy import row_entropy
from posenc_jax.analysis.decay_kernel import decay_kernel, field_of, theoretical_field
from posenc_jax.analysis.pi_bound import extrapolation_bound, interpolation_constant
from posenc_jax.analysis.rope_usage import positional_head
from posenc_jax.analysis.token_distance import plane_logits
from posenc_jax.collect.urpe import urpe_bucket, urpe_diagonal
from posenc_jax.conversion.pos2distill import (
    answer_divergence,
    joint_weights,
    moved_evidence,
    pos2distill_loss,
    slot_shares,
    slot_weights,
)
from posenc_jax.conversion.tulip import distillation_loss, expansion_factor
from posenc_jax.coordinates.geo.geo_sh import spherical_harmonics
from posenc_jax.coordinates.point_orders import grid_cells, point_key, point_order
from posenc_jax.coordinates.traced_orders import traced_order
from posenc_jax.core.convolution import depthwise
from posenc_jax.core.families import signed_distance
from posenc_jax.core.grids import on_grid
from posenc_jax.core.numerics import phase
from posenc_jax.core.products import scaled_dot_product, weighted_sum
from posenc_jax.decoding.ape_parallel import ape_layout, ape_merge
from posenc_jax.decoding.duo_attention import retrieval_heads
from posenc_jax.decoding.graph_kv import complete_edges, graph_layout, graph_sources
from posenc_jax.decoding.label_channels import (
    channel_scores,
    double_sparsity_attention,
    key_labels,
    label_channels,
    label_logits,
    top_keys,
)
from posenc_jax.decoding.nar import nar_logits, nar_sources
from posenc_jax.decoding.parallel_context_entropy import (
    best_pieces,
    piece_layout,
    piece_scores,
    pool_scores,
    select_pieces,
)
from posenc_jax.decoding.pie import pie_keys
from posenc_jax.embedding.dpe import order_loss
from posenc_jax.embedding.learnable_fourier import (
    learnable_fourier_features,
    learnable_fourier_network,
)
from posenc_jax.embedding.learned_absolute import fairseq_ids, interpolated_positions
from posenc_jax.embedding.learned_grid import cubic_weights, learned_grid_vectors
from posenc_jax.embedding.papeft import (
    document_locations,
    located_prompts,
    location_code,
    shuffled_documents,
)
from posenc_jax.embedding.pcm import pcm_linear, pcm_network
from posenc_jax.embedding.peg import peg
from posenc_jax.embedding.polyphase_anchor import anchor_place, anchored
from posenc_jax.embedding.sigma_gpt import sigma_gpt_sinusoid
from posenc_jax.embedding.sincos2d import sincos2d_detr, sincos2d_table
from posenc_jax.embedding.sinusoidal import sinusoidal_frequencies, sinusoidal_table
from posenc_jax.extension.alibi_pi import alibi_pi_scale
from posenc_jax.extension.dca import dca_distance
from posenc_jax.extension.gali import gali_chunks, gali_ids, gali_slots, pair_normals
from posenc_jax.extension.hirope import hierarchical_ids
from posenc_jax.extension.ms_poe import head_order, head_scores, ms_poe_ratios, ratio_index
from posenc_jax.extension.piecewise import piecewise_logits
from posenc_jax.extension.self_extend import self_extend_capacity, self_extend_distance
from posenc_jax.extension.string import string_distance
from posenc_jax.graph.curvature import forman_ricci, ollivier_bounds, ollivier_ricci
from posenc_jax.graph.lap_pe import laplacian_eigenvectors, sign_invariant
from posenc_jax.graph.lcp import curvature_profile
from posenc_jax.graph.rfp import propagate_features
from posenc_jax.graph.rfp_learned import neighbour_attention, propagate_learned
from posenc_jax.graph.rwse import return_probabilities
from posenc_jax.logits.alibi import alibi_bias, alibi_half, alibi_slopes
from posenc_jax.logits.bam import bam_prior
from posenc_jax.logits.cable import cable_bias
from posenc_jax.logits.cope import cope_bias
from posenc_jax.logits.fire import fire_network, fire_progress, fire_transform
from posenc_jax.logits.irpe import irpe_bias, irpe_terms, irpe_values
from posenc_jax.logits.irpe_index import irpe_buckets, irpe_ids, irpe_piecewise, irpe_thresholds
from posenc_jax.logits.kernelized_rpe import (
    distance_bias,
    kernel_features,
    kernel_logits,
    kernelized_rpe_attention,
    random_directions,
)
from posenc_jax.logits.kerple import kerple_log, kerple_log3, kerple_power, kerple_weight
from posenc_jax.logits.nope_temperature import attention_entropy, nope_temperature_curve
from posenc_jax.logits.path import evolve_keys, forget_bias, path_directions, path_match
from posenc_jax.logits.positional_attention import project_positions
from posenc_jax.logits.random_offsets import random_magnitudes
from posenc_jax.logits.randomized_alibi import randomized_alibi_bias
from posenc_jax.logits.rcmha import rcmha_bias, rcmha_convolution
from posenc_jax.logits.rope_alibi_harmonic import harmonic_number, harmonic_penalty
from posenc_jax.logits.rpe_convergent import convergent_bias
from posenc_jax.logits.sandwich import sandwich_bias, sandwich_curve, sandwich_slopes
from posenc_jax.logits.shaw import shaw_index, shaw_logits, shaw_terms, shaw_values
from posenc_jax.logits.soft_cap import soft_capped
from posenc_jax.logits.ssmax import ssmax_factor
from posenc_jax.logits.t5_rpe import t5_bias, t5_bucket, t5_thresholds
from posenc_jax.logits.tra import tra_logits
from posenc_jax.logits.transformer_xl import (
    transformer_xl_frequencies,
    transformer_xl_table,
    transformer_xl_turned,
)
from posenc_jax.mask.nar import near_to_far_order, near_to_far_positions
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
from posenc_jax.positions.bipe import bipe_ids, bipe_slopes
from posenc_jax.positions.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from posenc_jax.positions.giraffe_random import giraffe_ids
from posenc_jax.positions.gpe import gpe_ids, gpe_loss, wait_k_reads
from posenc_jax.positions.position_coupling import random_start
from posenc_jax.positions.positional_description import random_tags
from posenc_jax.positions.randomized_pe import random_ids, spaced_ids
from posenc_jax.positions.reverse_pe import newest_first, reverse_ids
from posenc_jax.positions.segmented_sequences import chunk_ids, prefix_ids, stretched_table
from posenc_jax.positions.uni_encoder import (
    candidate_means,
    uni_encoder_ids,
    uni_encoder_layout,
    uni_encoder_loss,
    uni_encoder_masks,
)
from posenc_jax.positions.v2pe import v2pe_ids
from posenc_jax.positions.xlpe import btg_order, order_from_alignment
from posenc_jax.rotation.axial_rope2d import axial_rope2d
from posenc_jax.rotation.carope import (
    carope_bias,
    carope_increments,
    carope_last,
    carope_log_rate,
    carope_match,
)
from posenc_jax.rotation.conflator import conflator_bigrams, switching_ids, switching_points
from posenc_jax.rotation.frequencies.dynamic_ntk import dynamic_ntk_frequencies
from posenc_jax.rotation.frequencies.giraffe import giraffe_frequencies
from posenc_jax.rotation.frequencies.llama3_rope import llama3_frequencies
from posenc_jax.rotation.frequencies.longrope import longrope_temperature, rescaled_factors
from posenc_jax.rotation.frequencies.ntk_aware import ntk_aware_base
from posenc_jax.rotation.frequencies.p_rope import p_rope_frequencies
from posenc_jax.rotation.frequencies.pi import pi_frequencies
from posenc_jax.rotation.frequencies.yarn import yarn_frequencies, yarn_ramp, yarn_temperature
from posenc_jax.rotation.psc import psc_calibrate
from posenc_jax.rotation.rope import rope, rope_frequencies, rotate
from posenc_jax.rotation.tapa import tapa_distance, tapa_logits
from posenc_jax.rotation.tape import tape_attended, tape_fed, tape_start, tape_turn
from posenc_jax.rotation.xpos import xpos_decay, xpos_scale
from posenc_jax.tasks.coupling import (
    coupled_addition_ids,
    coupled_copy_ids,
    coupled_grid_ids,
    coupled_multiplication_ids,
    coupled_parity_ids,
    coupled_reverse_ids,
    coupled_sum_ids,
    plain_ids,
)

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
    from posenc_jax.core.attributes import missing

    raise missing(__name__, name, __all__)
