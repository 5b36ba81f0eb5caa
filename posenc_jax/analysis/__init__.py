"""What a model does with its positions: functions of it, a text, or its encoding alone, each with
its pictures or tables.
"""

from posenc_jax.analysis import attention_entropy, receptive_field, rope_usage, token_distance
