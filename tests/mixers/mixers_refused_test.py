"""What mixers refuse in a spec string, and what the message says."""

import re

import pytest

from posenc_jax.protocol.errors import SpecError
from tests.mixers.small import make

REFUSED = {  # spec -> what the message says
    'cheems(chunk=0)': 'cheems chunk must be at least 1, got 0',
    'cheems(base=0.5)': 'must be at least 1, got 0.5',
    'cheems(dt=0.0)': 'cheems dt must be positive',
    'gin(hidden=-1)': 'hidden must be at least 0, got -1',
    'gru(features=0)': 'gru features must be at least 1, got 0',
    'graph_attention(edges="masc")': "'masc' is not",
    'lavo(slots=64)': '1 .. 4 (head_dim), got 64',
    'lavo(slots=0)': 'got 0',
    'lavo(slots=2, window=0)': 'window must be at least 1',
    'lightnet(encoding=rope())': 'takes the encoding md_lrpe, not rope',
    'lightnet(encoding=md_lrpe() | alibi())': 'takes the encoding md_lrpe, not',
    'lightnet_whole(encoding=rope())': 'lightnet_whole takes the encoding md_lrpe, not rope',
    'lstm(features=0)': 'lstm features must be at least 1, got 0',
    'md_tpe(terms=0)': 'terms must be at least 1',
    'md_tpe(shape=(3, 0))': 'shape must be at least 1, got 0 in (3, 0)',
    'md_tpe(shape=(4096, 4096))': 'lines',
    'pcm_layer(pcm_layer(gru()))': 'takes a recurrent mixer such as gru',
    "pcm_layer(gmu_hybrid(part='keys'))": 'got gmu_hybrid',
    'pcm_layer(gru(), prompts=-1)': 'prompts must be at least 0',
    'pcm_layer(gru(), size=0.0)': 'size must be positive',
    'pcm_layer(gru(), order="xxx")': "order='xxx' is not",
    'pcm_layer(rope())': "'rope' is registered as encoding",
    'rope() | pcm_layer(gru())': 'replaces attention, so it stands alone',
    'pcm_layer(gru()) | pcm()': 'replaces attention, so it stands alone',
    'peg_causal(kernel=0)': 'kernel must be at least 1 and at most 1024, got 0',
    'peg_causal(kernel=1025)': 'kernel must be at least 1 and at most 1024, got 1025',
    'rmat(segment=-1)': 'segment must be at least 0',
    'rmat(chunk=0)': 'chunk must be at least 1',
    'rmat(slots=0)': 'slots must be at least 1',
    'rmat(base=0.5)': 'at least 1',
    'spatial_reduction()': "spatial_reduction needs 'rate'",
    'spatial_reduction(rate=0)': 'rate must be at least 1, got 0',
    'spatial_reduction(rate=1, anchor=True)': 'phases of a rate of at least 2, got rate=1',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_values_are_refused(spec):
    with pytest.raises(SpecError, match=re.escape(REFUSED[spec])):
        make(spec)


def test_an_odd_head_width_cannot_be_rotated():
    for spec in ('rmat()', 'cheems()'):
        with pytest.raises(SpecError, match='even'):
            make(spec, head_dim=3)
