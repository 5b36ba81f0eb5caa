"""Every field of a run with its default; the only home of defaults. Configs start from here and
change fields.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.name = (
        ''  # folder of the run within workdir; '' is made of the task, the encoding and the seed
    )
    config.workdir = 'runs'  # where runs are kept
    config.seed = (
        0  # parameters, batches, dropout and random positions all derive from it (0 .. 2**32 - 1)
    )

    config.encoding = 'rope()'  # spec string, e.g. 'rope() | alibi()'; all of them: docs/catalog.md
    # an encoding's parameters: one set per 'model', per 'layer', or 'auto' as in its paper
    config.share = 'auto'
    config.pattern = ()  # spec strings cycled over the layers; () means `encoding` in every layer
    config.extend = ''  # evaluation only: a context extension such as 'yarn(factor=4.0)'
    config.task = 'language()'  # spec string, e.g. 'addition(ids="coupled", reverse_output=True)'

    config.init = init = ConfigDict()  # where the weights come from
    # a training run, or a public checkpoint (directory or .gguf), to continue; '' draws them at
    # random.
    init.source = ''
    # Then `model` is that of the source, `encoding` too unless given here, and train_len in it is
    # the length of the source.
    init.extend = (
        ''  # a context extension to train with, e.g. 'yarn(factor=4.0)': rewrites `encoding`
    )

    config.data = data = (
        ConfigDict()
    )  # for tasks that read text, where the task's string does not say it
    data.dataset = 'pydoc_topics'  # 'pydoc_topics', 'stdlib_code', 'text:GLOB' or 'tfds:NAME'
    data.data_dir = (
        ''  # folder of 'text:' patterns or prepared 'tfds:' data sets; '' is their own default
    )
    # checkpoint whose tokenizer reads the text; '' is bytes, or of a public checkpoint its own
    data.tokenizer = ''
    # 'stream' crops all text as one stream; 'documents' packs documents with segment ids
    data.packing = 'stream'

    config.model = model = ConfigDict()
    model.kind = (
        'decoder'  # causal; an 'encoder' sees the next tokens, which all tasks here ask to predict
    )
    model.layers = 6
    model.width = 256  # D, of the residual stream
    model.heads = 8  # N, query heads
    model.kv_heads = 0  # K, key and value heads, a divisor of heads; 0 means heads
    model.head_dim = 0  # H; 0 means width // heads
    model.mlp = 'gelu'  # 'gelu' (tanh form), 'gelu_erf' or 'swiglu'
    model.mlp_width = 0  # hidden width; 0 means 4 * width
    model.bias = 'none'  # of projections: 'none', 'qkv', 'all'
    model.norm = (
        'rmsnorm'  # 'rmsnorm', 'layernorm' or 'layernorm_scale' (without bias), before each branch
    )
    model.epsilon = 1e-6  # of the norms
    model.parallel = False  # attention and feed-forward of a block read the same input
    model.tie = False  # whether the output uses the embedding table
    # the input multiplies the table by it; 0 means sqrt(width), for vectors of unit variance
    model.embedding_scale = 0.0
    model.embedding_norm = False  # a norm of the token vectors at the input
    model.lora_rank = (
        0  # low-rank adapters beside the projections of attention; 0 for none (see train.tune)
    )
    model.lora_alpha = 16.0  # they are scaled by lora_alpha / lora_rank
    model.dropout = 0.0  # on the embeddings and both branches of every block
    model.dtype = (
        'float32'  # of activations, or 'bfloat16'; parameters, logits and the loss stay float32
    )
    # what the backward pass recomputes: 'none', 'full', 'dots' (all but matrix products)
    model.remat = 'none'
    model.block = 0  # tile of attention in tokens; 0 lets it choose
    model.implementation = ''  # of attention: 'dense', 'blocked', or '' to let it choose

    config.train = train = ConfigDict()
    train.steps = 1000  # optimizer steps
    train.batch = 32  # sequences per step, over all devices and accumulation
    train.length = 256  # tokens per sequence; for tasks other than language the largest task length
    # tasks other than language draw lengths from min_length .. length; a task may need more than 1
    train.min_length = 1
    # tokens that are read at a time, with a memory of those before (Transformer-XL); 0 reads all at
    # once
    train.segment = 0
    train.memory = 0  # tokens that this memory holds; no gradient passes through it
    # what is trained: 'all', 'adapters' (and the encodings), or 'encodings'; the rest stays as it
    # is
    train.tune = 'all'
    train.lr = 1e-3  # peak learning rate of AdamW
    train.warmup = 100  # steps of linear warm-up from 0
    train.end_lr_fraction = 0.05  # the cosine falls to this fraction of the peak
    train.weight_decay = (
        0.1  # on matrices of the model; not on norms, biases or anything inside an encoding
    )
    train.b1 = 0.9  # decay of the mean of the gradient
    train.b2 = 0.98  # decay of the mean of its square
    train.clip = 1.0  # largest global norm of the gradient; 0 turns clipping off
    # parts a batch is cut into, one after the other, to save memory; the gradient is the same
    train.accumulate = 1
    train.z_loss = 0.0  # weight of the squared log-partition of the logits
    train.log_every = 10  # steps between lines of metrics.jsonl
    train.eval_every = 200  # steps between validations; 0 for none
    train.eval_batches = 8  # batches of a validation, always the same ones
    train.save_every = 200  # steps between checkpoints; there is always one at the end
    train.keep = 3  # how many checkpoints are kept, and one more from a save to the next

    config.mesh = mesh = ConfigDict()  # devices of all processes, as a product of
    mesh.data = (
        -1
    )  # copies of the parameters, each with its rows of the batch; -1 takes what is left
    mesh.fsdp = 1  # rows of the batch again, with parameters and optimizer cut along the width
    mesh.tensor = 1  # heads and hidden units
    mesh.sequence = 1  # queries
    # without an accelerator: devices the CPU counts as; 0 is a core each, if that divides the batch
    mesh.cpu_devices = 0

    config.cluster = cluster = ConfigDict()  # of several processes, in seconds
    cluster.start_timeout = 300  # how long they wait for each other at the start
    # after which one that is not heard of counts as gone; one that was killed is noticed at once.
    # 0: no
    cluster.peer_timeout = 60
    # watching, so that JAX alone notices, after a minute or more, and aborts with a page of stack

    config.eval = eval_ = ConfigDict()
    eval_.at_end = True  # evaluate when training has ended
    eval_.lengths = ()  # lengths to evaluate at; () is 1, 2, 4 and 8 times train.length
    eval_.protocols = (
        'nonoverlapping',
        'sliding',
        'same_tokens',
        'per_position',
    )  # of language tasks
    eval_.split = 'test'  # 'train', 'validation' or 'test'
    eval_.tokens = 32768  # how many tokens are scored at most, per protocol and length
    eval_.batch = 8  # sequences at a time at train.length, fewer at longer lengths
    eval_.stride = 64  # step of the sliding window, and tokens scored by 'same_tokens'
    eval_.buckets = 8  # of 'per_position'
    eval_.samples = 256  # examples per length and depth, for tasks other than language
    # of tasks with a depth: 0 (first) .. 1 (last), each at every length; () is the task's own draw
    eval_.depths = ()
    eval_.positions = (
        'first'  # of random positions: 'sampled' as in training; 'first' is the encoding's own rule
    )

    return config.lock()
