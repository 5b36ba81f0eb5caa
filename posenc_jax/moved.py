"""Says where the modules of posenc_jax 0.2 are, to programs that import them by their old names."""

import contextlib
import importlib
import importlib.machinery
import pathlib
import sys
import types

# Old package -> the packages that have its modules, apart from those that have another name.
_PACKAGES = {
    'analysis': ['lab.analyse'],
    'catalog': ['language.catalog', 'lab.catalogue'],
    'collect': ['methods'],
    'commands': ['lab.cli'],
    'conversion': ['lab.conversion'],
    'coordinates': ['features.coordinates'],
    'core': ['protocol', 'language', 'attention', 'base', 'methods', 'lab.files'],
    'decoding': ['lab.decoding'],
    'embedding': ['methods'],
    'evaluation': ['lab.evaluate'],
    'extension': ['methods'],
    'gallery': ['lab.cli.gallery'],
    'generate': ['lab.cli.generate'],
    'graph': ['features.graphs'],
    'logits': ['methods'],
    'mask': ['methods'],
    'model': ['lab.model', 'layer', 'lab.pretrained'],
    'model.pretrained': ['lab.pretrained'],
    'positions': ['methods'],
    'rotation': ['methods'],
    'rotation.frequencies': ['methods'],
    'run': ['lab.runs', 'lab.config', 'lab.files'],
    'search': ['lab.longrope_search'],
    'tasks': ['lab.tasks'],
    'training': ['lab.train', 'lab.cluster'],
}
# Old module, or old name in a package -> the module that has it, or its new name.
RENAMED = {
    **{
        f'coordinates.geo.geo_{name}': f'features.coordinates.geo.{file}'
        for file, names in (
            ('one_scale', 'cartesian3d direct wrap'),
            ('space2vec', 'grid theory'),
            ('sphere2vec', 'dfs spherec spherecplus spherem spheremplus'),
        )
        for name in names.split()
    },
    'analysis.field_plots': 'lab.analyse.receptive_field_reports',
    'analysis.of_models': 'lab.analyse.protocol',
    'analysis.reading': 'lab.analyse.subjects',
    'commands.console': 'console',
    'core.around': 'lab.files.repository',
    'core.attention': 'attention.attend',
    'core.attributes': 'protocol.lazy',
    'core.compose': 'language.make',
    'core.cudnn': 'attention.library.cudnn',
    'core.kernel': 'attention.kernels.passes',
    'core.kernel_arrays': 'attention.kernels.arrays',
    'core.kernel_call': 'attention.kernels.call',
    'core.kernel_operations': 'attention.kernels.operations',
    'core.kernel_padding': 'attention.kernels.padding',
    'core.kernel_parts': 'attention.kernels.constants',
    'core.kernel_sizes': 'attention.kernels.sizes',
    'core.kernel_visits': 'attention.kernels.visits',
    'core.library': 'attention.library.choice',
    'core.numerics': 'base.phases',
    'core.parts': 'attention.split_cache',
    'core.places': 'attention.library.plain_masks',
    'core.program': 'attention.kernels.program',
    'core.splash': 'attention.library.splash',
    'decoding.duo_cache': 'lab.decoding.duo_attention.cache',
    'decoding.keep_ends': 'lab.decoding.constant_cache',
    'decoding.pieces': 'lab.decoding.cached_contexts',
    'extension.extended_spec': 'methods.extend',
    'extension.parts': 'methods.extended_parts',
    'mixers.pieces': ['mixers.piecewise_scan', 'mixers.head_projections'],
    'rotation.single': 'methods.single_rotary',
    'run.job': 'lab.runs.prepare',
    'run.plan': 'lab.runs.run',
    'run.quiet': 'lab.files.orbax_reports',
    'run.reading': 'lab.model.inputs',
    'run.room': 'lab.files.checkpoint_files',
    'run.safe': 'lab.files.saved_steps',
    'search.longrope': 'lab.longrope_search.search',
    **{
        f'tasks.{old}': f'lab.tasks.{new}'
        for new, olds in (
            ('arithmetic.addition', 'arithmetic.sums'),
            ('chomsky15.strings', 'chomsky15.stack'),
            (
                'copy',
                'copy.copy copy.reverse copy.selective_copy copy.transduction formal.bucket_sort',
            ),
            ('globe.land', 'globe.land_or_ocean'),
            ('globe.sphere_points', 'globe.places'),
            ('images.blobs', 'images.quadrant'),
            ('images.image_task', 'images.stored_images'),
            ('language.selected', 'language.cream_text language.segmented_text'),
            ('picture_file', 'grey_levels'),
            ('retrieval.passkey', 'retrieval.passkeys'),
        )
        for old in olds.split()
    },
    'tasks.formal.BucketSort': 'lab.tasks.copy',
    # Functions whose samples a task draws now.
    'tasks.globe.checkerboard_samples': 'lab.tasks.globe.Checkerboard',
    'tasks.globe.land_samples': 'lab.tasks.globe.LandOrOcean',
    'tasks.graphs.blind_pair_samples': 'lab.tasks.graphs.BlindPairs',
    'training.extras': 'base.extras',
    'training.field_sums': ['lab.runs.field_problem', 'lab.runs.problem'],
    'version': '__version__',
}

FUNCTIONS = (  # those of posenc_jax.functional that are in posenc_jax.lab.functional
    'answer_divergence ape_layout ape_merge best_pieces channel_scores complete_edges '
    'coupled_addition_ids coupled_copy_ids coupled_grid_ids coupled_multiplication_ids '
    'coupled_parity_ids coupled_reverse_ids coupled_sum_ids decay_kernel distillation_loss '
    'double_sparsity_attention expansion_factor extrapolation_bound field_of graph_layout '
    'graph_sources interpolation_constant joint_weights key_labels label_channels label_logits '
    'moved_evidence nar_logits nar_sources pie_keys piece_layout piece_scores plain_ids '
    'plane_logits pool_scores pos2distill_loss positional_head retrieval_heads row_entropy '
    'select_pieces slot_shares slot_weights theoretical_field top_keys'
).split()


# Functions of posenc_jax.functional: old name=name, which begins with the key of the method.
RENAMED_FUNCTIONS = dict(
    pair.split('=')
    for pair in (
        'algebraic_sequence=algebraic_pe algebraic_start=algebraic_pe_start '
        'carope_bias=carope_start '
        'sink_share=attention_sink_share augmented=cape_augmented centred=cape_centred '
        'switching_ids=conflator_ids switching_points=conflator_points along_keys=dape_along_keys '
        'dinov3_augmented=dinov3_rope_augmented dinov3_coordinates=dinov3_rope_coordinates '
        'dinov3_periods=dinov3_rope_periods order_loss=dpe_loss pair_normals=gali_normals '
        'giraffe_ids=giraffe_random_ids wait_k_reads=gpe_wait_k_reads grape_bias=grape_a_bias '
        'grape_gate=grape_a_gate grape_frequencies=grape_m_frequencies grape_turn=grape_m_turn '
        'grape_increments=grape_m_contextual_increments grape_match=grape_m_contextual_match '
        'hierarchical_ids=hirope_ids unit_rms=irope_unit_rms distance_bias=kernelized_rpe_bias '
        'kernel_features=kernelized_rpe_features kernel_logits=kernelized_rpe_logits '
        'random_directions=kernelized_rpe_directions fairseq_ids=learned_absolute_ids '
        'interpolated_positions=learned_absolute_positions cubic_weights=learned_grid_weights '
        'llama3_frequencies=llama3_rope_frequencies llama4_factor=log_length_llama4_factor '
        'logn_factor=log_length_logn_factor scaled_queries=log_length_queries '
        'rescaled_factors=longrope_factors critical_plane=longrope2_critical_plane '
        'head_order=ms_poe_order head_scores=ms_poe_scores ratio_index=ms_poe_index '
        'factorized_vectors=navit_factorized_vectors fractional_rows=navit_factorized_rows '
        'attention_entropy=nope_temperature_entropy document_locations=papeft_locations '
        'located_prompts=papeft_prompts location_code=papeft_code '
        'shuffled_documents=papeft_documents evolve_keys=path_keys forget_bias=path_forget_bias '
        'offset_units=point_transformer_bias_units anchor_place=polyphase_anchor_place '
        'anchored=polyphase_anchor_image random_start=position_coupling_start '
        'project_positions=positional_attention_projected random_tags=positional_description_tags '
        'random_ids=randomized_pe_ids spaced_ids=randomized_pe_spaced_ids '
        'resonant_frequencies=resonance_rope_frequencies newest_first=reverse_pe_newest_first '
        'reverse_ids=reverse_pe_ids harmonic_number=rope_alibi_harmonic_number '
        'harmonic_penalty=rope_alibi_harmonic_penalty convergent_bias=rpe_convergent_bias '
        'chunk_ids=segmented_sequences_chunk_ids prefix_ids=segmented_sequences_prefix_ids '
        'stretched_table=segmented_sequences_table selective_increments=selective_rope_increments '
        'selective_temperatures=selective_rope_temperatures selective_units=selective_rope_units '
        'document_numbers=shape_document_numbers of_documents=shape_of_documents '
        'soft_capped=soft_cap_logits without_gaps=streaming_positions offset_bias=swin_table_bias '
        'offset_ids=swin_table_ids resized_offsets=swin_table_resized '
        'same_window=swin_table_same_window cosine_logits=swin_v2_cpb_logits '
        'cpb_coordinates=swin_v2_cpb_coordinates cpb_network=swin_v2_cpb_network '
        't5_bias=t5_rpe_bias t5_bucket=t5_rpe_bucket t5_thresholds=t5_rpe_thresholds '
        'tree_features=tree_pe_features '
        'tree_weights=tree_pe_weights candidate_means=uni_encoder_means btg_order=xlpe_btg_order '
        'order_from_alignment=xlpe_order integrated_features=integrated_pe_features '
        'plane_features=triplane_features spherical_harmonics=geo_sh_harmonics '
        'path_edges=graphormer_path_edges shortest_paths=graphormer_shortest_paths '
        'with_graph_token=graphormer_with_token laplacian_eigenvectors=lap_pe_eigenvectors '
        'sign_invariant=lap_pe_sign_invariant curvature_profile=lcp_profile '
        'filter_responses=pearl_responses propagate_features=rfp_features '
        'walk_probabilities=rrwp_probabilities return_probabilities=rwse_probabilities '
        'signed_root=grit_signed_root mix_directions=monotonic_location_mix '
        'causal_depthwise=peg_causal_depthwise nearest_points=point_transformer_neighbours '
        'vector_attention=point_transformer_attention reduced_grid=spatial_reduction_grid'
    ).split()
)


def place(name: str) -> str | None:
    """Where a module of posenc_jax 0.2 is, or the modules of a package; None if there was no such
    module.

    Example:
      >>> place('posenc_jax.logits.alibi'), place('posenc_jax.core.numerics')
      ('posenc_jax.methods.alibi', 'posenc_jax.base.phases')
      >>> place('posenc_jax.run')
      'posenc_jax.lab.runs, posenc_jax.lab.config or posenc_jax.lab.files'
    """
    if not (places := _places(name)):
        return None
    *others, last = places
    return f'{", ".join(others)} or {last}' if others else last


def _places(name: str) -> list[str]:
    """The modules and packages that have what an old name had."""
    package, _, old = name.partition('.')
    if package != 'posenc_jax':
        return []
    if there := RENAMED.get(old) or _PACKAGES.get(old):
        return [f'{package}.{new}' for new in ([there] if isinstance(there, str) else there)]
    known = max((p for p in _PACKAGES if old.startswith(f'{p}.')), key=len, default='')
    for new in _PACKAGES.get(known, ()):
        there = f'{package}.{new}{old.removeprefix(known)}'
        if _path(there).with_suffix('.py').is_file() or _is_folder(there):
            return [there]
    return []


def _path(name: str) -> pathlib.Path:
    return pathlib.Path(__file__).parents[1].joinpath(*name.split('.'))


def _is_folder(name: str) -> bool:
    return (_path(name) / '__init__.py').is_file()


def _place_of_attribute(package: str, name: str) -> str | None:
    """Where a name of an old package is: in the package among its places that has it."""
    if (there := place(f'{package}.{name}')) is not None:
        return there
    for new in _places(package):
        with contextlib.suppress(ImportError):  # the library of an extra is not installed
            if hasattr(importlib.import_module(new), name):
                return new
    return place(package)


class Pointer:
    """Finds the packages and modules of posenc_jax 0.2. An old name whose place is a package can be
    imported, and is empty, so that Python looks up its modules here too. Importing one of its
    modules, or reading a name of it, raises an ImportError that says where the module or the name
    is.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if (there := place(name)) is None:
            return None
        if any(map(_is_folder, _places(name))):
            return importlib.machinery.ModuleSpec(name, Pointer, is_package=True)
        raise ModuleNotFoundError(f'{name} has moved to {there}', name=name)

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        def missing(name: str):
            if name.startswith('__'):
                raise AttributeError(name)
            there = _place_of_attribute(module.__name__, name)
            raise ImportError(f'{module.__name__}.{name} has moved to {there}')

        module.__getattr__ = missing  # pyright: ignore[reportAttributeAccessIssue]


sys.meta_path.insert(0, Pointer)  # before Python takes an old folder that is left for a package
