"""DuoAttention: retrieval heads see the whole text, streaming heads only first and last tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.decoding.contexts import has_part
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.families import Mask, signed_distance
from posenc_jax.protocol.masks import Causal, causal_mask
from posenc_jax.protocol.registry import Card, register

Heads = tuple[bool, ...]  # for each key head of a layer, whether it is a retrieval head


def retrieval_heads(
    gates: Float[Array, 'layers K'],
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
) -> Bool[np.ndarray, 'layers K']:
    """The retrieval heads: key heads whose gate is at least the quantile of all gates at
    `sparsity`, or at least a threshold.

    The quantile is taken over all layers together and is linear between two gates, as in NumPy.
    Equal gates are treated alike, and the largest gate is a retrieval head at any sparsity.

    Args:
      gates: alpha, in 0 .. 1.
      sparsity: share of streaming heads, 0 to 1. The paper uses 0.5, and 0.25 to 0.5 where query
        heads share keys.
      threshold: smallest gate of a retrieval head, e.g. 0.5; given instead of `sparsity`.

    Raises:
      ValueError: gates of a wrong shape or outside 0 .. 1; a sparsity or threshold outside 0 .. 1;
        both of these or neither.
    """
    gates = np.asarray(gates, np.float64)
    if gates.ndim != 2 or not gates.size:
        raise ValueError(
            f'duo_attention: gates have shape [layers, kv_heads], got {gates.shape}; at least 1 '
            'of each'
        )
    if not ((gates >= 0) & (gates <= 1)).all():
        raise ValueError(
            f'duo_attention: gates lie in 0 .. 1, got {gates.min()} .. {gates.max()}; clip them'
        )
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            f'duo_attention: give a sparsity or a threshold, got {sparsity=}, {threshold=}'
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(
            f'duo_attention: threshold lies in 0 .. 1 as gates do, got {threshold}; 0.5 is the '
            "paper's"
        )
    if sparsity is None:
        return gates >= threshold
    if not 0 <= sparsity <= 1:
        raise ValueError(
            f'duo_attention: sparsity lies in 0 .. 1, got {sparsity}; nearest: '
            f'{min(max(sparsity, 0), 1)}'
        )
    return gates >= np.quantile(gates, sparsity)


def duo_attention_mask(
    q_rank: Int[Array, '#B T'],
    k_rank: Int[Array, '#B S'],
    retrieval: Bool[Array, 'N'],
    sink: int,
    recent: int,
) -> Bool[Array, '#B N T S']:
    """`j < sink or i - j <= recent` in streaming heads, and every key in retrieval heads.

    Later keys are not hidden; `causal_mask` does that.

    Args:
      q_rank, k_rank: numbers i and j of the tokens among the real tokens of their document.
      retrieval: for each query head, whether it is a retrieval head.
      sink: number of first tokens that streaming heads see.
      recent: number of tokens in front of the query that they see.

    Reference: Xiao, Tang, Zuo, Guo, Yang, Tang, Fu, Han, arXiv 2410.10819.

    Example:
      >>> rank = jnp.arange(5)[None]
      >>> heads = jnp.array([False, True])
      >>> duo_attention_mask(rank, rank, heads, sink=1, recent=1)[0, :, 4].astype(int).tolist()
      [[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    """
    near = signed_distance(q_rank, k_rank) <= recent
    streaming = near | (k_rank < sink)[:, None, :]
    return streaming[:, None] | retrieval[:, None, None]


@register(
    'duo_attention',
    kind='encoding',
    card=Card(
        name='DuoAttention',
        equation='key j visible iff j <= i, in streaming heads also (j < sink or i - j <= recent)',
        example='rope() | duo_attention(sink=2, recent=4, retrieval=(1,))',
        use_when=('You decode behind long texts and want half of the heads to keep a short cache.'),
        causal_only=True,
        relative=True,
    ),
)
class DuoAttention(Mask):
    """A causal mask with two kinds of heads: retrieval heads see all earlier tokens, streaming
    heads only the first `sink` tokens and the `recent` tokens before the query.

    Key j is visible iff `j <= i`, and in streaming heads also `j < sink or i - j <= recent`, where
    i and j count the real tokens of the document. Positions do not change, so the mask combines
    with any positional encoding. It replaces the causal mask. `deploy` puts it into a model, with
    the retrieval heads that the gates of `train_gates` (posenc_jax/lab/train/duo_gates.py) choose.
    `prefill` and `decode_step` of `posenc_jax.lab.decoding.duo_attention.cache` then keep
    `sink + recent + 1` keys of every streaming head. Differs from the paper: the mask has
    `i - j <= recent`, as in the paper's decoding, which sees the query and `recent` keys before it.
    So a decoding step equals the pass over the whole text. The paper's mask has `i - j < recent` in
    training, as have the gates here.

    Args:
      sink: number of first tokens that stay visible; in the paper 64 when deployed and 128 while
        the gates are trained.
      recent: number of visible tokens before the query; 256 in the paper.
      retrieval: numbers of the retrieval heads among the key heads.
      heads, kv_heads: N and K, from the model; query heads that share a key head are of its kind.

    Raises:
      ValueError: sink or recent below 0; a key head that does not exist or is given twice.

    Reference: Xiao, Tang, Zuo, Guo, Yang, Tang, Fu, Han, arXiv 2410.10819.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=6)
      >>> pj.make('duo_attention(sink=1, recent=2, retrieval=(1,))', heads=2).mask(t, t)[0].sum(
      ...     -1
      ... ).tolist()
      [[1, 2, 3, 4, 4, 4], [1, 2, 3, 4, 5, 6]]
    """

    traits = frozenset({'decides_causality', 'leaves_gaps'})

    def __init__(
        self,
        sink: Count,
        recent: Count,
        retrieval: tuple[int, ...] = (),
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        if len(set(retrieval)) != len(retrieval) or not set(retrieval) <= set(range(kv_heads)):
            raise ValueError(
                f'duo_attention: retrieval names key heads of 0 .. {kv_heads - 1}, each once; '
                f'got {retrieval}'
            )
        self.sink, self.recent, self.heads, self.kv_heads = sink, recent, heads, kv_heads
        self.retrieval = self._per_head(np.isin(np.arange(kv_heads), retrieval))

    def _per_head(self, of_keys):
        return Constant(
            jnp.repeat(jnp.asarray(of_keys, bool), self.heads // self.kv_heads, axis=-1),
            axes=('heads',),
        )

    def with_heads(self, retrieval: Bool[Array, '... K']) -> 'DuoAttention':
        """A copy with these retrieval heads; leading axes are a stack of layers."""
        copy = DuoAttention(self.sink, self.recent, (), self.heads, self.kv_heads)
        copy.retrieval = self._per_head(retrieval)
        return copy

    def allow(self, tq, tk):
        kept = duo_attention_mask(tq.rank, tk.rank, self.retrieval[...], self.sink, self.recent)
        return causal_mask(tq.index, tk.index) & kept

    def may_see(self, tq, tk):
        near = tk.rank_high >= tq.rank_low - self.recent
        return (tk.index_low <= tq.index_high) & (
            near | (tk.rank_low < self.sink) | self.retrieval[...].any()
        )


def with_mask(encoding: Encoding, mask: DuoAttention) -> Encoding:
    """The chain of a layer with `mask` in the place of its causal mask.

    Raises:
      ValueError: a chain that does not have exactly one `causal` or `duo_attention` mask.
    """
    parts = parts_of(encoding)
    if (count := sum(isinstance(part, (Causal, DuoAttention)) for part in parts)) != 1:
        chained = ' | '.join(map(name_of, parts))
        raise ValueError(
            f'duo_attention takes the place of one causal mask, found {count or "none"} in '
            f'{chained}'
        )
    return chain(*(mask if isinstance(part, (Causal, DuoAttention)) else part for part in parts))


def deploy(
    model: Transformer, retrieval: Bool[Array, 'layers K'], *, sink: int = 64, recent: int = 256
) -> Transformer:
    """The same model with `DuoAttention` masks: its streaming heads see only the first `sink` and
    the last `recent` tokens.

    Args:
      model: a decoder whose layers have the ordinary causal mask, or a deployed model.
      retrieval: from `retrieval_heads`.
      sink, recent: as for `DuoAttention`; recent is at least 1.

    Raises:
      ValueError: `retrieval` is not boolean of shape [layers, K]; sink below 0 or recent below 1; a
        model without causal masks.
    """
    retrieval = np.asarray(retrieval)
    wanted = (model.cfg.layers, model.cfg.kv_heads)
    if retrieval.shape != wanted or retrieval.dtype != bool:
        found = f'{retrieval.dtype} {retrieval.shape}'
        raise ValueError(
            f'duo_attention: expected booleans for {wanted} layers and key heads, got {found}'
        )
    if recent < 1:
        raise ValueError(
            f'duo_attention: a streaming head keeps at least 1 recent key, got {recent=}'
        )
    mask = DuoAttention(sink, recent, (), model.cfg.heads, model.cfg.kv_heads)
    for layer_type, block in model.layers():
        with_mask(model.encoding(layer_type, block), mask)
    for kind in (Causal, DuoAttention):
        if has_part(model, kind):
            model = model.map_parts(
                kind, lambda part, layers: mask.with_heads(jnp.asarray(retrieval)[layers])
            )
    return model


def _mask_of(encoding: Encoding) -> DuoAttention:
    """The `duo_attention` mask of a layer, whose cache can be split by heads.

    Raises:
      ValueError: a chain without this mask, or with a part that needs more than the encoded keys
        and values of one head.
    """
    parts = parts_of(encoding)
    found = [part for part in parts if isinstance(part, DuoAttention)]
    if len(found) != 1:
        raise ValueError(
            'this cache is for duo_attention, e.g. from deploy(); got '
            f'{" | ".join(map(name_of, parts))}'
        )
    for part in parts:
        if (
            part.cached != 'encoded'
            or part.lookback
            or part.opens('qkv')
            or part.opens('first_carry')
            or 'mixes_logits' in part.traits
        ):
            raise ValueError(
                f'duo_attention drops keys head by head, but {name_of(part)} reads more than the '
                'encoded keys and values of one head; decode with Decoding(), which keeps all keys'
            )
    return found[0]


def heads_of(model: Transformer) -> tuple[Heads, ...]:
    """For every layer and key head, whether it is a retrieval head.

    Raises:
      ValueError: a traced model, whose heads are not known; a layer whose encoding does not fit
        (the message names it).
    """
    with jax.ensure_compile_time_eval():
        masks = [
            _mask_of(model.encoding(layer_type, block)) for layer_type, block in model.layers()
        ]
        if any(isinstance(mask.retrieval[...], jax.core.Tracer) for mask in masks):
            raise ValueError(
                'duo_attention: the retrieval heads must be known at compile time; pass '
                'heads=heads_of(model)'
            )
        return tuple(
            tuple(np.asarray(mask.retrieval[...])[:: mask.heads // mask.kv_heads].tolist())
            for mask in masks
        )
