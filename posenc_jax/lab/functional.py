"""The pure functions of caches, conversions, analyses and tasks, on arrays.

This module only collects them. Each function is defined and documented in the module of its method.
`posenc_jax.functional` has those of encodings.
"""

from posenc_jax.protocol.lazy import names_from

_FUNCTIONS = {  # module -> its functions
    'analyse.attention_entropy': 'row_entropy',
    'analyse.decay_kernel': 'decay_kernel field_of theoretical_field',
    'analyse.pi_bound': 'extrapolation_bound interpolation_constant',
    'analyse.rope_usage': 'positional_head',
    'analyse.token_distance': 'plane_logits',
    'conversion.pi_resize': 'drawn_patch pi_resized resize_matrix resized_table',
    'conversion.pos2distill': (
        'answer_divergence joint_weights moved_evidence pos2distill_loss slot_shares slot_weights'
    ),
    'conversion.tulip': 'distillation_loss expansion_factor',
    'decoding.ape_parallel': 'ape_layout ape_merge',
    'decoding.duo_attention': 'duo_attention_mask retrieval_heads',
    'decoding.graph_kv': 'complete_edges graph_layout graph_sources',
    'decoding.label_channels': (
        'channel_scores double_sparsity_attention key_labels label_channels label_logits top_keys'
    ),
    'decoding.nar': 'nar_logits nar_sources',
    'decoding.parallel_context_entropy': (
        'best_pieces piece_layout piece_scores pool_scores select_pieces'
    ),
    'decoding.pie': 'pie_keys',
    'tasks.coupling': (
        'coupled_addition_ids coupled_copy_ids coupled_grid_ids coupled_multiplication_ids '
        'coupled_parity_ids coupled_reverse_ids coupled_sum_ids plain_ids'
    ),
}
__all__, __getattr__ = names_from(__name__, 'posenc_jax.lab', _FUNCTIONS)
__dir__ = __all__.copy
