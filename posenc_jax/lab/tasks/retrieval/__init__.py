"""Retrieval: tasks that ask for something that stands earlier in the input."""

from posenc_jax.lab.tasks.retrieval.code_mixed import CodeMixed as CodeMixed
from posenc_jax.lab.tasks.retrieval.kv_retrieval import KVRetrieval as KVRetrieval
from posenc_jax.lab.tasks.retrieval.kv_slots import KVSlots as KVSlots
from posenc_jax.lab.tasks.retrieval.mqar import MQAR as MQAR
from posenc_jax.lab.tasks.retrieval.passkey import Passkey as Passkey
from posenc_jax.lab.tasks.retrieval.passkey import Passkeys as Passkeys
from posenc_jax.lab.tasks.retrieval.passkey_text import PasskeyText as PasskeyText
from posenc_jax.lab.tasks.retrieval.ruler_lite import RulerLite as RulerLite
