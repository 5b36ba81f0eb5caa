"""A run is understood once: the checks, the training and what it draws share one model."""

import jax
import numpy as np
from flax import nnx

from posenc_jax.lab.model.kinds import build_model
from posenc_jax.lab.runs import run as runs
from posenc_jax.lab.runs.sizes import problem_of
from posenc_jax.lab.tasks.copy import Reverse
from posenc_jax.lab.tasks.images import Quadrant
from posenc_jax.lab.tasks.language import Language
from posenc_jax.lab.tasks.pictures import Picture
from posenc_jax.lab.tasks.translation import Translation
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh
from tests.lab.train import tiny


def test_the_model_is_built_once_and_drawn_as_its_constructor_draws_it(tmp_path, monkeypatch):
    built = []
    counted = lambda *given: built.append(given) or build_model(*given)
    monkeypatch.setattr(runs, 'build_model', counted)
    asked = dict(eval__at_end=True, eval__lengths=(16, 32), eval__stride=8, model__layers=1)
    run = runs.resolve(tiny.config(tmp_path, seed=3, **asked))
    trainer = make_trainer(run, make_mesh(data=1, devices=jax.devices()[:1]))
    state = trainer.init({})
    assert len(built) == 1 and run.extended_model is run.model

    def constructed():
        model = build_model(run.cfg, nnx.Rngs(jax.random.key(3)))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    expected = jax.jit(constructed)()
    assert jax.tree.structure(expected) == jax.tree.structure(state.params)
    jax.tree.map(np.testing.assert_array_equal, expected, state.params)


def test_an_extension_is_applied_to_the_model_that_is_there(tmp_path):
    asked = dict(encoding='rope()', extend='pi(factor=2.0)', model__layers=1)
    run = runs.resolve(tiny.config(tmp_path, **asked))
    parts = lambda model: set(map(str, model.shared))
    assert parts(run.extended_model) - parts(run.model) == {'rope(freqs=pi(factor=2.0))'}
    assert parts(run.model) - parts(run.extended_model) == {'rope()'}


def test_every_kind_of_task_has_its_problem():
    tasks = Language(), Reverse(), Quadrant(), Translation(), Picture('synthetic')
    found = [problem_of(task).kind for task in tasks]
    assert found == ['text', 'answers', 'classes', 'source', 'field']
