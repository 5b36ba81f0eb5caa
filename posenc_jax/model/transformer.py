"""The transformer, decoder or encoder: one stem, layers scanned over stacked variables, one
output.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core import spec as spec_language
from posenc_jax.core.compose import chain, make
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.memory import readable
from posenc_jax.core.registry import SpecError, check_choice, quoted
from posenc_jax.core.tables import known_range, lookup_rows
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.layers import (
    BIASES,
    MLPS,
    NORMS,
    Block,
    Norm,
    dropout,
    merge_adapters,
    normal,
)
from posenc_jax.model.sharding import constrain

KINDS = {'decoder': True, 'encoder': False}  # kind -> causal
SHARES = ('auto', 'model', 'layer')
REMATS = ('none', 'full', 'dots')
DTYPES = ('float32', 'bfloat16')
MAX_BYTES = 2**44  # of a model, float32: beyond the largest that there are
SIZES = ('layers', 'width', 'heads', 'kv_heads', 'head_dim', 'mlp_width', 'lora_rank')
STEM_DOORS = ('place', 'embed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a `Transformer` is built from. Zeros mean "derived": they are replaced when the config
    is made.

    Attributes:
      vocab_size: rows of the embedding table.
      train_len: length the encoding is told the model trains at, in tokens.
      encoding: spec string of every layer, unless `pattern` is given.
      pattern: spec strings cycled over the layers; () means `encoding` everywhere.
      share: 'model' (the layers share an encoding's parameters), 'layer' (each has its own), 'auto'
        (as in its paper).
      kind: 'decoder' (causal) or 'encoder'.
      layers, width, heads: sizes.
      kv_heads: key/value heads, a divisor of heads; 0 = heads.
      head_dim: 0 = width // heads.
      mlp, mlp_width: 'gelu' (tanh form), 'gelu_erf' or 'swiglu', and the hidden width; 0 = 4 *
        width.
      bias: of projections: 'none', 'qkv', or 'all' (not with swiglu).
      norm, epsilon: 'rmsnorm', 'layernorm' or 'layernorm_scale' (no bias), and what is added to the
        mean square.
      parallel: attention and feed-forward of a block read the same input.
      tie: the output uses the embedding table. Then every token at first predicts itself, by a
        logit of about sqrt(width).
      embedding_scale: the input multiplies the embedding table by it; 0 = sqrt(width), the inverse
        of the table's initial deviation, which gives token vectors the unit variance positions are
        added to.
      embedding_norm: a norm of the token vectors at the input.
      lora_rank, lora_alpha: an `Adapter` of this rank beside each projection of attention; 0 =
        none.
      dropout: probability, on the embeddings and on both branches of every block.
      dtype: of activations; parameters, norms and logits are float32.
      remat: what the backward pass recomputes: 'none', 'full' (each block), 'dots' (all but matrix
        products).
      block, implementation: of `attend`; 0 and '' let it choose.

    Raises:
      ValueError: sizes that do not fit together or would take more than `MAX_BYTES`, or an unknown
        choice, with the nearest valid one.
    """

    vocab_size: int
    train_len: int
    layers: int
    width: int
    heads: int
    encoding: str
    pattern: tuple[str, ...] = ()
    share: str = 'auto'
    kind: str = 'decoder'
    kv_heads: int = 0
    head_dim: int = 0
    mlp: str = 'gelu'
    mlp_width: int = 0
    bias: str = 'none'
    norm: str = 'rmsnorm'
    epsilon: float = 1e-6
    parallel: bool = False
    tie: bool = False
    embedding_scale: float = 0.0
    embedding_norm: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    dropout: float = 0.0
    dtype: str = 'float32'
    remat: str = 'none'
    block: int = 0
    implementation: str = ''

    def __post_init__(self):
        for name in ('vocab_size', 'train_len', 'layers', 'width', 'heads'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {quoted(getattr(self, name))}')
        for name in ('kv_heads', 'head_dim', 'mlp_width', 'block'):
            if getattr(self, name) < 0:
                raise ValueError(
                    f'{name} must be positive, or 0 to derive it, got {quoted(getattr(self, name))}'
                )
        for name in ('vocab_size', 'train_len', *SIZES, 'block'):
            if getattr(self, name) >= 2**31:
                raise ValueError(
                    f'{name} must be a whole number of 32 bits, got {quoted(getattr(self, name))}'
                )
        if self.lora_rank < 0 or not self.lora_alpha > 0:
            found = f'{self.lora_rank} and {self.lora_alpha}'
            raise ValueError(f'lora_rank must be at least 0 and lora_alpha positive, got {found}')
        for name, choices in (
            ('kind', tuple(KINDS)),
            ('share', SHARES),
            ('mlp', MLPS),
            ('norm', NORMS),
            ('bias', BIASES),
            ('remat', REMATS),
            ('dtype', DTYPES),
            ('implementation', ('', 'dense', 'blocked')),
        ):
            check_choice(name, getattr(self, name), choices)
        if self.bias == 'all' and self.mlp == 'swiglu':
            raise ValueError("bias='all' is not defined for mlp='swiglu'; use bias='qkv'")
        if not self.epsilon > 0:
            raise ValueError(f'epsilon must be positive, got {self.epsilon}')
        if not self.embedding_scale >= 0:
            raise ValueError(
                f'embedding_scale must be positive, or 0 to derive it, got {self.embedding_scale}'
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f'dropout must lie in [0, 1), got {self.dropout}')
        derive = lambda name, value: object.__setattr__(self, name, getattr(self, name) or value)
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
        object.__setattr__(self, 'pattern', tuple(self.pattern))
        if self.layers % len(self.specs):
            raise ValueError(
                f'{self.layers} layers are not a multiple of the pattern of {len(self.specs)} '
                'encodings'
            )
        if (needed := 4 * self.weights) > MAX_BYTES:
            sizes = ', '.join(f'{name}={getattr(self, name)}' for name in ('vocab_size', *SIZES))
            raise ValueError(
                f'a model of {sizes} would take {readable(needed)}; at most '
                f'{readable(MAX_BYTES)} are accepted'
            )

    @property
    def weights(self) -> int:
        """How many numbers the tables and matrices hold: all of the model but what grows with its
        width alone and encodings.

        Example:
          >>> TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... ).weights
          1648
        """
        heads = self.head_dim * 2 * (self.heads + self.kv_heads)
        mlp = self.mlp_width * (3 if self.mlp == 'swiglu' else 2)
        adapters = self.lora_rank * (4 * self.width + heads)
        return self.vocab_size * self.width * (1 if self.tie else 2) + self.layers * (
            self.width * (heads + mlp) + adapters
        )

    @classmethod
    def from_config(cls, config: Any, vocab_size: int) -> 'TransformerConfig':
        """From a training config (see configs/default.py) and the vocabulary of its task."""
        return cls(
            vocab_size=vocab_size,
            train_len=config.train.length,
            encoding=config.encoding,
            pattern=tuple(config.pattern),
            share=config.share,
            **{name: config.model[name] for name in config.model},
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
        """What an encoding's constructor may ask the model for."""
        return dict(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            model_dim=self.width,
            train_len=self.train_len,
        )


@dataclasses.dataclass(frozen=True)
class Link:
    """Where one part of a layer's chain lives: in `shared` of the model or in `encodings` of the
    layer, under `number`.
    """

    shared: bool
    number: int


class Transformer(nnx.Module):
    """A pre-norm transformer with positional encodings as values.

    Layers are grouped by the period of the pattern; each place in the period holds one `Block`
    whose variables are stacked over the groups, and one `lax.scan` goes over the groups. Parts of
    an encoding that open `place` or `embed`, parts shared by all layers and parts without variables
    live once in `shared`; the others live in the blocks.

    Args:
      cfg: sizes and choices.
      rngs: initial parameters come from `rngs.params()`.

    Example:
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
      ... )
      >>> Transformer(cfg, rngs=nnx.Rngs(0))(jnp.zeros((1, 5), jnp.int32)).shape
      (1, 5, 7)
    """

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding = normal(rngs, (cfg.vocab_size, cfg.width), cfg.width, ('vocab', 'width'))
        names: list[tuple[str, int, int]] = []
        shared: list[Encoding] = []
        blocks, links = [], []
        for spec in cfg.specs:
            nodes = spec_language.parse(spec).nodes
            built = [
                parts_of(spec_language.build(node, {**cfg.context, 'rngs': rngs})) for node in nodes
            ]
            given = [part for parts in built for part in parts]
            own, owned, chain_links, seen = [], 0, [], []
            for node, parts in zip(nodes, built):
                if self._in_layer(node, parts):
                    own.append(node)
                    chain_links += [Link(False, owned + i) for i in range(len(parts))]
                    owned += len(parts)
                    continue
                seen.append(str(node))
                for i, part in enumerate(parts):
                    name = (
                        str(node),
                        seen.count(str(node)),
                        i,
                    )  # the same call twice in one chain is two parts
                    if name not in names:
                        names.append(name)
                        shared.append(part)
                    chain_links.append(Link(True, names.index(name)))
            for mask in parts_of(make(chain(*given), causal=cfg.causal))[
                len(given) :
            ]:  # what the kind of model adds
                name = (type(mask).__name__, 0, 0)
                if name not in names:
                    names.append(name)
                    shared.append(mask)
                chain_links.append(Link(True, names.index(name)))
            blocks.append(self._stacked_block(own, rngs))
            links.append(tuple(chain_links))
        self.shared = nnx.List(shared)
        self.blocks = nnx.List(blocks)
        self.links = tuple(links)
        self.embedding_norm = (
            Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon) if cfg.embedding_norm else None
        )
        self.norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon)
        self.output = (
            None
            if cfg.tie
            else normal(rngs, (cfg.width, cfg.vocab_size), cfg.width, ('width', 'vocab'))
        )

    def _in_layer(self, node: spec_language.Node, parts: tuple[Encoding, ...]) -> bool:
        """Whether every layer has its own copy of what a call builds. What acts at the stem exists
        once in any case.
        """
        share = node.entry.card.share if self.cfg.share == 'auto' else self.cfg.share
        at_stem = any(part.opens(door) for part in parts for door in STEM_DOORS)
        return (
            share == 'layer'
            and not at_stem
            and any(jax.tree.leaves(nnx.state(part)) for part in parts)
        )

    def _stacked_block(self, nodes: list[spec_language.Node], rngs: nnx.Rngs) -> Block:
        """One block per group, as one module whose variables lead with the groups; each group
        builds its own `nodes`.
        """
        groups = self.cfg.layers // len(self.cfg.specs)

        def build(key):
            context = {**self.cfg.context, 'rngs': nnx.Rngs(key)}
            return nnx.split(
                nnx.List(
                    [
                        part
                        for node in nodes
                        for part in parts_of(spec_language.build(node, context))
                    ]
                )
            )

        encodings = (
            nnx.merge(*jax.vmap(build)(jax.random.split(rngs.params(), groups))) if nodes else []
        )
        return Block(self.cfg, encodings, stack=(groups,), rngs=rngs)

    def encoding(self, place: int, block: Block) -> Encoding:
        """The chain of a layer at this place in the period, with the parts that `block` owns."""
        return chain(*(self._part(link, block) for link in self.links[place]))

    def _part(self, link: Link, block: Block) -> Encoding:
        return self.shared[link.number] if link.shared else block.encodings[link.number]

    def stem(self, place: int) -> list[tuple[int, Encoding]]:
        """The shared parts of a place in the period, numbered as in `shared`: those that may open
        `place` and `embed`.
        """
        return [
            (link.number, self.shared[link.number]) for link in self.links[place] if link.shared
        ]

    @property
    def reads_ids(self) -> bool:
        """Whether some encoding places tokens by their ids."""
        return any('reads_ids' in part.traits for part in self.shared)

    def place(
        self, tok: Tokens, ids: Int[Array, 'B T'] | None = None, *, key: Array | None = None
    ) -> tuple[Tokens, ...]:
        """Tokens as each place of the period sees them; with a key by the training rule.

        `ids`, or those that `tok` has, reach the encodings that read them and are not kept.
        """
        if ids is not None and self.reads_ids:
            tok = dataclasses.replace(tok, ids=ids)
        placed = []
        for place in range(len(self.links)):
            own = tok
            for number, part in self.stem(place):
                own = part.place(own, key=None if key is None else jax.random.fold_in(key, number))
            placed.append(own if own.ids is None else dataclasses.replace(own, ids=None))
        return tuple(placed)

    def check_ids(self, tokens: Int[Array, '...'], valid: Bool[Array, '...'] | None = None) -> None:
        """Refuses known ids that the vocabulary does not have, before a compiled program makes NaN
        of them; padding may have any.

        Raises:
          ValueError: says the range and what was found.
        """
        low, high = known_range(tokens, valid) or (0, 0)
        if low < 0 or high >= self.cfg.vocab_size:
            raise ValueError(
                f'token ids lie in 0 .. {self.cfg.vocab_size - 1} (vocab_size), got {low} .. {high}'
            )

    def embed(self, tokens: Int[Array, 'B T'], placed: tuple[Tokens, ...]) -> Float[Array, 'B T D']:
        """Token vectors of about unit variance, through every `embed` door once.

        Raises:
          ValueError: known ids that the vocabulary does not have; traced ones become NaN. Padding
            may have any.
        """
        valid = placed[0].valid
        tokens = tokens if valid is None else jnp.where(valid, tokens, 0)
        self.check_ids(tokens)
        x = lookup_rows(self.embedding[...], tokens) * self.cfg.embedding_scale
        x = constrain(x.astype(self.cfg.dtype), 'batch', 'sequence', None)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        done = set()
        for place, tok in enumerate(placed):
            for number, part in self.stem(place):
                if number not in done:
                    x = part.embed(x, tok)
                    done.add(number)
        return x

    def hidden(
        self,
        tokens: Int[Array, 'B T'],
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Float[Array, 'B T D']:
        """The last layer's output after the final norm, input of `logits`. Arguments as for a call
        of the model.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f'tokens must be integers [B, T], got {tokens.dtype} {tokens.shape}')
        tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
        for leaf in jax.tree.leaves(tok):
            if leaf.shape[1] != tokens.shape[1] or leaf.shape[0] not in (1, tokens.shape[0]):
                raise ValueError(
                    f'tokens {tokens.shape} do not fit what is known about them, {leaf.shape}'
                )
        if train and key is None:
            raise ValueError('train=True needs a key: dropout and positions may be random')
        place_key, stem_key, layer_key = (
            (None, None, None) if key is None else jax.random.split(key, 3)
        )
        placed = self.place(tok, tokens, key=place_key)
        if not train:
            stem_key, layer_key = None, None
        x = dropout(self.embed(tokens, placed), self.cfg.dropout, stem_key)

        def layer(x, number, place, block):
            own_key = None if layer_key is None else jax.random.fold_in(layer_key, number)
            return block(x, placed[place], self.encoding(place, block), key=own_key), None

        x, _ = self.scan_layers(layer, x)
        return self.norm(x)

    def scan_layers(
        self, layer: Callable, x: Float[Array, 'B T D']
    ) -> tuple[Float[Array, 'B T D'], tuple]:
        """Takes `x` through all layers by `layer(x, number, place, block) -> (x, out)`; compiled
        once per period.

        Returns:
          The last x, and for each place of the period its `out`, stacked over the groups.
        """
        graphdefs, states = zip(*(nnx.split(block) for block in self.blocks))
        period = len(graphdefs)

        def group(x, step):
            number, states = step
            outs = []
            for place, (graphdef, state) in enumerate(zip(graphdefs, states)):
                x, out = layer(x, number * period + place, place, nnx.merge(graphdef, state))
                outs.append(out)
            return x, tuple(outs)

        if self.cfg.remat == 'full':
            group = jax.checkpoint(group, prevent_cse=False)
        elif self.cfg.remat == 'dots':
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            group = jax.checkpoint(group, prevent_cse=False, policy=policy)
        return jax.lax.scan(group, x, (jnp.arange(self.cfg.layers // period), states))

    def loop_layers(
        self,
        mix: Callable,
        x: Float[Array, 'B T D'],
        states: Sequence,
        layers: list[tuple[int, Block]] | None = None,
    ) -> tuple[Float[Array, 'B T D'], tuple]:
        """Takes `x` through all layers one after the other, each with what it remembers, which need
        not be alike.

        Args:
          mix: `mix(h, encoding, place, block, own)` takes the normed input of a layer and its state
            to the result of the heads [B, T, N, H] and the state after it.
          x: the input of the first layer.
          states: one per layer.
          layers: `layers()`, for a loop that cuts them out of their stacks once (XLA does not hoist
            it).

        Returns:
          The last x, and the states after.
        """
        after = []
        for (place, block), own in zip(
            self.layers() if layers is None else layers, states, strict=True
        ):

            def mixed(h):
                out, grown = mix(h, self.encoding(place, block), place, block, own)
                after.append(grown)
                return out

            x = block.around(x, mixed)
        return x, tuple(after)

    def merged(self) -> 'Transformer':
        """The same function without adapters: their products are added into the projections."""
        model = nnx.clone(self)
        for block in model.blocks:
            block.attention = merge_adapters(block.attention)
        model.cfg = dataclasses.replace(self.cfg, lora_rank=0)
        return model

    def layers(self) -> list[tuple[int, Block]]:
        """All layers in order, each with its place in the period, cut out of the stacks."""
        split = [nnx.split(block) for block in self.blocks]
        return [
            (place, nnx.merge(graphdef, jax.tree.map(lambda a: a[group], state)))
            for group in range(self.cfg.layers // len(split))
            for place, (graphdef, state) in enumerate(split)
        ]

    def unstacked(self) -> 'Transformer':
        """The same model with every layer a place of the period of its own, so that no layer is cut
        out of a stack.

        For decoding, whose steps are short beside the copy of all weights that the cut is: it is
        made here, once. Compiling a pass over whole sequences then takes time for every layer, not
        for one.

        Example:
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... )
          >>> len(Transformer(cfg, rngs=nnx.Rngs(0)).unstacked().blocks)
          2
        """
        model, groups = nnx.clone(self), self.cfg.layers // len(self.blocks)
        split = [nnx.split(block) for block in self.blocks]
        model.blocks = nnx.List(
            nnx.merge(graphdef, jax.tree.map(lambda a: a[group : group + 1], state))
            for group in range(groups)
            for graphdef, state in split
        )
        model.links = self.links * groups
        model.cfg = dataclasses.replace(self.cfg, pattern=self.cfg.specs * groups)
        return model

    def for_decoding(self) -> 'Transformer':
        """`unstacked`, and of every layer the projections that read the same input joined into one
        product.

        The same function up to rounding, for one device: a decode step waits for memory, and fewer,
        longer products wait less. Adapters are added in. It cannot be saved, exported or trained.

        Example:
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... )
          >>> Transformer(cfg, rngs=nnx.Rngs(0)).for_decoding().blocks[1].attention.rows_in.shape
          (1, 24, 8)
        """
        if self.blocks[0].mlp.rows_in is not None:
            return self
        model = self.unstacked()
        for block in model.blocks:
            block.attention, block.mlp = block.attention.joined(), block.mlp.joined()
        model.cfg = dataclasses.replace(model.cfg, lora_rank=0)
        return model

    def logits(self, hidden: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
        """Float32 logits of hidden rows (any number of them, so that evaluation can go in
        chunks).
        """
        # The tied table is read as it lies: XLA would gather a transposed one on one core.
        table, axes = (
            (self.embedding, 'btd,vd->btv') if self.output is None else (self.output, 'btd,dv->btv')
        )
        out = jnp.einsum(
            axes, hidden, table[...].astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return constrain(out, 'batch', 'sequence', None)

    def __call__(
        self,
        tokens: Int[Array, 'B T'],
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
        last: int | None = None,
    ) -> Float[Array, 'B _ V']:
        """Logits in float32.

        Args:
          tokens: token ids.
          tok: what else is known about them (positions, documents, padding); None counts 0 .. T-1.
          key: makes encodings whose positions are random draw them; None is their evaluation rule.
            Drives dropout as well.
          train: turns dropout on; needs a key.
          last: logits of the last so many tokens only.

        Raises:
          ValueError: shapes that do not fit, or `train` without a key.
        """
        if last is not None and not 1 <= last <= tokens.shape[1]:
            raise ValueError(f'last must lie in 1 .. {tokens.shape[1]}, got {last}')
        hidden = self.hidden(tokens, tok, key=key, train=train)
        return self.logits(hidden if last is None else hidden[:, -last:])

    def extend(self, spec: str, **context) -> 'Transformer':
        """The same weights with every encoding replaced by its context extension, e.g.
        'yarn(factor=4.0)'.

        What an extension puts in the place of a part lives where that part lived: once in the model
        or in every layer. In a pattern, layers that have nothing to extend stay as they are.

        Args:
          spec: an extension (see `posenc_jax.extension`).
          **context: overrides what the model tells the extension (`train_len`, `head_dim`, ...).

        Raises:
          SpecError: the spec is wrong, or no layer has anything this extension works on.
        """
        from posenc_jax.extension import extend

        context = {**self.cfg.context, **context}
        model = nnx.clone(self)
        shared, blocks, links, refused = list(model.shared), [], [], []
        renewed: dict[
            tuple[Link, ...], list[Link]
        ] = {}  # places of the period that share a part go on sharing it

        for place, block in enumerate(model.blocks):
            graphdef, state = nnx.split(block)

            def layer_of(state, place=place, graphdef=graphdef):
                """One layer with its extended parts; the links of its chain, None for a new shared
                part, and these parts.
                """
                layer = nnx.merge(graphdef, state)
                old = {
                    id(part): link
                    for link in model.links[place]
                    for part in [model._part(link, layer)]
                }
                parts = parts_of(extend(model.encoding(place, layer), spec, **context))
                gone = tuple(link for ident, link in old.items() if ident not in map(id, parts))
                own, fresh, chain_links = [], [], []
                for part in parts:
                    link = old.get(id(part))
                    if link is None and all(link.shared for link in gone):
                        fresh.append(part)
                    elif link is None or not link.shared:
                        link = Link(False, len(own))
                        own.append(part)
                    chain_links.append(link)
                layer.encodings = nnx.List(own)
                return layer, chain_links, fresh, gone

            try:
                _, chain_links, fresh, gone = layer_of(jax.tree.map(lambda a: a[0], state))
            except SpecError as error:
                refused.append(error)
                links.append(model.links[place])
                blocks.append(block)
                continue
            if gone not in renewed:
                renewed[gone] = [Link(True, len(shared) + i) for i in range(len(fresh))]
                shared += fresh
            numbers = iter(renewed[gone])
            links.append(tuple(next(numbers) if link is None else link for link in chain_links))
            blocks.append(nnx.merge(*jax.vmap(lambda state: nnx.split(layer_of(state)[0]))(state)))
        if len(refused) == len(links):
            raise refused[0]
        model.blocks = nnx.List(blocks)
        model._link(shared, links)
        return model

    def map_parts(
        self, kind: type[Encoding], change: Callable[[Encoding, Int[Array, 'groups']], Encoding]
    ) -> 'Transformer':
        """A copy in which every part of one class gives way to what `change` makes of it; every
        layer then owns its own.

        Args:
          kind: the class, which acts on layers (does not open `place` or `embed`).
          change: `change(part, layers) -> part`, once for each place of the period that has such a
            part. `layers` are the numbers of its layers; the variables of the result lead with
            them, as those of `part` do where layers owned it.

        Raises:
          ValueError: no layer has a part of this class, or it acts at the stem, which exists once.

        Example:
          >>> from posenc_jax.logits.alibi import ALiBi
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=3, width=8, heads=2, encoding='alibi()'
          ... )
          >>> def steeper(part, layers):
          ...     part.slopes = type(part.slopes)(
          ...         part.slopes[...] * (1 + layers)[:, None], axes=('heads',)
          ...     )
          ...     return part
          >>> model = Transformer(cfg, rngs=nnx.Rngs(0)).map_parts(ALiBi, steeper)
          >>> [
          ...     model.encoding(place, block).parts[0].slopes[0].tolist()
          ...     for place, block in model.layers()
          ... ]
          [0.0625, 0.125, 0.1875]
        """
        key = kind.card.key if hasattr(kind, 'card') else kind.__name__
        if at_stem := [
            door for door in STEM_DOORS if getattr(kind, door) is not getattr(Encoding, door)
        ]:
            raise ValueError(
                f'map_parts gives every layer its own part, but {key} opens {at_stem[0]!r} and '
                'exists once'
            )
        model, links, found = nnx.clone(self), [], False
        for place, block in enumerate(model.blocks):
            own, chain_links = list(block.encodings), list(model.links[place])
            layers = jnp.arange(place, model.cfg.layers, len(model.blocks))
            for number, link in enumerate(chain_links):
                part = model._part(link, block)
                if not isinstance(part, kind):
                    continue
                found, changed = True, change(nnx.clone(part), layers)
                if link.shared:
                    chain_links[number] = Link(False, len(own))
                    own.append(changed)
                else:
                    own[link.number] = changed
            block.encodings = nnx.List(own)
            links.append(tuple(chain_links))
        if not found:
            chains = ', '.join(
                ' | '.join(map(name_of, parts_of(self.encoding(*at))))
                for at in enumerate(self.blocks)
            )
            raise ValueError(f'the model has no {key} part; its layers have {chains}')
        model._link(model.shared, links)
        return model

    def _link(self, shared, links):
        """Sets the shared parts and the links of every chain, and drops shared parts to which none
        leads.
        """
        used = sorted({link.number for chain_links in links for link in chain_links if link.shared})
        moved = lambda link: Link(True, used.index(link.number)) if link.shared else link
        self.shared = nnx.List([shared[number] for number in used])
        self.links = tuple(tuple(map(moved, chain_links)) for chain_links in links)


def abstract_model(cfg: TransformerConfig, extend: str = '') -> Transformer:
    """The model, with its context extension, as shapes."""

    def build():
        model = Transformer(cfg, rngs=nnx.Rngs(0))
        return model.extend(extend) if extend else model

    return nnx.eval_shape(build)
