"""Initial weights of a run that continues another run or a public checkpoint, at another length or
with another encoding.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults
from posenc_jax.lab.files import imports, paths
from posenc_jax.lab.model.carried import carried
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer, abstract_model
from posenc_jax.lab.pretrained import is_pretrained, load_pretrained
from posenc_jax.lab.pretrained.fields import is_folder
from posenc_jax.lab.pretrained.load import architecture_of
from posenc_jax.lab.pretrained.sources import open_source
from posenc_jax.lab.runs.restore import read_run, restore_model
from posenc_jax.lab.runs.state import sizes_of
from posenc_jax.lab.runs.trust import UntrustedError
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.methods.extend import extended_spec
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.calls import with_defaults
from posenc_jax.protocol.errors import SpecError, shortened

# Fields of `model` that say how it is trained and computed rather than what its weights are.
RUN_FIELDS = (
    'pool',
    'lora_rank',
    'lora_alpha',
    'dropout',
    'dtype',
    'precision',
    'remat',
    'block',
    'implementation',
)


@dataclasses.dataclass(frozen=True)
class Initial:
    """A source of weights that training can start from.

    Attributes:
      cfg: the model that the weights belong to, without adapters.
      load: mesh -> that model with its weights, placed on the mesh.
      resized: the extensions, already applied, that change the sizes of variables
        (`segmented_sequences`).
      imports: the modules that a training run imports, as its config stores them.
    """

    cfg: TransformerConfig
    load: Callable[[Mesh], Transformer]
    resized: tuple[spec_language.Node, ...] = ()
    imports: tuple[str, ...] = ()


def open_initial(path: str, extend: str = '', *, trust_imports: bool = False) -> Initial | None:
    """Opens the directory of a run (for its newest checkpoint) or a public checkpoint, from which
    training can continue.

    Args:
      path: the source; '' gives None.
      extend: `init.extend`. Only its calls that change the sizes of variables are applied here;
        `resolve` writes the others into the encoding.
      trust_imports: whether code that the run brings may be executed, see `run.trust`.

    Raises:
      FileNotFoundError, ValueError: `path` is neither, or such an extension finds nothing to
        extend.
      UntrustedError: the run brings code, and `trust_imports` is False.
    """
    initial = _open(path, trust_imports)
    resized = tuple(node for node in _nodes(extend) if hasattr(node.entry.build, 'written'))
    return _resized(initial, resized) if initial and resized else initial


def _nodes(extend: str) -> tuple[spec_language.Node, ...]:
    """The calls in `init.extend`, in order."""
    return (
        spec_language.parse(extend, ('extension', 'frequencies', 'encoding')).nodes
        if extend
        else ()
    )


def _resized(initial: Initial, nodes: tuple[spec_language.Node, ...]) -> Initial:
    """The source after the extensions that change the sizes of its variables."""
    extend = str(spec_language.Chain(nodes))
    specs = _written(initial.cfg.specs, extend, [initial.cfg.train_len] * len(initial.cfg.specs))
    cfg = dataclasses.replace(
        initial.cfg, **({'pattern': specs} if initial.cfg.pattern else {'encoding': specs[0]})
    )

    load = lambda mesh: initial.load(mesh).extend(extend)
    return Initial(cfg, load, nodes, initial.imports)


def _open(path, trust_imports):
    if not path:
        return None
    directory = paths.path(path).expanduser()
    if is_pretrained(directory):
        cfg = architecture_of(open_source(directory)).cfg
        return Initial(cfg, lambda mesh: load_pretrained(directory, mesh=mesh).model)
    if not is_folder(directory):
        named = shortened(str(directory), 200)
        raise FileNotFoundError(f'init.source: no such run or checkpoint: {named}')
    try:
        saved = read_run(directory, trust_imports=trust_imports)
        cfg = saved.model_config
    except (FileNotFoundError, ValueError) as error:
        kind = UntrustedError if isinstance(error, UntrustedError) else ValueError
        raise kind(f'init.source: {error}') from error
    if not isinstance(cfg, TransformerConfig):
        raise SpecError(f'init.source: {path} is a field, whose weights no other run continues')
    cfg = dataclasses.replace(cfg, lora_rank=0)
    modules = tuple(imports.stored_name(name) or name for name in saved.config.imports)
    return Initial(cfg, lambda mesh: _merged(directory, mesh), imports=modules)


def _merged(directory: pathlib.Path, mesh: Mesh) -> Transformer:
    model = restore_model(directory, mesh=mesh)[1]
    assert isinstance(model, Transformer)  # the config was that of one
    return model.merged()


def resolve(config: ConfigDict, initial: Initial | None) -> ConfigDict:
    """Fills in the fields of a config that its `init.source` determines. Returns a copy, or the
    config itself where there is no source. The modules that the source imports are imported too.

    `model` is set to that of the source, and so is `encoding`, unless the config sets another than
    the default. `init.extend` is written into the encoding and then emptied. It may hold context
    extensions, as `extend` does, and encodings that come in front, such as 'psc() |
    pi(factor=4.0)'. A trained length in the encoding is that of the source. The tokenizer of a
    public checkpoint reads the text, unless the config names one.

    Raises:
      SpecError: a field of `model` is set to another value than the source has; an extension does
        not fit, or is given with a training length below that of the source; a rotary encoding of
        the config leaves out an argument that the one of the source has.
    """
    if initial is None:
        if config.init.extend:
            raise SpecError(
                'init.extend extends the encoding of init.source, which is empty; write it into '
                'encoding'
            )
        return config
    config = ConfigDict(config.to_dict(), convert_dict=True)
    config.imports = tuple(dict.fromkeys((*initial.imports, *config.imports)))
    usual = defaults.get_config()
    for name in config.model:
        if name in RUN_FIELDS:
            continue
        asked, found = config.model[name], getattr(initial.cfg, name)
        if asked not in (usual.model[name], found):
            raise SpecError(
                f'model.{name} is {asked!r}, but {config.init.source} has {found!r}; leave it out'
            )
        config.model[name] = found
    if config.init.extend and config.train.length < initial.cfg.train_len:
        raise SpecError(
            f'train.length is {config.train.length}, below the {initial.cfg.train_len} that '
            f'{config.init.source} was trained at: '
            f'there is nothing to extend; leave out init.extend={config.init.extend!r} or train '
            'at a longer length'
        )
    if config.encoding == usual.encoding and not config.pattern:
        config.encoding, config.pattern = initial.cfg.encoding, initial.cfg.pattern
    else:
        _check_rotary(config, initial.cfg)
    for name in ('share', 'cross'):
        if config[name] == usual[name]:
            config[name] = getattr(initial.cfg, name)
    if not config.source_encoding and not config.source_pattern:
        config.source_encoding = initial.cfg.source_encoding
        config.source_pattern = initial.cfg.source_pattern
    rest = ' | '.join(
        str(node) for node in _nodes(config.init.extend) if node not in initial.resized
    )
    own = tuple(config.pattern or (config.encoding,))
    of_source = ()
    if initial.cfg.kind == 'encoder_decoder':
        of_source = tuple(config.source_pattern or (config.source_encoding,))
        config.cross = _filled(config.cross, initial.cfg.train_len)
    lengths = [initial.cfg.train_len] * len(own) + [initial.cfg.source_len] * len(of_source)
    written = _written((*own, *of_source), rest, lengths)
    for one, pattern, specs in (
        ('encoding', 'pattern', written[: len(own)]),
        ('source_encoding', 'source_pattern', written[len(own) :]),
    ):
        if config[pattern]:
            config[pattern] = specs
        elif specs:
            (config[one],) = specs
    config.init.extend = ''
    if is_pretrained(config.init.source) and not config.data.tokenizer:
        config.data.tokenizer = config.init.source
    return config


def _filled(spec: str, train_len: int) -> str:
    """A spec with the trained length written out wherever it would be taken from the model."""
    return str(with_defaults(parse_layer(spec), train_len=train_len))


def _written(encodings: tuple[str, ...], extend: str, lengths: Sequence[int]) -> tuple[str, ...]:
    """The encodings of the layers, and those of a source, after `extend`; `lengths` are those that
    they were trained at. An encoding that has nothing to extend stays as it
    is, as in `Transformer.extend`; an error is raised if none has.
    """
    nodes = _nodes(extend)
    in_front = [str(node) for node in nodes if node.entry.kind == 'encoding']
    rest = ' | '.join(str(node) for node in nodes if node.entry.kind != 'encoding')
    written, refused = [], []
    for encoding, train_len in zip(encodings, lengths, strict=True):
        try:
            encoding = ' | '.join([*in_front, extended_spec(encoding, rest) if rest else encoding])
        except SpecError as error:
            refused.append(error)
        written.append(_filled(encoding, train_len))
    if len(refused) == len(encodings):
        raise refused[0]
    return tuple(written)


def _check_rotary(config: ConfigDict, cfg: TransformerConfig) -> None:
    """Raises SpecError if a rotary encoding of the config, which replaces that of the source,
    leaves out an argument that the source gives.
    """
    rotary = lambda specs: [
        n for spec in specs for n in parse_layer(spec).nodes if n.entry.build is Rotary
    ]
    theirs, ours = rotary(cfg.specs), rotary(config.pattern or (config.encoding,))
    for node in ours:
        for name in theirs[0].arguments if theirs else ():
            if name not in node.arguments and not (name == 'freqs' and config.init.extend):
                raise SpecError(
                    f'{node} leaves out {name!r}, but {config.init.source} has {theirs[0]}: '
                    'write it out, or keep that encoding '
                    'and put other parts in front of it, e.g. init.extend="psc()"'
                )


def check(config: ConfigDict, initial: Initial | None, model: Transformer) -> None:
    """Checks that every weight of `init.source` has a variable of its shape in `model`, and that
    only adapters and encodings have variables of their own.

    Args:
      model: the model to train, as shapes.

    Raises:
      SpecError: a variable differs; the message names it and both shapes.
    """
    if initial is None:
        return
    try:
        theirs = carried(abstract_model(initial.cfg), model)
    except SpecError as error:
        raise SpecError(f'{config.init.source}: {error}') from None
    source = sizes_of(theirs)
    wanted = sizes_of(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for name in sorted(source.keys() | wanted.keys()):
        fresh = name not in source and any(
            part in name.split('.') for part in ('adapters', 'encodings', 'shared')
        )
        if source.get(name) != wanted.get(name) and not fresh:
            there, here = source.get(name, 'absent'), wanted.get(name, 'absent')
            raise SpecError(
                f'{name} is {there} in {config.init.source} and {here} in the model that would '
                'continue it'
            )


def initial_params(initial: Initial | None, model: Transformer, mesh: Mesh) -> dict[str, Any]:
    """The parameters that training starts with, as nested dicts of arrays on the mesh; {} without a
    source, when all parameters are drawn at random. `model` is the one to train, as shapes.
    """
    return {} if initial is None else carried(initial.load(mesh), model)
