"""The train step against GPT-NeoX of `transformers` (SDPA) and `x-transformers` (flash path).

All models have the same shapes and take turns in one process, in float32 with AdamW and gradient
clipping, on the same number of threads.

    pip install -r benchmarks/requirements.txt     # into an environment of its own
    python benchmarks/peers.py
"""

import os

import numpy as np
import torch
from measure import options, shorter, show, take_turns
from train_step import (
    STANDARD,
    VOCAB,
    MeshStep,
    batch_of,
    described,
    model_config,
    run_of,
    sizes_of,
)
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from x_transformers import Decoder, TransformerWrapper

from posenc_jax.layer.sharding import split_cpu


class TorchStep:
    """One update of a torch model that maps tokens to logits."""

    def __init__(self, model: torch.nn.Module, logits, batch):
        self.model, self.logits = model.train(), logits
        self.tokens, self.targets = (
            torch.tensor(np.asarray(batch[name]), dtype=torch.long)
            for name in ('tokens', 'targets')
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, fused=True
        )

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(self.model, self.tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def gpt_neox(args, batch):
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.width,
        max_position_embeddings=args.length,
        attn_implementation='sdpa',
        use_cache=False,
    )
    return TorchStep(GPTNeoXForCausalLM(config), lambda model, tokens: model(tokens).logits, batch)


def x_transformer(args, batch, **position):
    decoder = Decoder(
        dim=args.width,
        depth=args.layers,
        heads=args.heads,
        attn_dim_head=args.width // args.heads,
        attn_flash=True,
        use_rmsnorm=True,
        **position,
    )
    model = TransformerWrapper(
        num_tokens=VOCAB,
        max_seq_len=args.length,
        use_abs_pos_emb=False,
        tie_embedding=True,
        attn_layers=decoder,
    )
    return TorchStep(model, lambda model, tokens: model(tokens), batch)


THREADS = (len(os.sched_getaffinity(0)), 'of torch; JAX uses all it may')


def main():
    args = options(__doc__, **STANDARD, threads=THREADS)
    torch.set_num_threads(args.threads)
    split_cpu(args.batch)  # as train.py does
    batch, sizes = batch_of(args.batch, args.length), sizes_of(args)
    ours = lambda spec: MeshStep(run_of(model_config(spec, **sizes), batch), batch)
    steps = {
        'posenc_jax rope': ours('rope()'),
        'posenc_jax alibi': ours('alibi()'),
        'transformers GPT-NeoX, SDPA (rope)': gpt_neox(args, batch),
        'x-transformers, flash (rope)': x_transformer(args, batch, rotary_pos_emb=True),
        'x-transformers, flash (alibi)': x_transformer(
            args, batch, alibi_pos_bias=True, alibi_num_heads=args.heads
        ),
    }
    seconds = take_turns(steps, args.rounds)
    same = lambda name: f'posenc_jax {"alibi" if "alibi" in name else "rope"}'
    rows = [(name, *shorter(seconds, name, same(name))) for name in steps]
    torches = f'{args.threads} torch threads, torch {torch.__version__}'
    columns = ('model', 'ms', 'posenc_jax with the same encoding takes')
    show(f'Train step: {described(args)}, {torches}', columns, rows)


if __name__ == '__main__':
    main()
