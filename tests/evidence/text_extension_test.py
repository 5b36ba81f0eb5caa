"""The sweep of extensions of text: its runs exist as asked, and its claims read what it writes."""

import jax
import pytest
from flax import nnx

from evidence.experiments import text_extension as sweep
from posenc_jax.lab.model import Transformer, TransformerConfig
from tests.evidence.written import effects, evaluation


def test_every_run_has_fields_that_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, 'factors', lambda run: 'longrope(long=(1.0, 2.0), factor=2.0)')
    assert sweep.base(tmp_path, 0, 60).asked().train.length == sweep.LENGTH
    for name in sweep.TUNED:
        config = sweep.tuned(tmp_path, name, 3, 60).asked()
        assert (config.seed, config.train.steps) == (3, 60)
        assert config.train.length * config.train.batch in (2048, 4096)


@pytest.mark.full
def test_adapters_have_as_many_parameters_as_lower_ranks_with_psc():
    def trained(encoding, rank):
        sizes = dict(vocab_size=4, train_len=8, layers=1, width=160, heads=5)
        cfg = TransformerConfig(**sizes, encoding=encoding, lora_rank=rank)
        made = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(made, nnx.Param)))

    ranks = {name: sweep.TUNED[name]['model.lora_rank'] for name in ('pi_adapters', 'pi_psc')}
    assert trained('rope()', ranks['pi_adapters']) == trained('psc() | rope()', ranks['pi_psc'])
    assert trained('rope()', 8) < trained('psc() | rope()', 8)


def test_every_claim_reads_what_the_sweep_writes(tmp_path):
    losses = {'base': 1.0, 'base | dca()': 1.02, 'yarn': 1.1, 'base | longrope(x)': 1.5}

    nll = lambda name, length: losses.get(name, 1.2) + 1e-5 * length
    written = lambda folder, names, *lengths: evaluation(tmp_path / folder, names, lengths, nll)
    extended = lambda specs: [f'base | {spec}' if spec else 'base' for spec in specs]
    written('as_it_is', extended(sweep.AS_IT_IS), 256, 1024)
    near = [name for name in sweep.TUNED if name != 'pi_16']
    written('tuned', ['base', *near, 'base | dca()'], 256, 1024, 2048)
    written('eighth', ['base', 'base | longrope(x)'], 256, 2048)
    written('gali', extended(sweep.EIGHT), 256, 2048)
    written('far', [*extended((*sweep.FAR, 'lm_infinite()')), 'pi_16'], 256, 4096)
    written('very_far', extended(sweep.VERY_FAR), 256, 8192)
    # Those of the sweep `progressive`.
    steps = ('tuned', 'tuned | longrope(x)', 'tuned | longrope(x, short=y)')
    losses |= dict(zip(steps, (1.05, 1.12, 1.07)))
    written('comparison', ['base', *steps], 256, 1024, 4096)
    found = effects(tmp_path, 'text_extension', 'progressive')
    assert len(found) == 12
    first = {name: values[0] for name, values in found.items()}
    assert first['R10'] == pytest.approx(0.1 - 0.5 - 1e-5 * (2048 - 256))
    assert first['R11'] == pytest.approx(0.1 - 0.12 - 1e-5 * (4096 - 256))
    assert first['R12'] == pytest.approx(0.05 - 0.02)  # less than what `short` saves, 0.05
    assert first['R24'] == pytest.approx(0.1 - 0.02 - 1e-5 * (8192 - 256))
    assert first['R25'] == pytest.approx(0.05 + 0.08)
