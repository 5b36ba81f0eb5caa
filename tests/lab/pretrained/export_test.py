"""What is exported, read back here and by `transformers`: the same logits, the trained and the
extended length, no warning.
"""

import json
import logging
import pathlib
import re
import warnings

import numpy as np
import pytest

from posenc_jax.lab.pretrained import PretrainedError, export_pretrained, load_pretrained
from posenc_jax.lab.pretrained.public_config import WRITTEN_RULES
from posenc_jax.language.spec import parse
from tests.lab.pretrained.load_test import GPT2, LLAMA, TOKENS, model_of

# Every rule that can be exported, and how far its model reaches: trained at 16 tokens where the
# rule does not say, read at 12.
RULES = {
    'rope(base=500.0)': 16,
    'rope(base=500.0, freqs=pi(factor=2.0))': 32,
    'rope(freqs=pi(factor=2.5))': 40,
    'rope(base=500.0, freqs=ntk_aware(factor=2.0))': 16,
    'rope(freqs=abf(base=700.0))': 16,
    'rope(freqs=dynamic_ntk(factor=2.0, train_len=4))': 4,
    'rope(base=500.0, freqs=yarn(factor=4.0, train_len=8, beta_fast=16.0, mscale=1.0, '
    'mscale_all_dim=0.5))': 32,
    'rope(freqs=yarn(factor=1.1, train_len=10, beta_fast=4.0, attention_factor=1, '
    'truncate=False))': 11,
    'rope(freqs=llama3_rope(factor=4.0, train_len=8, low_freq_factor=1.0, '
    'high_freq_factor=3.0))': 32,
    'rope(freqs=longrope(long=(1.0, 2.0, 2.5, 4.0), short=(1.0, 1.0, 1.0, 1.5), factor=4.0, '
    'train_len=4))': 16,
    'rope(freqs=longrope(long=(1.0, 2.0, 2.5, 4.0), factor=12.0, train_len=4, magnitude=1.25))': 48,
    'rope(freqs=p_rope(p=0.5))': 16,
}
RULE_NAMES = [rule.partition('freqs=')[2].partition('(')[0] for rule in RULES]
EXPORTED = {
    'llama-tied': {**LLAMA, 'tie': True, 'embedding_scale': 1.0},
    'gpt2': GPT2,
    **{
        f'{name}-{number}': {**LLAMA, 'encoding': rule}
        for number, (rule, name) in enumerate(zip(RULES, RULE_NAMES))
    },
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('fields', EXPORTED.values(), ids=EXPORTED)
def test_what_is_exported_is_read_back(fields, tmp_path):
    model = model_of(**fields)
    found = load_pretrained(export_pretrained(model, tmp_path))
    np.testing.assert_allclose(found.model(TOKENS), model(TOKENS), atol=2e-5)
    declared = re.search(r'train_len=(\d+)', fields['encoding'])
    assert found.tokenizer is None and found.model.cfg.train_len == (
        int(declared[1]) if declared else 16
    )


@pytest.mark.parametrize(
    'rule', [rule for rule in RULES if 'ntk_aware' not in rule and 'abf' not in rule]
)
def test_the_rule_is_read_back_and_not_one_that_is_like_it(rule, tmp_path):
    """`ntk_aware` and `abf` are written as the base that they are."""
    model = model_of(**{**LLAMA, 'encoding': rule})
    found = load_pretrained(export_pretrained(model, tmp_path)).model
    (ours, *_), (theirs, *_) = (m.encoding(0, m.blocks[0]).parts for m in (model, found))
    assert ours.base == theirs.base
    given, read = (vars(part.freqs) if part.freqs else {} for part in (ours, theirs))
    for name in ('magnitude',) if 'longrope' in rule else ():  # written as the number that it is
        given, read = (
            {**fields, name: part.freqs.temperature}
            for fields, part in ((given, ours), (read, theirs))
        )
    assert given == read and type(ours.freqs) is type(theirs.freqs) and parse(found.cfg.encoding)


@pytest.mark.full
@pytest.mark.parametrize('rule', RULES)
def test_transformers_reads_the_same_model_and_its_extended_length_without_a_warning(
    rule, tmp_path
):
    torch = pytest.importorskip('torch', reason='needs torch and transformers')
    transformers = pytest.importorskip('transformers', reason='needs torch and transformers')
    model = model_of(**{**LLAMA, 'encoding': rule})
    export_pretrained(model, tmp_path)
    said, handler, logger = [], logging.Handler(logging.WARNING), logging.getLogger('transformers')
    handler.emit = lambda record: said.append(record.getMessage())
    transformers.utils.logging.warning_once.cache_clear()  # else each message comes once a process
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            config = transformers.AutoConfig.from_pretrained(tmp_path)
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        with torch.no_grad():
            logits = theirs(torch.asarray(np.array(TOKENS))).logits.numpy()
    finally:
        logger.removeHandler(handler)
    assert said == [] and config.max_position_embeddings == RULES[rule]
    np.testing.assert_allclose(model(TOKENS), logits, atol=2e-5)


def test_the_extended_length_of_a_model_that_was_extended(tmp_path):
    """Trained at 48 tokens, extended four times: 192, and trained at 48 when it is read back."""
    for extension in (
        'pi(factor=4.0)',
        'yarn(factor=4.0)',
        'llama3_rope(factor=4.0)',
        f'longrope(long={(2.0,) * 4}, factor=4.0)',
    ):
        model = model_of(**{**LLAMA, 'train_len': 48}).extend(extension)
        path = export_pretrained(model, tmp_path / extension.partition('(')[0])
        assert json.loads((path / 'config.json').read_text())['max_position_embeddings'] == 192
        assert load_pretrained(path).model.cfg.train_len == 48


NO_RULE = 'transformers has no such frequencies: rope'
frequencies = lambda rule: dict(encoding=f'rope(freqs={rule})')
REFUSED = {  # message -> fields of the config in which a model differs from a Llama
    'the tied table is multiplied by 4.899': dict(tie=True),
    "nearest is 'llama': layers with alibi, expected rope": dict(encoding='alibi()'),
    r'layers with rope \| window, expected rope': dict(encoding='rope() | window(3, aligned=True)'),
    'no such extension in a config: self_extend; .* rules abf, .* yarn': dict(
        encoding='self_extend(encoding=rope(), group=2, local=4)'
    ),
    'layers with fire': dict(encoding='fire()'),
    "layout 'half' .* got 'interleaved'": dict(encoding='rope(layout="interleaved")'),
    r'adapters .* export model.merged\(\)': dict(lora_rank=2),
    'embedding_norm=True': dict(embedding_norm=True),
    "kind='encoder', expected 'decoder'": dict(kind='encoder'),
    "mlp='gelu'": dict(mlp='gelu'),
    "mlp='geglu'": dict(mlp='geglu'),
    "norm_place='after'": dict(norm_place='after'),
    "qk_norm='width'": dict(qk_norm='width'),
    'head_norm=True': dict(head_norm=True),
    'output_cap=30.0': dict(output_cap=30.0),
    f'{NO_RULE}.*Giraffe': frequencies('giraffe(factor=2.0)'),
    f'{NO_RULE}.*dynamic=True': frequencies('yarn(dynamic=True)'),
    f"{NO_RULE}.*ramp='rotations'": frequencies('yarn(factor=2.0, ramp="rotations")'),
    f"{NO_RULE}.*keep='lowest'": frequencies('p_rope(p=0.5, keep="lowest")'),
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_cannot_be_exported_says_why(message, tmp_path):
    with pytest.raises(PretrainedError, match=message):
        export_pretrained(model_of(**{**LLAMA, **REFUSED[message]}), tmp_path)


def test_the_page_lists_the_rules_that_are_written():
    page = (pathlib.Path(__file__).parents[3] / 'docs' / 'pretrained.md').read_text('utf-8')
    _, _, section = page.partition('### Extensions in an exported config')
    table = re.findall(r'^\| `(\w+)` \|', section.partition('\n#')[0], re.MULTILINE)
    assert sorted(table) == WRITTEN_RULES == sorted({name for name in RULE_NAMES if name})


def test_an_architecture_that_is_asked_for_is_written_or_refused(tmp_path):
    model = model_of(**{**LLAMA, 'encoding': 'rope() | window(size=3)'})
    named = lambda path: json.loads((path / 'config.json').read_text())['model_type']
    assert named(export_pretrained(model, tmp_path / 'first')) == 'mistral'
    assert named(export_pretrained(model, tmp_path / 'asked', architecture='phi3')) == 'phi3'
    refused = {
        'olmo2': "not a 'olmo2': model.norm_place='before', expected 'after'",
        'phi': "architecture='phi'; did you mean 'phi3'",
    }
    for asked, message in refused.items():
        with pytest.raises(PretrainedError, match=message):
            export_pretrained(model, tmp_path / 'never', architecture=asked)
    assert not (tmp_path / 'never').exists()
