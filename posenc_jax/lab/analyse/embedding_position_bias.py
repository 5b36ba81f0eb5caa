"""Position bias of text embeddings: whose part of a document its vector resembles most."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import small_legend
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.layers import pooled
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens

# Texts, as rows of token ids of any length, to one vector each.
Embedder = Callable[[Sequence[Int[np.ndarray, ' _']]], Float[np.ndarray, 'M D']]
PLACES = ('beginning', 'middle', 'end')
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
REMOVED = (0.25, 0.5)


class PositionBias(NamedTuple):
    """Attributes:
    inserted: mean cosine of a document and the same with other text inserted, by share and place.
    removed: the same with a share of its segments left out, by share and place.
    similarity: mean cosine of a document and its k-th segment.
    slope: of these on k / (K - 1), least squares for each document, then the mean.
    shuffled: the slope after the segments of each document were shuffled.
    needle: mean cosine of a foreign segment and the document that has it in the k-th place.
    """

    inserted: Float[np.ndarray, 'shares 3']
    removed: Float[np.ndarray, 'shares 3']
    similarity: Float[np.ndarray, ' K']
    slope: float
    shuffled: float
    needle: Float[np.ndarray, ' K']


def slopes(similarity: Float[np.ndarray, 'documents K']) -> Float[np.ndarray, ' documents']:
    """Least squares of the similarity on k / (K - 1), k = 0 .. K - 1."""
    place = np.linspace(0, 1, similarity.shape[1])
    place -= place.mean()
    return similarity @ place / (place @ place)


def cosines(a: Float[np.ndarray, '*#rest D'], b: Float[np.ndarray, '*#rest D']):
    """The cosine along the last axis; 0 where a vector is 0."""
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.where(size > 0, size, 1)


def inserted_at(
    text: Int[np.ndarray, ' T'], other: Int[np.ndarray, ' n'], place: str
) -> Int[np.ndarray, ' _']:
    """The text with other text at its 'beginning', in its 'middle' or at its 'end'."""
    check_choice('place', place, PLACES)
    at = (0, len(text) // 2, len(text))[PLACES.index(place)]
    return np.concatenate([text[:at], other, text[at:]])


def removed_at(text: Int[np.ndarray, ' T'], count: int, place: str) -> Int[np.ndarray, ' _']:
    """The text without `count` of its tokens at a place."""
    check_choice('place', place, PLACES)
    rest = len(text) - count
    at = (0, rest // 2, rest)[PLACES.index(place)]
    return np.concatenate([text[:at], text[at + count :]])


def bias_of(
    embed: Embedder, documents: Int[np.ndarray, 'S T'], *, segments: int, seed: int
) -> PositionBias:
    """The measures of `embedding_position_bias` for any embedder."""
    count, length = documents.shape
    if not 2 <= segments <= length or count < 2:
        raise ValueError(
            'embedding_position_bias needs two documents of at least two segments of a token, got '
            f'{count} of {length} tokens in {segments} segments'
        )
    size = length // segments
    documents = documents[:, : size * segments]
    length, rng = documents.shape[1], np.random.default_rng(seed)
    cut = documents.reshape(count, segments, size)
    others = np.roll(documents, 1, axis=0)  # each document with another one
    whole = np.asarray(embed(list(documents)), np.float64)
    near = lambda texts: cosines(np.asarray(embed(texts), np.float64), whole).mean()

    inserted = [
        [
            near([inserted_at(own, o[: max(1, round(share * length))], place)
                  for own, o in zip(documents, others)])
            for place in PLACES
        ]
        for share in SHARES
    ]  # fmt: skip
    gone = [size * max(1, round(share * segments)) for share in REMOVED]
    removed = [
        [near([removed_at(own, n, place) for own in documents]) for place in PLACES] for n in gone
    ]

    def of_segments(cut):
        own = np.asarray(embed(list(cut.reshape(count, -1))), np.float64)
        vectors = np.asarray(embed(list(cut.reshape(-1, size))), np.float64)
        return cosines(vectors.reshape(count, segments, -1), own[:, None])

    similarity = of_segments(cut)
    shuffled = of_segments(np.stack([own[rng.permutation(segments)] for own in cut]))
    needles = others.reshape(count, segments, size)[:, 0]
    wanted = np.asarray(embed(list(needles)), np.float64)
    needle = []
    for k in range(segments):
        moved = cut.copy()
        moved[:, k] = needles
        vectors = np.asarray(embed(list(moved.reshape(count, -1))), np.float64)
        needle.append(cosines(vectors, wanted).mean())
    return PositionBias(
        np.array(inserted),
        np.array(removed),
        similarity.mean(0),
        float(slopes(similarity).mean()),
        float(slopes(shuffled).mean()),
        np.array(needle),
    )


def embedder(model: Transformer, pool: str, *, batch: int = 16) -> Embedder:
    """One vector for each text: the 'mean' of its last hidden vectors, or the 'last' of them. Texts
    are padded to a power of two, so that few programs are compiled.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def call(state, rows, valid):
        tok = Tokens.of(valid=valid)
        return pooled(nnx.merge(graphdef, state).hidden(rows, tok), tok, pool)[:, 0]

    def embed(texts):
        width = 1 << (max(map(len, texts)) - 1).bit_length()
        rows = np.zeros((-(-len(texts) // batch) * batch, width), np.int32)
        valid = np.zeros(rows.shape, bool)
        valid[:, 0] = True  # rows that fill up the last batch have a token too
        for number, text in enumerate(texts):
            rows[number, : len(text)], valid[number, : len(text)] = text, True
        found = [
            np.asarray(call(state, rows[at : at + batch], valid[at : at + batch]), np.float32)
            for at in range(0, len(rows), batch)
        ]
        return np.concatenate(found)[: len(texts)]

    return embed


@register(
    'embedding_position_bias',
    kind='analysis',
    card=analysis_card(
        'position bias of embeddings',
        'embedding_position_bias(model, documents)',
        ('You use vectors of texts and want to know which part of a text they resemble.'),
    ),
)
def embedding_position_bias(
    model: Transformer,
    documents: Int[np.ndarray, 'S T'],
    *,
    pool: Literal['mean', 'last'] = 'mean',
    segments: int = 8,
    seed: int = 0,
    batch: int = 16,
) -> PositionBias:
    """Which part of a text its vector resembles: by inserted and removed text, by segments, and by
    a needle.

    `slope of cos(E(document), E(segment k)) on k / (K - 1)`, E the vector of a text, is measured
    again after shuffling the segments, as a control of the content. Text of another document is
    inserted at the beginning, in the middle or at the end, or segments are left out there; the
    cosine with the vector of the unchanged document says how much that place counts. A needle, a
    segment of another document, takes the place of each segment in turn; its cosine with the
    document is its score in a search. The mean of token vectors has no bias: slope 0, equal places.
    Differs from the paper: segments of equal length stand for sentences, and other windows of the
    text for irrelevant text.

    Args:
      model: a decoder or encoder with any encodings.
      documents: ids of at least two documents.
      pool: the vector of a text, the 'mean' of its hidden vectors or the 'last' of them.
      segments: K, equal parts of a document; a rest is left out.
      seed: shuffles segments.
      batch: texts that are read at a time.

    Raises:
      SpecError: an unknown pool.
      ValueError: one document, or fewer than two segments of a token.

    Reference: Goel, Lee, Ramchandran, arXiv 2412.15241; Coelho et al., arXiv 2404.04163.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = embedding_position_bias(
      ...     tiny_model('alibi()'), np.arange(16).reshape(2, 8) % 7, segments=4
      ... )
      >>> found.similarity.shape, found.inserted.shape
      ((4,), (5, 3))
    """
    model.check_ids(documents)
    return bias_of(embedder(model, pool, batch=batch), documents, segments=segments, seed=seed)


def _rows(one):
    for what, shares in (('inserted', SHARES), ('removed', REMOVED)):
        for share, cosines in zip(shares, getattr(one, what)):
            yield f'{what} {share:.0%}', *cosines


def _draw(axes, name, one):
    left, middle, right = axes
    for place, values in zip(PLACES, one.inserted.T):
        left.plot(np.array(SHARES) * 100, values, 'o-', markersize=3, label=place)
    left.set(xlabel='inserted text, % of the document', ylabel='cosine with the original')
    left.set_title(name, fontsize=8)
    small_legend(left)
    place, of = np.linspace(0, 1, len(one.similarity)), 'share of the text'
    middle.plot(place, one.similarity, 'o-', markersize=3)
    middle.set(xlabel=f'place of the segment, {of}', ylabel='cosine with the document')
    middle.set_title(f'slope {one.slope:+.3f}, shuffled {one.shuffled:+.3f}', fontsize=8)
    right.plot(place, one.needle, 'o-', markersize=3, color='C3')
    right.set(xlabel=f'place of the needle, {of}', ylabel='cosine of needle and document')


ANALYSIS = Comparison(
    measure=embedding_position_bias,
    batches=8,
    options={'pool': dict(default='mean', help="'mean' or 'last'")},
    arguments=lambda known, subject: dict(
        documents=subject.sequences(known, 256), pool=known.pool, batch=min(known.batches, 16)
    ),
    columns=('change', *PLACES),
    rows=_rows,
    draw=_draw,
    panels=3,
    title='Which part of a text its vector resembles',
    size=(10.5, 3.4),
    numbers=lambda one: {**one._asdict(), 'shares': SHARES, 'left_out': REMOVED},
    remarks=lambda found: [
        f'{name}: slope {one.slope:+.4f}, of shuffled segments {one.shuffled:+.4f}; needle '
        f'{one.needle[0]:.3f} at the beginning, {one.needle[-1]:.3f} at the end'
        for name, one in found.items()
    ],
)
