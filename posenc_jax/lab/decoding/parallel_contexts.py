"""The family of methods that read contexts in parallel behind a shared prefix, and join them for a
query. A method's file holds its positions and how a query weighs the contexts.
"""

import dataclasses
from collections.abc import Callable, Sequence

from posenc_jax.lab.decoding import contexts as joining
from posenc_jax.lab.decoding import read_contexts
from posenc_jax.lab.decoding.cached_contexts import Layout, Piece, check_contexts, select
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.layer.sharded_attend import sharded_attend


@dataclasses.dataclass(frozen=True)
class ParallelContexts:
    """Contexts that see the prefix and themselves, and a query that sees everything.

    Attributes:
      user: name of the method, for error messages.
      layout: the positions, from the number of tokens of the prefix and of each context, and
        options of the method.
    """

    user: str
    layout: Callable[..., Layout]

    def encode(
        self,
        model: Transformer,
        prefix,
        contexts: Sequence,
        *,
        together: int | None = None,
        **options,
    ) -> tuple[Piece, ...]:
        """Encodes the prefix and the contexts, each of which sees the prefix and itself, as pieces
        for `join`.

        Args:
          model: causal attention with one rotary encoding of fixed frequencies.
          prefix: token ids [n] or [B, n], or [] for none. It serves as an attention sink, for which
            a few tokens are enough, e.g. a short instruction or newlines.
          contexts: token ids, [n] or [B, n] each.
          together: the largest number of contexts in one pass; None for no limit.
          **options: of `layout`.

        Raises:
          ValueError: no contexts, an empty one, ids outside the vocabulary, or another kind of
            model, of which the part in the way is named.
        """
        tokens = check_contexts(self.user, prefix, contexts, model.cfg.vocab_size)
        ids = self.layout(tokens[0].shape[1], [a.shape[1] for a in tokens[1:]], **options).ids
        (first,) = read_contexts.encode(self.user, model, tokens[:1], ids[:1])
        rest = (model, tokens[1:], ids[1:], [first])
        return first, *read_contexts.encode(self.user, *rest, together=together)

    def join(
        self,
        model: Transformer,
        pieces: Sequence[Piece],
        *,
        capacity: int,
        chosen: Sequence[int] | None,
        attention_fn: Callable[[int], Callable] | None = None,
        **options,
    ) -> tuple[Transformer, Cache]:
        """A cache of the prefix and the chosen contexts at the positions of the layout, whose keys
        are rotated where they were encoded at others, and the model that reads it.

        Args:
          model: the model that encoded the pieces, or one that a method returned.
          pieces: of the prefix and of the contexts.
          capacity: as for `contexts.join`.
          chosen: the contexts to join, see `select`.
          attention_fn: how the query weighs a number of contexts; None for the attention of the
            model.
          **options: of `layout`.
        """
        pieces = select(self.user, model, pieces, chosen)
        reader = model
        if attention_fn is not None:
            reader = joining.with_contexts(model, attention_fn=attention_fn(len(pieces) - 1))
        elif joining.has_part(model, joining.ContextMask):
            reader = joining.with_contexts(model, attention_fn=sharded_attend)
        layout = self.layout(pieces[0].length, [piece.length for piece in pieces[1:]], **options)
        held = [joining.moved(model, piece, ids) for piece, ids in zip(pieces, layout.ids)]
        start = layout.start
        return reader, joining.join(self.user, reader, held, capacity=capacity, start=start)
