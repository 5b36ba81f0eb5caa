"""The sizes and choices that define a transformer, checked together."""

import dataclasses
from typing import Annotated, Any

from posenc_jax.attention.attend import IMPLEMENTATIONS
from posenc_jax.base.derivatives import PRECISIONS
from posenc_jax.base.memory import readable
from posenc_jax.lab.model.pyramid import pixels_per_patch
from posenc_jax.layer.layers import BIASES, GATES, MLPS, NORM_PLACES, NORMS
from posenc_jax.layer.projections import QK_NORMS
from posenc_jax.protocol import bounds
from posenc_jax.protocol.bounds import Ge, Lt, Meaning, NonNegative, Positive
from posenc_jax.protocol.checks import about
from posenc_jax.protocol.errors import check_choice, quoted

KINDS = {'decoder': True, 'encoder': False, 'encoder_decoder': True}  # kind -> causal
POOLS = ('', 'mean', 'first', 'last', 'token')
SHARES = ('auto', 'model', 'layer')
REMATS = ('none', 'full', 'dots')
DTYPES = ('float32', 'bfloat16')
MAX_BYTES = 2**44  # of all weights in float32, more than those of the largest known models
Size32 = Annotated[int, Ge(1), Lt(2**31)]
Count32 = Annotated[int, Ge(0), Lt(2**31)]
Derived = Annotated[int, Ge(0), Lt(2**31), Meaning('0 to derive it')]
SOURCE = ('source_size', 'source_len', 'source_layers')
SIZES = ('layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'lora_rank')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a `Transformer`. Where 0 stands for a derived value, the config replaces
    it when it is made.

    Attributes:
      vocab_size: rows of the embedding table; 0 where vectors or images are read and not ids.
      train_len: trained length in tokens, which the encodings are told.
      encoding: spec string of every layer, unless `pattern` is given.
      pattern: spec strings cycled over the layers; () means `encoding` everywhere.
      share: 'model' (the layers share an encoding's parameters), 'layer' (each has its own), 'auto'
        (as in its paper).
      kind: 'decoder' (causal), 'encoder', or 'encoder_decoder': an encoder reads a source, over
        which the layers of the decoder have cross-attention.
      output_size: number of logits; 0 = vocab_size.
      pool: '' for logits at every token; else one row of logits, of the 'mean' over the valid
        tokens, of the 'first' or 'last' of them, or of a class 'token' in front of an image.
      channels: numbers of a vector or of a pixel, where the model reads them; 0 for ids.
      features: spec string of the encoders of graphs whose features are the last of them.
      patch, overlap: side of the patches of an image in pixels, 0 for no image; and whether patches
        overlap, see `PatchInput`.
      lower: stages of a pyramid below this one, from the image on: (layers, width, heads, patch,
        spec) each. The patches of a stage are cells of the stage before, and `patch` is that of
        the last stage.
      source_size, source_len: rows of the source's embedding table and trained length of the
        source; 0 unless there is one.
      source_layers: layers of the encoder of the source; 0 = layers.
      source_encoding: spec string of its layers; '' = `encoding`.
      source_pattern: spec strings cycled over its layers; () means `source_encoding` everywhere.
      cross: spec string of cross-attention; every layer has its own parameters of it.
      layers, width, heads: sizes.
      kv_heads: key/value heads of attention, a divisor of heads; 0 = heads. A mixer in the place of
        attention says itself which of kv_heads, bias and share it follows.
      head_dim: 0 = width // heads.
      mlp, mlp_width: 'gelu' (tanh form), 'gelu_erf', 'swiglu', 'geglu' (a gate by the tanh form of
        gelu) or, for images, 'mix_ffn', and the hidden width; 0 = 4 * width.
      bias: of projections: 'none', 'qkv', or 'all' (not with a gate).
      norm, epsilon: 'rmsnorm', 'layernorm' or 'layernorm_scale' (no bias), and what is added to the
        mean square.
      norm_place: whether a norm stands 'before' each branch of a block, 'after' it, or at 'both'.
      qk_norm: a norm of the projected queries and keys: 'none', of every 'head', or over the
        'width' of all heads together.
      head_norm: whether the result of every head of attention is normed by itself, in front of the
        output matrix; with norm='layernorm' that is a group norm whose scale the heads share.
      parallel: whether attention and feed-forward of a block read the same input.
      tie: whether the output uses the embedding table. Then every token at first predicts itself,
        with a logit of about sqrt(width).
      output_cap: c, by which the output is `c tanh(logits / c)`; 0 for none.
      embedding_scale: factor of the token vectors at the input; 0 = sqrt(width), the inverse of
        their initial standard deviation, so that positions are added to vectors of unit variance.
      embedding_norm: whether the token vectors are normed at the input.
      lora_rank, lora_alpha: rank and scale of an `Adapter` beside each projection of attention;
        rank 0 = none.
      dropout: probability, on the embeddings and on both branches of every block.
      dtype: of activations; parameters, norms and logits are float32.
      remat: what the backward pass recomputes: 'none', 'full' (each block), 'dots' (all but matrix
        products).
      precision: of the products of float32 in all layers and at the output, forward and backward:
        'default', 'high' or 'highest' as in `jax.default_matmul_precision`, or '' for what is set
        there. By default a GPU computes them in TensorFloat-32 and a TPU in bfloat16.
      block, implementation: of `attend`; 0 and '' let it choose.

    Raises:
      ValueError: sizes that do not fit together or would take more than `MAX_BYTES`, or an unknown
        choice, with the nearest valid one.
    """

    vocab_size: Count32
    train_len: Size32
    layers: Size32
    width: Size32
    heads: Size32
    encoding: str
    pattern: tuple[str, ...] = ()
    share: str = 'auto'
    kind: str = 'decoder'
    output_size: Derived = 0
    pool: str = ''
    channels: Count32 = 0
    features: str = ''
    patch: Count32 = 0
    overlap: bool = False
    lower: tuple[tuple, ...] = ()
    source_size: Count32 = 0
    source_len: Count32 = 0
    source_layers: Derived = 0
    source_encoding: str = ''
    source_pattern: tuple[str, ...] = ()
    cross: str = 'nope()'
    kv_heads: Derived = 0
    head_dim: Derived = 0
    mlp: str = 'gelu'
    mlp_width: Derived = 0
    bias: str = 'none'
    norm: str = 'rmsnorm'
    epsilon: Positive = 1e-6
    norm_place: str = 'before'
    qk_norm: str = 'none'
    head_norm: bool = False
    parallel: bool = False
    tie: bool = False
    output_cap: Annotated[NonNegative, Meaning('0 for none')] = 0.0
    embedding_scale: Annotated[NonNegative, Meaning('0 to derive it')] = 0.0
    embedding_norm: bool = False
    lora_rank: Count32 = 0
    lora_alpha: Positive = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    dtype: str = 'float32'
    remat: str = 'none'
    precision: str = ''
    block: Derived = 0
    implementation: str = ''

    def __post_init__(self):
        if self.channels:
            self._check_input()
        elif self.vocab_size < 1:
            raise ValueError(f'vocab_size must be at least 1, got {quoted(self.vocab_size)}')
        bounds.check('TransformerConfig', bounds.hints_of(type(self)), vars(self))
        for name, choices in (
            ('kind', tuple(KINDS)),
            ('pool', POOLS),
            ('share', SHARES),
            ('mlp', MLPS),
            ('norm', NORMS),
            ('norm_place', NORM_PLACES),
            ('qk_norm', QK_NORMS),
            ('bias', BIASES),
            ('remat', REMATS),
            ('dtype', DTYPES),
            ('precision', PRECISIONS),
            ('implementation', ('', *IMPLEMENTATIONS)),
        ):
            check_choice(name, getattr(self, name), choices)
        if self.bias == 'all' and self.mlp in GATES:
            raise ValueError(f"bias='all' is not defined for mlp={self.mlp!r}; use bias='qkv'")
        derive = lambda name, value: object.__setattr__(self, name, getattr(self, name) or value)
        derive('output_size', self.vocab_size)
        derive('kv_heads', self.heads)
        derive('mlp_width', 4 * self.width)
        derive('embedding_scale', self.width**0.5)
        if self.heads % self.kv_heads:
            raise ValueError(f'{self.heads} heads are not a multiple of {self.kv_heads} kv_heads')
        if not self.head_dim and self.width % self.heads:
            raise ValueError(
                f'width {self.width} is not a multiple of {self.heads} heads; give head_dim to '
                'use another width'
            )
        derive('head_dim', self.width // self.heads)
        for name in ('pattern', 'source_pattern'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_source(derive)
        self._check_patches()
        if self.tie and self.output_size != self.vocab_size:
            raise ValueError(
                f'tie=True uses the table of {self.vocab_size} inputs for {self.output_size} '
                'outputs; set tie=False'
            )
        if self.layers % (period := len(self.specs)):
            raise ValueError(
                f'{self.layers} layers are not a multiple of the pattern of {len(self.specs)} '
                f'encodings; nearest: {max(1, round(self.layers / period)) * period}'
            )
        if (needed := 4 * self.weights) > MAX_BYTES:
            sizes = ', '.join(f'{name}={getattr(self, name)}' for name in ('vocab_size', *SIZES))
            raise ValueError(
                f'a model of {sizes} would take {readable(needed)}; at most '
                f'{readable(MAX_BYTES)} are accepted'
            )

    @property
    def weights(self) -> int:
        """Number of weights in the tables and matrices, without norms, biases and encodings.

        Example:
          >>> TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... ).weights
          1648
        """
        heads = self.head_dim * 2 * (self.heads + self.kv_heads)
        mlp = self.mlp_width * (3 if self.mlp in GATES else 2)
        adapters = self.lora_rank * (4 * self.width + heads)
        mixers = 1
        if self.kind == 'encoder_decoder':
            mixers = 2
        layer = mixers * (self.width * heads + adapters) + self.width * mlp
        output = 0 if self.tie else self.output_size * self.width
        source = self.of_source.weights if self.kind == 'encoder_decoder' else 0
        inputs = self.vocab_size + self.channels * (2 * self.patch) ** 2
        stages = sum(stage.weights for stage in self.of_lower)
        return inputs * self.width + output + self.layers * layer + source + stages

    def _check_input(self) -> None:
        """Raises ValueError if the fields of a model that reads no ids do not fit together."""
        if self.vocab_size or self.tie or self.output_size < 1:
            raise ValueError(
                'a model that reads vectors or images has vocab_size=0, tie=False and an '
                f'output_size, got {self.vocab_size}, {self.tie} and {self.output_size}'
            )
        if self.kind == 'encoder_decoder':
            raise ValueError("an 'encoder_decoder' reads token ids, got channels")

    def _check_patches(self) -> None:
        """Raises ValueError if fields about images are set where no image is read."""
        pixels_per_patch(self.patch, self.lower)
        object.__setattr__(self, 'lower', tuple(map(tuple, self.lower)))
        set_fields = [
            name
            for name, is_set in (
                ('overlap', self.overlap),
                ("pool='token'", self.pool == 'token'),
                ("mlp='mix_ffn'", self.mlp == 'mix_ffn'),
                ('lower', bool(self.lower)),
                ('patch', bool(self.patch) and not self.channels),
            )
            if is_set and not (self.patch and self.channels)
        ]
        if set_fields:
            raise ValueError(
                f'{set_fields[0]} is for models that cut images into patches; this model reads '
                f'{"vectors" if self.channels else "token ids"}'
            )

    def _check_source(self, derive) -> None:
        """Raises ValueError if the fields about a source do not fit the kind."""
        if self.kind != 'encoder_decoder':
            strings = ('source_encoding', ''), ('source_pattern', ())
            for name, usual in (*((name, 0) for name in SOURCE), *strings):
                if getattr(self, name) != usual:
                    raise ValueError(
                        f'{name} is {quoted(getattr(self, name))}, but kind is {self.kind!r}; only '
                        "an 'encoder_decoder' reads a source"
                    )
            if self.cross != 'nope()':
                raise ValueError(
                    f'cross is {quoted(self.cross)}, but kind is {self.kind!r}; only an '
                    "'encoder_decoder' has cross-attention"
                )
            return
        if self.pool:
            raise ValueError("an 'encoder_decoder' predicts tokens: pool must be ''")
        for name in ('source_size', 'source_len'):
            if getattr(self, name) < 1:
                raise ValueError(f"an 'encoder_decoder' needs {name} of at least 1, got 0")
        derive('source_layers', self.layers)
        if self.source_pattern and self.source_encoding:
            raise ValueError(
                f'source_pattern {self.source_pattern} gives every layer its encoding, so '
                f'source_encoding {self.source_encoding!r} is not read; leave one of them out'
            )
        if self.pattern and not (self.source_encoding or self.source_pattern):
            raise ValueError(
                'with a pattern, source_encoding or source_pattern must name the encodings of the '
                f'source, e.g. source_encoding={self.encoding!r}'
            )
        if not self.source_pattern:
            derive('source_encoding', self.encoding)
        with about('source_pattern' if self.source_pattern else 'the source'):
            _ = self.of_source

    @property
    def of_source(self) -> 'TransformerConfig':
        """The config of the encoder of the source, which has no output of its own."""
        return dataclasses.replace(
            self,
            kind='encoder',
            vocab_size=self.source_size,
            output_size=0,
            tie=True,
            train_len=self.source_len,
            layers=self.source_layers,
            encoding=self.source_encoding,
            pattern=self.source_pattern,
            cross='nope()',
            source_size=0,
            source_len=0,
            source_layers=0,
            source_encoding='',
            source_pattern=(),
        )

    @property
    def of_lower(self) -> tuple['TransformerConfig', ...]:
        """The configs of the stages below the last one, which have no output of their own."""
        configs, channels = [], self.channels
        for layers, width, heads, patch, spec in self.lower:
            sizes = dict(layers=layers, width=width, heads=heads, patch=patch, encoding=spec)
            derived = dict(kv_heads=0, head_dim=0, mlp_width=0, embedding_scale=0.0, pattern=())
            own = dict(channels=channels, output_size=1, pool='', lower=())
            configs.append(dataclasses.replace(self, **sizes, **derived, **own))
            channels = width
        return tuple(configs)

    @classmethod
    def from_config(cls, config: Any, vocab_size: int, **shape) -> 'TransformerConfig':
        """From the config of a run (see posenc_jax/lab/config/defaults.py) and the sizes that its
        task sets: its vocabulary and any of `output_size`, `pool`, `channels`, `source_size` and
        `source_len`.
        """
        return cls(
            **{
                **{name: config.model[name] for name in config.model},
                **dict(
                    vocab_size=vocab_size,
                    train_len=config.train.length,
                    encoding=config.encoding,
                    pattern=tuple(config.pattern),
                    share=config.share,
                    source_encoding=config.source_encoding,
                    source_pattern=tuple(config.source_pattern),
                    cross=config.cross,
                    pool='',
                    lower=tuple(config.model.lower),
                    features=config.features,
                ),
                **shape,
            }
        )

    @property
    def specs(self) -> tuple[str, ...]:
        """The spec strings of one period of the layers."""
        return self.pattern or (self.encoding,)

    @property
    def causal(self) -> bool:
        return KINDS[self.kind]

    @property
    def context(self) -> dict[str, int]:
        """The sizes that an encoding's constructor may take from the model."""
        return dict(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            model_dim=self.width,
            train_len=self.train_len,
        )
