"""The demands of a task of points on a field."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.lab.config import fields
from posenc_jax.lab.model.losses import LOSSES, psnr, wrong_bits
from posenc_jax.lab.runs.problem import Problem
from posenc_jax.protocol.errors import SpecError


class FieldProblem(Problem):
    """Points with values, bits or classes, which a field is fitted to."""

    kind = 'field'
    axes = ('batch',)
    alone = True

    def shape(self, config):
        task, width = self.task, self.width(config)
        further = {name: getattr(task, name) for name in ('output_size', 'predicts', 'bits')}
        return {'components': task.components, 'width': width} | {
            name: value for name, value in further.items() if value
        }

    def check_training(self, run):
        """Checks that a field can be trained on a task: that it can be called on its points, that a
        batch has no more points than there are, that its features are defined at all of them, and
        that its loss has a log-partition if `train.z_loss` asks for one.
        """
        config, task, model = run.config, self.task, run.model
        if config.train.z_loss and task.predicts != 'class':
            raise SpecError(
                f'train.z_loss is {config.train.z_loss}, but {self.spec} predicts {task.predicts}, '
                'which has no log-partition; set it to 0'
            )
        task.check_batch(config.train.batch, config.train.length)
        try:  # once, since a compiled step does not see values
            model.check_coordinates(task.points(config.train.length).coords)
        except ValueError as error:
            raise SpecError(
                f'features is {config.features!r}, task is {self.spec}: {error}'
            ) from error
        graphdef, state = nnx.split(model)
        call = lambda state, x: nnx.merge(graphdef, state)(x, key=jax.random.key(0), progress=0.0)
        jax.eval_shape(call, state, jax.ShapeDtypeStruct((2, task.components), jnp.float32))

    def check_evaluation(self, run):
        config, cfg, task = run.config, run.cfg, self.task
        fields.check_evaluation(config.eval)
        if cfg.kind != 'field':
            raise SpecError(f'{self.spec} asks for values at points, which only a field reads')
        for what, ours, theirs in (
            ('coordinates a point', cfg.components, task.components),
            ('outputs a point', cfg.output_size, task.output_size),
            ('predicts', cfg.predicts, task.predicts),
            ('bits', cfg.bits, task.bits),
        ):
            if ours != theirs:
                raise SpecError(f'the model was trained with {what}: {ours}; {self.spec}: {theirs}')
        self.check_split(run)
        self.check_lengths(run, lambda length: task.width(length))

    def read(self, model, batch, train, key=None, step=None):
        progress = None if step is None else step / train.steps
        return model(batch['coords'], key=key, progress=progress)

    def losses(self, outputs, targets):
        return LOSSES[self.task.predicts](outputs, targets)

    def auxiliary_loss(self, model, batch, key):
        return None

    def sums(self, losses, outputs, targets, scored):
        """`loss` and `targets` (the number of points); for classes the number of `correct` ones,
        for values their `squared_error`, and where whole numbers are stored, `bits` and
        `wrong_bits`.

        Example:
          >>> from posenc_jax.lab.tasks.pictures import BitPlanes, Picture
          >>> one = jnp.ones((3, 1))
          >>> problem = FieldProblem(BitPlanes(Picture('synthetic')), '')
          >>> sums = problem.sums(one[:, 0], one, jnp.array([[1.0], [0.0], [0.0]]), one[:, 0] > 0)
          >>> float(sums['wrong_bits']), float(sums['bits'])
          (2.0, 3.0)
        """
        total = lambda a: jnp.where(scored, a, 0).sum(dtype=jnp.float32)
        sums = {'loss': total(losses), 'targets': scored.sum(dtype=jnp.float32)}
        task: Any = self.task
        if task.predicts == 'class':
            return sums | {'correct': total(jnp.argmax(outputs, axis=-1) == targets)}
        if task.predicts == 'value':
            sums['squared_error'] = sums['loss']
        if task.bits:
            whole = task.bits if task.predicts == 'value' else 0
            wrong = wrong_bits(outputs, targets, whole)
            each = outputs.shape[-1] * (whole or 1)
            sums |= {'wrong_bits': total(wrong.sum(-1)), 'bits': each * sums['targets']}
        return sums

    def means(self, totals):
        found = super().means(totals)
        if totals.get('squared_error'):  # JSON has no infinity
            found['psnr'] = psnr(totals['squared_error'] / totals['targets'])
        return found

    def step_bytes(self, cfg, tokens):
        return 4 * tokens * (cfg.components + cfg.output_size)
