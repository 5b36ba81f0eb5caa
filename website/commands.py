"""The command that trains or evaluates a method, made from its Card; the kind decides which."""

import shlex

from evidence.claims import CLAIMS
from posenc_jax.lab.analyse.__main__ import ANALYSES
from posenc_jax.language.spec import Chain, Node, parse
from posenc_jax.protocol.registry import Entry

# Commands that do not follow from the kind.
OTHER = {
    'irope': 'python train.py --config=configs/irope.py',
    'longrope': 'python -m posenc_jax.lab.longrope_search '
    '--run=runs/language-pydoc_topics-rope-s0 --length=512',
    'longrope2': 'python -m posenc_jax.lab.longrope_search '
    '--run=runs/language-pydoc_topics-rope-s0 --length=512 --variant=critical --objective=needle',
    'md_tpe': 'python train.py --config=configs/vit.py '
    """--config.pattern='("md_tpe(shape=(8,))",)' --config.eval.lengths=16""",  # a grid of 8 x 8
    'mix_ffn': 'python train.py --config=configs/vit.py --config.model.mlp=mix_ffn',
    'pcm': 'python train.py --config=configs/points.py '
    """--config.pattern='("pcm() | pcm_layer(gru())",)'""",
    'rope_3d': 'python train.py --config=configs/points.py '
    """--config.pattern='("rope_3d(width=12)",)'""",  # of the 16 features of a head
    'segmented_sequences': 'python train.py --config=configs/segmented.py --config.init.source=RUN '
    "--config.init.extend='segmented_sequences(factor=4)'",
    'triplane': 'python train.py --config=configs/field.py '
    """--config.task="bit_planes(picture('synthetic'))" """  # points of three coordinates
    """--config.features="triplane(sizes=(16, 32), features=8, box=(-1.0, 1.0))" """
    "--config.field='mlp(width=64, layers=2)'",
}
# Layers that read features of a graph: the features, and the spec string of the layer.
OF_GRAPHS = {
    'graphormer_degree': ('graphormer_spatial()', 'graphormer_degree() | graphormer_spatial()'),
    'graphormer_edge': ('graphormer_edge()', 'graphormer_edge()'),
    'graphormer_spatial': ('graphormer_spatial()', 'graphormer_spatial()'),
    'grit': ('rrwp(steps=8)', 'grit()'),
    'rrwp': ('rrwp(steps=8)', 'rrwp(steps=8)'),
}
# Encodings whose positions only the task of a sweep supplies; the measurement of a claim trains it.
PLACED = (
    'algebraic_tree', 'bipe', 'dpe', 'gpe', 'hirope', 'image_shift', 'nar', 'papeft', 'tree_pe',
    'uni_encoder', 'xlpe',
)  # fmt: skip
# Spec strings whose tables are as long as the texts that the quickstart evaluates, 128 to 1024, or
# as wide as the images of configs/vit.py.
LONG_ENOUGH = {
    'beit_table': 'beit_table(16, 16)',
    'learned_absolute': 'learned_absolute(max_len=1024)',
    'positional_attention': 'positional_attention(max_len=1024)',
    'randomized_pe': 'randomized_pe(max_len=2048) | rope()',
    'seqpe': 'seqpe(max_pos=2048)',
    'sigma_gpt': 'sigma_gpt(max_len=1025)',
    'swin_table': 'swin_table(16, 16)',
    'swin_v2_cpb': 'swin_v2_cpb(16, 16)',
    'tupe': 'tupe(max_len=1024)',
}
# The run that an extension is evaluated with, and the extension, where it is not a run of rope()
# and the extension with its defaults.
EXTENDED = {
    'alibi_pi': ('alibi', 'alibi_pi(factor=4.0)'),
    'nope_temperature': ('nope', 'nope_temperature(1.5)'),
}
# The configs of layers that do not fit the language model of the quickstart.
CONFIGS = {
    'algebraic_grid': 'vit',
    'axial_rope2d': 'vit',
    'beit_table': 'vit',
    'cape2d': 'vit',
    'conflator': 'code_mixed',
    'dinov3_rope': 'vit',
    'full': 'masked_text',
    'gin': 'graph',
    'graph_attention': 'graph',
    'irpe': 'vit',
    'learned_grid': 'vit',
    'liere': 'vit',
    'lightnet_whole': 'masked_text',
    'navit_factorized': 'vit',
    'pcm_layer': 'points',
    'peg': 'vit',
    'point_transformer': 'points',
    'point_transformer_bias': 'points',
    'polyphase_anchor': 'vit',
    'position_coupling': 'algorithmic',
    'prefix': 'masked_text',
    'rope_axial': 'vit',
    'rope_mixed': 'vit',
    'sincos2d': 'vit',
    'spatial_reduction': 'vit',
    'string_cayley': 'vit',
    'string_circulant': 'vit',
    'swin_table': 'vit',
    'swin_v2_cpb': 'vit',
}


def command(entry: Entry) -> str:
    """A command line, or the Python call of a method that no command line reaches.

    Example:
      >>> from posenc_jax.protocol.registry import lookup
      >>> command(lookup('alibi', ('encoding',)))
      "python train.py --config=configs/quickstart.py --config.encoding='alibi()'"
      >>> command(lookup('yarn', ('frequencies',))).split()[-1]
      "--config.extend='yarn(factor=4.0)'"
    """
    card = entry.card
    assert card is not None
    if entry.key in OTHER:
        return OTHER[entry.key]
    if entry.key in OF_GRAPHS:
        features, layer = OF_GRAPHS[entry.key]
        return _train('graph', features=features, pattern=_tuple(layer))
    if entry.kind == 'encoding' and entry.key not in PLACED:
        spec = LONG_ENOUGH.get(entry.key, card.example)
        return _train(CONFIGS.get(entry.key, 'quickstart'), encoding=spec)
    if entry.kind == 'frequencies':
        return _evaluate('rope', str(_rule(card.example)))
    if entry.kind == 'extension':
        return _evaluate(*EXTENDED.get(entry.key, ('rope', f'{entry.key}()')))
    if entry.kind == 'mixer' and entry.is_layer:
        return _train(CONFIGS.get(entry.key, 'quickstart'), pattern=_tuple(card.example))
    if entry.kind == 'coordinates':
        config = 'globe' if entry.key.startswith('geo_') else 'field'
        return _train(config, features=card.example)
    if entry.kind == 'graph' and entry.in_specs:
        return _train('graph', features=card.example)
    if entry.kind == 'field':
        return _train('field', field=card.example)
    if entry.key in ANALYSES:
        return (
            f'python -m posenc_jax.lab.analyse {entry.key} --run=runs/language-pydoc_topics-rope-s0'
        )
    measured = [claim.id for claim in CLAIMS.values() if claim.key == entry.key and claim.how]
    if measured:
        return f'python -m evidence.claims {" ".join(measured)}'
    return card.example


def _tuple(spec: str) -> str:
    """A tuple of one string, with double quotes where it has none of its own."""
    return repr((spec,)) if '"' in spec else f'("{spec}",)'


def _quoted(value: str) -> str:
    """A word of a command line, in single quotes if it has none of its own."""
    if "'" not in value:
        return f"'{value}'"
    return shlex.quote(value) if set('"$`\\\\') & set(value) else f'"{value}"'


def _train(config: str, **fields: str) -> str:
    settings = [f'--config.{name}={_quoted(value)}' for name, value in fields.items()]
    return ' '.join(['python', 'train.py', f'--config=configs/{config}.py', *settings])


def _evaluate(label: str, extension: str) -> str:
    run = f'runs/language-pydoc_topics-{label}-s0'  # what the command of the quickstart writes
    return f'python eval.py --run={run} --config.extend={_quoted(extension)}'


def _rule(example: str) -> Node:
    """The frequency rule in `rope(freqs=RULE)`, without the trained length, which a run gives."""
    (node,) = parse(example).nodes
    rule = node.arguments['freqs']
    if isinstance(rule, Chain):
        (rule,) = rule.nodes
    kept = {name: value for name, value in rule.arguments.items() if name != 'train_len'}
    return Node(rule.entry, kept)
