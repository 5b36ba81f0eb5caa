"""Whether kernels are as good as the table says."""

from posenc_jax.attention.kernels.compiled import PASSES, Compiled

# What --check compiles: key, head width, dtype, target.
CHECKED = (
    ('nope', 128, 'bfloat16', 'sm_90'),
    ('alibi', 128, 'bfloat16', 'sm_90'),
    ('kerple', 64, 'bfloat16', 'sm_90'),
    ('t5_rpe', 64, 'bfloat16', 'sm_90'),
    ('nope', 64, 'bfloat16', 'sm_80'),
    ('alibi', 128, 'bfloat16', 'sm_80'),
    ('fire', 64, 'bfloat16', 'sm_80'),
    ('nope', 128, 'bfloat16', 'v5e'),
    ('alibi', 128, 'bfloat16', 'v5e'),
    ('t5_rpe', 64, 'bfloat16', 'v5e'),
)


def worse(line: Compiled, recorded: Compiled) -> list[str]:
    """What is worse in a line than in the recorded one: more than a tenth of instructions, bundles
    or spills, any more shared memory, or no products on tensor cores or asynchronous copies.
    """
    if line.refused:
        return [line.refused]
    found = []
    for name, most in dict(loop=1.1, bundles=1.1, spills=1.1, shared=1.0).items():
        for kernel, now, before in zip(PASSES, getattr(line, name), getattr(recorded, name)):
            if now > max(most * before, before + 16 * (name == 'spills')):
                found.append(f'{name} of {kernel}: {now:g}, recorded {before:g}')
    for kernel, now in zip(PASSES, line.tensor):
        if not now and kernel != 'carries':
            found.append(f'{kernel} has no products on tensor cores')
    for kernel, now, before in zip(PASSES, line.copies, recorded.copies):
        if before and not now:
            found.append(f'{kernel} has no asynchronous copies')
    return found
