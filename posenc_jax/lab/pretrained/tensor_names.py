"""The names of tensors in public checkpoints, without '.weight' and '.bias'; '{}' stands for the
number of a layer.

'norm' is the last norm, 'attention_norm' and 'mlp_norm' are the norms of a layer in front of its
branches, and those on '_after' stand behind them. 'normed_q' and 'normed_k' are the norms of
queries and keys, 'in', 'gate' and 'down' the matrices of the feed-forward network.
"""

_LLAMA = {
    'embedding': 'model.embed_tokens',
    'norm': 'model.norm',
    'attention_norm': 'model.layers.{}.input_layernorm',
    'mlp_norm': 'model.layers.{}.post_attention_layernorm',
    'q': 'model.layers.{}.self_attn.q_proj',
    'k': 'model.layers.{}.self_attn.k_proj',
    'v': 'model.layers.{}.self_attn.v_proj',
    'normed_q': 'model.layers.{}.self_attn.q_norm',
    'normed_k': 'model.layers.{}.self_attn.k_norm',
    'out': 'model.layers.{}.self_attn.o_proj',
    'gate': 'model.layers.{}.mlp.gate_proj',
    'in': 'model.layers.{}.mlp.up_proj',
    'down': 'model.layers.{}.mlp.down_proj',
}
_BEHIND = {
    'attention_norm_after': 'model.layers.{}.post_attention_layernorm',
    'mlp_norm_after': 'model.layers.{}.post_feedforward_layernorm',
}
_without = lambda names, *parts: {part: name for part, name in names.items() if part not in parts}
NAMES = {
    **dict.fromkeys(('llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'), _LLAMA),
    'phi3': {
        **_without(_LLAMA, 'q', 'k', 'v', 'gate', 'in'),
        'qkv': 'model.layers.{}.self_attn.qkv_proj',
        'gate_in': 'model.layers.{}.mlp.gate_up_proj',
    },
    'olmo2': {**_without(_LLAMA, 'attention_norm', 'mlp_norm'), **_BEHIND},
    **dict.fromkeys(
        ('gemma2', 'gemma3_text'),
        {**_LLAMA, 'mlp_norm': 'model.layers.{}.pre_feedforward_layernorm', **_BEHIND},
    ),
    'gpt_neox': {
        'embedding': 'gpt_neox.embed_in',
        'norm': 'gpt_neox.final_layer_norm',
        'attention_norm': 'gpt_neox.layers.{}.input_layernorm',
        'mlp_norm': 'gpt_neox.layers.{}.post_attention_layernorm',
        'qkv': 'gpt_neox.layers.{}.attention.query_key_value',
        'out': 'gpt_neox.layers.{}.attention.dense',
        'in': 'gpt_neox.layers.{}.mlp.dense_h_to_4h',
        'down': 'gpt_neox.layers.{}.mlp.dense_4h_to_h',
    },
    'bloom': {
        'embedding': 'transformer.word_embeddings',
        'embedding_norm': 'transformer.word_embeddings_layernorm',
        'norm': 'transformer.ln_f',
        'attention_norm': 'transformer.h.{}.input_layernorm',
        'mlp_norm': 'transformer.h.{}.post_attention_layernorm',
        'qkv': 'transformer.h.{}.self_attention.query_key_value',
        'out': 'transformer.h.{}.self_attention.dense',
        'in': 'transformer.h.{}.mlp.dense_h_to_4h',
        'down': 'transformer.h.{}.mlp.dense_4h_to_h',
    },
    'gpt2': {
        'embedding': 'transformer.wte',
        'norm': 'transformer.ln_f',
        'attention_norm': 'transformer.h.{}.ln_1',
        'mlp_norm': 'transformer.h.{}.ln_2',
        'qkv': 'transformer.h.{}.attn.c_attn',
        'out': 'transformer.h.{}.attn.c_proj',
        'in': 'transformer.h.{}.mlp.c_fc',
        'down': 'transformer.h.{}.mlp.c_proj',
    },
    'mpt': {
        'embedding': 'transformer.wte',
        'norm': 'transformer.norm_f',
        'attention_norm': 'transformer.blocks.{}.norm_1',
        'mlp_norm': 'transformer.blocks.{}.norm_2',
        'qkv': 'transformer.blocks.{}.attn.Wqkv',
        'out': 'transformer.blocks.{}.attn.out_proj',
        'in': 'transformer.blocks.{}.ffn.up_proj',
        'down': 'transformer.blocks.{}.ffn.down_proj',
    },
}
