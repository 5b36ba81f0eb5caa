"""Says where the modules of posenc_jax 0.2 are, to programs that import them by their old names."""

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
_RENAMED = {
    **{
        f'coordinates.geo.geo_{name}': f'features.coordinates.geo.{file}'
        for file, names in (
            ('one_scale', 'cartesian3d direct wrap'),
            ('space2vec', 'grid theory'),
            ('sphere2vec', 'dfs spherec spherecplus spherem spheremplus'),
        )
        for name in names.split()
    },
    'analysis.field_plots': 'lab.analyse.field_reports',
    'analysis.of_models': 'lab.analyse.protocol',
    'analysis.reading': 'lab.analyse.subjects',
    'core.around': 'lab.files.repository',
    'core.attention': 'attention.attend',
    'core.compose': 'language.make',
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
    'decoding.duo_cache': 'lab.decoding.duo_attention.cache',
    'decoding.keep_ends': 'lab.decoding.constant_cache',
    'extension.parts': 'methods.extended_parts',
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
            ('images.blobs', 'images.quadrant'),
            ('images.image_task', 'images.stored_images'),
            ('language.selected', 'language.cream_text language.segmented_text'),
            ('picture_file', 'grey_levels'),
            ('retrieval.passkey', 'retrieval.passkeys'),
        )
        for old in olds.split()
    },
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


def place(name: str) -> str | None:
    """Where a module of posenc_jax 0.2 is, or the modules of a package; None if there was no such
    module.

    Example:
      >>> place('posenc_jax.logits.alibi'), place('posenc_jax.core.numerics')
      ('posenc_jax.methods.alibi', 'posenc_jax.base.phases')
      >>> place('posenc_jax.run')
      'posenc_jax.lab.runs, posenc_jax.lab.config or posenc_jax.lab.files'
    """
    package, _, old = name.partition('.')
    if package != 'posenc_jax' or old.split('.')[0] not in _PACKAGES:
        return None
    if old in _RENAMED:
        return f'{package}.{_RENAMED[old]}'
    if old in _PACKAGES:
        *others, last = [f'{package}.{new}' for new in _PACKAGES[old]]
        return f'{", ".join(others)} or {last}' if others else last
    known = max((p for p in _PACKAGES if f'{old}.'.startswith(f'{p}.')), key=len)
    for new in _PACKAGES[known]:
        there = f'{new}{old.removeprefix(known)}'
        path = pathlib.Path(__file__).parent.joinpath(*there.split('.'))
        if path.with_suffix('.py').is_file() or (path / '__init__.py').is_file():
            return f'{package}.{there}'
    return None


class Pointer:
    """Finds the packages and modules of posenc_jax 0.2. Such a package can be imported, and is
    empty. Importing one of its modules, or reading a name of it, raises an ImportError that says
    where the module or the name is.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if (there := place(name)) is None:
            return None
        if name.partition('.')[2] in _PACKAGES and not there.startswith('posenc_jax.lab.cli'):
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
            there = place(f'{module.__name__}.{name}') or place(module.__name__)
            raise ImportError(f'{module.__name__}.{name} has moved to {there}')

        module.__getattr__ = missing  # pyright: ignore[reportAttributeAccessIssue]


sys.meta_path.insert(0, Pointer)  # before Python takes an old folder that is left for a package
