"""Gathers what concerns a config: its fields, its plan, and the file `config.json` of a run."""

from posenc_jax.run.fields import check_fields as check_fields
from posenc_jax.run.fields import fields_of as fields_of
from posenc_jax.run.plan import Plan as Plan
from posenc_jax.run.plan import make_task as make_task
from posenc_jax.run.plan import model_config as model_config
from posenc_jax.run.plan import resolve as resolve
from posenc_jax.run.plan import run_name as run_name
from posenc_jax.run.plan import task_length as task_length
from posenc_jax.run.plan import validate as validate
from posenc_jax.run.stored import EARLIER as EARLIER
from posenc_jax.run.stored import FILE as FILE
from posenc_jax.run.stored import FREE_FIELDS as FREE_FIELDS
from posenc_jax.run.stored import ITEMS as ITEMS
from posenc_jax.run.stored import SHAPE as SHAPE
from posenc_jax.run.stored import Saved as Saved
from posenc_jax.run.stored import changes as changes
from posenc_jax.run.stored import differences as differences
from posenc_jax.run.stored import from_json as from_json
from posenc_jax.run.stored import read_saved as read_saved
from posenc_jax.run.stored import save as save
from posenc_jax.run.stored import saved_of as saved_of
from posenc_jax.run.stored import stored_model_config as stored_model_config
from posenc_jax.run.stored import write as write
