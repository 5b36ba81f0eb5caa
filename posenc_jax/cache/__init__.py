"""What a decode cache may do besides appending to it: edit a text, drop keys by head, read few of them."""

from posenc_jax.cache import double_sparsity, duo_attention, pie
