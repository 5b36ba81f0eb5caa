"""The family of methods that read contexts in parallel behind a shared prefix, and join them for a
query. A method's file holds its positions and how a query weighs the contexts.
"""

import dataclasses
from collections.abc import Callable, Sequence

from posenc_jax.lab.decoding import contexts, read_contexts
from posenc_jax.lab.decoding.pieces import Layout, Piece, check_contexts
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache
from posenc_jax.layer.sharding import sharded_attend


@dataclasses.dataclass(frozen=True)
class ParallelContexts:
    """Contexts that see the prefix and themselves, and a query that sees everything.

    Attributes:
      user: name of the method, for error messages.
      layout: the positions, from the number of tokens of the prefix and of each context.
    """

    user: str
    layout: Callable[[int, Sequence[int]], Layout]

    def encode(
        self, model: Transformer, prefix, texts: Sequence, together: int | None
    ) -> tuple[Piece, ...]:
        """The cached prefix and contexts, for `join`; `together` as for `read_contexts.encode`."""
        tokens = check_contexts(self.user, prefix, texts, model.cfg.vocab_size)
        ids = self.layout(tokens[0].shape[1], [a.shape[1] for a in tokens[1:]]).ids
        (first,) = read_contexts.encode(self.user, model, tokens[:1], ids[:1])
        rest = (model, tokens[1:], ids[1:], [first])
        return first, *read_contexts.encode(self.user, *rest, together=together)

    def join(
        self,
        model: Transformer,
        pieces: Sequence[Piece],
        *,
        capacity: int,
        attention_fn: Callable | None = None,
    ) -> tuple[Transformer, Cache]:
        """A cache of the prefix and the contexts at the positions of the layout, whose keys are
        rotated where they were encoded at others, and the model that reads it.

        Args:
          model: the model that encoded the pieces, or one that a method returned.
          pieces: of the prefix and of the contexts, see `select`.
          capacity: as for `contexts.join`.
          attention_fn: how the query weighs the contexts; None for the attention of the model.
        """
        reader = model
        if attention_fn is not None or contexts.has_part(model, contexts.ContextMask):
            reader = contexts.with_contexts(model, attention_fn=attention_fn or sharded_attend)
        layout = self.layout(pieces[0].length, [piece.length for piece in pieces[1:]])
        held = [contexts.moved(model, piece, ids) for piece, ids in zip(pieces, layout.ids)]
        start = layout.start
        return reader, contexts.join(self.user, reader, held, capacity=capacity, start=start)
