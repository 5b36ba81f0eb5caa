"""Laws about sequences: causality, padding, packing, decoding with a cache, and heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.layer import cache as cache_module
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import DOORS
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.masks import Causal
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.testing.compare import DIFFERENT, BrokenLaw, close, demand, gap
from posenc_jax.testing.subject import (
    BLOCKS,
    DOCUMENT,
    LENGTH,
    MODEL,
    PACKED,
    PADDED,
    ROWS,
    Subject,
    attend,
    cotangent,
    earlier_rows,
    project,
    split,
    tokens,
)


def causality(subject: Subject, how=BLOCKS[0]) -> None:
    """Later tokens do not change earlier outputs: the gradients of earlier outputs by later inputs
    are exactly zero, and other later inputs leave earlier outputs exactly the same. Masks that show
    later keys are refused beside the causal mask.
    """
    sees_later = 'sees_later' in subject.encoding.traits
    cut = 1 if sees_later else 7
    early = np.where(np.arange(LENGTH)[:, None, None] < cut, cotangent(), 0)
    gradient = np.abs(subject.gradients(how, tokens(), early)[1][2])
    if sees_later:
        demand(gradient[:, cut:].max() > DIFFERENT, 'the trait sees_later is stated in vain')
        try:
            chain(subject.encoding, Causal())
        except SpecError as error:
            demand('causal hides later keys and' in str(error), str(error))
            return
        raise BrokenLaw('it sees later keys, and the causal mask is not refused beside it')
    leak = float(gradient[:, cut:].max())
    demand(leak == 0, f'a gradient of an earlier output by a later input is {leak:.3g}')
    demand(gradient[:, :cut].max() > DIFFERENT, 'earlier outputs depend on no earlier input')
    later = subject.x.at[:, cut:].set(-5.0)
    difference = gap(subject(later)[:, :cut], subject()[:, :cut])
    demand(difference == 0, f'other later inputs change earlier outputs by {difference:.3g}')


def padding(subject: Subject) -> None:
    """Padded rows are finite, and what stands in them changes nothing."""
    tok = tokens(valid=PADDED)
    out = subject(tok=tok)
    demand(np.isfinite(out).all(), 'an output is not finite')
    other = jnp.where(PADDED[..., None], subject.x, 1e3)
    close(subject(other, tok)[PADDED], out[PADDED], 1e-6, 'the outputs for other padding')


def packing(subject: Subject) -> None:
    """Two documents have the same outputs alone, packed in one row, and with padding on the left or
    on the right.
    """
    documents, encoding = subject.x[:, :DOCUMENT], subject.encoding
    alone = Tokens.of(length=DOCUMENT)
    # What is compared is computed as a whole; alone, in tiles of a few queries and all keys.
    run = lambda x: attend(encoding, *project(encoding, subject.weights, x, alone), block=BLOCKS[1])
    expected = jax.jit(run)(documents)
    packed = jnp.tile(documents.reshape(1, LENGTH, MODEL), (ROWS, 1, 1))
    out = subject(packed, tokens(segment=PACKED))
    close(out[0].reshape(expected.shape), expected, what='packed documents and documents alone')
    filler = jnp.full_like(documents, 3.0)
    for order in (1, -1):
        valid = np.repeat([[False, True]], DOCUMENT, axis=1)[:, ::order]
        valid = np.broadcast_to(valid, (ROWS, LENGTH))
        padded = jnp.concatenate([filler, documents][::order], axis=1)
        out = subject(padded, tokens(valid=valid))[valid]
        close(out.reshape(expected.shape), expected, what='padded documents and documents alone')


def distances(subject: Subject) -> str | None:
    """Gaps in `index` change no output, because encodings measure distances by `pos`. Only
    encodings that are just a mask may measure distances by `index`.
    """
    doors = [door for door in (*DOORS, 'qkv') if door != 'mask']
    if not any(part.opens(door) for part in parts_of(subject.encoding) for door in doors):
        return 'no door but mask is open'
    tok = tokens()
    gaps = subject(tok=dataclasses.replace(tok, index=3 * tok.index + 1))
    close(gaps, subject(tok=tok), 1e-6, 'the outputs with gaps in index')


def heads(subject: Subject) -> None:
    """A head reads no other head, except where `mixes_logits`; then some head reads another one."""
    weights = dict(subject.weights, q=subject.weights['q'].at[:, 0].multiply(-1.5))
    changed, same = subject(weights=weights), subject()
    own = gap(changed[:, :, 0], same[:, :, 0])
    demand(own == 0 or own > DIFFERENT, f'its own queries change a head by {own:.3g} alone')
    if 'mixes_logits' in subject.encoding.traits:
        others = gap(changed[:, :, 1:], same[:, :, 1:])
        demand(
            others > DIFFERENT, f'mixes_logits is stated, and other heads change by {others:.3g}'
        )
        return
    close(changed[:, :, 1:], same[:, :, 1:], what='the other heads')


def decode(encoding, weights, x, tok, prompt):
    """Decodes with a cache: a prompt at once, then one token at a time.

    Returns:
      The outputs of all tokens, the cache after the prompt, the cache at the end, and the keys as
      projected.
    """
    tok = encoding.place(tok)
    x = encoding.embed(x, tok)
    rows, k = earlier_rows(x, tok, encoding.lookback), jnp.einsum('bld,dnh->blnh', x, weights['k'])
    own, early = tok.slice(0, prompt), rows[:, : prompt + encoding.lookback]
    arguments, filled = cache_module.project_prompt(
        encoding, *split(encoding, weights, x[:, :prompt], early, own), own, early, LENGTH
    )
    first = attend(encoding, *arguments)

    def step(cache, cursor):
        at = lambda a, shift=0: jax.lax.dynamic_slice_in_dim(a, cursor + shift, 1, axis=1)
        row = at(rows, encoding.lookback)
        read = jnp.concatenate([cache.rows, row], axis=1)
        q, k, v = split(encoding, weights, at(x), read, tok.slice(cursor, 1))
        arguments, cache = cache_module.project_new(encoding, cache, q, k, v, tok, row, cursor)
        return cache, attend(encoding, *arguments, heads_first=True)[:, 0]

    final, rest = jax.lax.scan(step, filled, jnp.arange(prompt, LENGTH))
    return jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], axis=1), filled, final, k


def decoding(subject: Subject) -> None:
    """Decoding with a cache equals one pass over the text so far, and the cache holds keys in the
    form that is promised. One prompt is padded on the left.
    """
    prompt, encoding = 6, subject.encoding
    kind = encoding.cached
    if subject.promises is not None:
        stated = subject.promises.cached
        demand(stated == kind, f'the promise is cached={stated!r}, and the encoding says {kind!r}')
    valid = np.ones((ROWS, LENGTH), bool)
    valid[1, :2] = False
    tok = dataclasses.replace(Tokens.of(valid=valid), index=jnp.arange(LENGTH)[None])
    if kind == 'none':
        _cannot_decode(subject, tok, valid, prompt)
        return
    run = subject.counted('decode', lambda e, w, x, tok: decode(e, w, x, tok, prompt))
    out, filled, final, raw_keys = run(subject.state, subject.weights, subject.x, tok)
    prefix = lambda end: tokens(valid=valid & (np.arange(LENGTH) < end))
    early = valid[:, :prompt]
    close(out[:, :prompt][early], subject(tok=prefix(prompt))[:, :prompt][early], what='the prompt')
    for t in range(prompt, LENGTH):
        one_pass = subject(tok=prefix(t + 1))[:, t]
        close(out[:, t], one_pass, what=f'token {t} decoded with a cache and in one pass')

    before, after = (np.asarray(cache.k)[:, :, :prompt] for cache in (filled, final))
    raw = np.swapaxes(np.asarray(raw_keys)[:, :prompt], 1, 2)
    keys = lambda end: subject.project(tok=prefix(end))[1][:, :prompt]
    whole, short = (np.where(early[..., None, None], keys(n), 0) for n in (LENGTH, prompt))
    by_length, by_tokens = gap(whole, short), gap(before, after)
    if kind == 'raw' and by_length <= DIFFERENT:
        by_length = gap(*_last_keys(subject, tok))
    demand(
        (by_length > DIFFERENT) == (kind == 'raw'),
        "cached is 'raw' exactly if a key depends on the length or on which tokens are left: it is "
        f'{kind!r}, and this changes keys by {by_length:.3g}',
    )
    demand(
        (by_tokens > DIFFERENT) == (kind == 'evolving'),
        f"cached is 'evolving' exactly if later tokens change cached keys: it is {kind!r}, and "
        f'they change by {by_tokens:.3g}',
    )
    if kind == 'raw':
        demand(np.array_equal(after, raw), f'raw keys change by {gap(after, raw):.3g} in the cache')


def _last_keys(subject: Subject, tok) -> list:
    """The last key of every row, with all tokens and without two in the middle."""
    left = dataclasses.replace(tok, valid=tok.valid & ~np.isin(np.arange(LENGTH), (3, 4)))
    return [np.asarray(subject.project(tok=which)[1])[:, -1] for which in (tok, left)]


def _cannot_decode(subject, tok, valid, prompt):
    try:
        decode(subject.encoding, subject.weights, subject.x, tok, prompt)
    except ValueError as error:
        expected = 'gives every token another position when one is added'
        demand(expected in str(error), f'decoding says {error}')
    else:
        raise BrokenLaw("cached is 'none', and decoding is not refused")
    longer = subject(tok=tokens(valid=valid))[:, :prompt]
    shorter = subject(tok=tokens(valid=valid & (np.arange(LENGTH) < prompt)))[:, :prompt]
    change = gap(longer, shorter)
    demand(
        change > DIFFERENT,
        "cached is 'none' exactly if a later token changes earlier outputs; they change by "
        f'{change:.3g}',
    )
