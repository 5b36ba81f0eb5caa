"""Every field of a run with its default. Configs start from these values and change fields; no
other file sets the default of a field.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # folder of the run within workdir; '' composes a name from the task, the encoding and the seed
    config.name = ''
    # folder that holds the runs, or gs://BUCKET/PATH, see docs/pods.md
    config.workdir = 'runs'
    # parameters, batches, dropout and random positions all derive from it (0 .. 2**32 - 1)
    config.seed = 0

    # Modules that register encodings or tasks of one's own, imported before specs are read: dotted
    # names or paths of Python files, e.g. 'examples/root.py'. The run keeps copies of the files.
    config.imports = ()

    config.encoding = 'rope()'  # spec string, e.g. 'rope() | alibi()'; all of them: docs/catalog.md
    # parameters of the encoding: one set per 'model', per 'layer', or 'auto' as in its paper
    config.share = 'auto'
    # spec strings of encodings or mixers, cycled over the layers, e.g. ('cheems()', 'rope()'); ()
    # means `encoding` in every layer
    config.pattern = ()
    config.cross = 'nope()'  # spec string of cross-attention, in an encoder-decoder
    # spec string of the layers that read the source, in an encoder-decoder; '' means `encoding`
    config.source_encoding = ''
    # spec strings cycled over those layers; () means `source_encoding` in every layer
    config.source_pattern = ()
    config.extend = ''  # a context extension for evaluation alone, e.g. 'yarn(factor=4.0)'
    # A spec string of encoders. Where model.kind is 'field', they are encoders of coordinates, e.g.
    # 'geo_sh()', and '' reads the coordinates themselves. In a task on graphs they are encoders of
    # graphs, e.g. 'lcp() | rwse()', whose features the nodes get.
    config.features = ''
    # where model.kind is 'field': the network, a spec string, e.g. 'spder(width=128, layers=3)'
    config.field = 'siren()'
    config.task = 'language()'  # spec string, e.g. 'addition(ids="coupled", reverse_output=True)'

    config.init = init = ConfigDict()  # where the weights come from
    # A training run, or a public checkpoint (directory or .gguf), that this run continues; '' draws
    # the weights at random. With a source, `model` is taken from it, and so is `encoding` unless
    # the config sets one; a `train_len` in the encoding is then the trained length of the source.
    init.source = ''
    # a context extension to train with, e.g. 'yarn(factor=4.0)'; it is written into `encoding`
    init.extend = ''

    # for tasks that read text; an argument in the spec string of the task takes precedence
    config.data = data = ConfigDict()
    # 'pydoc_topics', 'stdlib_code', 'listings', 'shakespeare', 'text:GLOB', 'documents:GLOB' or
    # 'tfds:NAME'
    data.dataset = 'pydoc_topics'
    # folder of patterns, or of prepared 'tfds:' data sets; '' is the usual place of either
    data.data_dir = ''
    # checkpoint whose tokenizer reads the text; '' uses the tokenizer of the public checkpoint that
    # the run continues, and otherwise reads bytes
    data.tokenizer = ''
    # 'stream' cuts all text as one stream; 'documents' packs documents with segment ids
    data.packing = 'stream'

    config.model = model = ConfigDict()
    # 'decoder' (causal), 'encoder', or 'encoder_decoder' for tasks with a source; 'field' for tasks
    # of points, which reads `features` and `field` and no other field of `model`
    model.kind = 'decoder'
    model.source_layers = 0  # layers that read the source, in an encoder-decoder; 0 means layers
    # where a task predicts the class of a row: of the 'mean' of its tokens, the 'first' or 'last',
    # or of a class 'token' in front of the patches of an image
    model.pool = 'mean'
    # Images: side of a patch in pixels, and whether patches overlap (see PatchInput). A pyramid has
    # stages (layers, width, heads, patch, spec) in `lower`, from the image on; the fields of the
    # model are those of its last stage. 0 and () for all other models.
    model.patch = 0
    model.overlap = False
    model.lower = ()
    model.layers = 6
    model.width = 256  # D, of the residual stream
    model.heads = 8  # N, query heads
    model.kv_heads = 0  # K, key and value heads, a divisor of heads; 0 means heads
    model.head_dim = 0  # H; 0 means width // heads
    # 'gelu' (tanh form), 'gelu_erf', 'swiglu', 'geglu' or, for images, 'mix_ffn'
    model.mlp = 'gelu'
    model.mlp_width = 0  # hidden width; 0 means 4 * width
    model.bias = 'none'  # which projections have biases: 'none', 'qkv', 'all'
    model.norm = 'rmsnorm'  # 'rmsnorm', 'layernorm' or 'layernorm_scale' (without bias)
    model.epsilon = 1e-6  # added to the mean square in the norms
    model.norm_place = 'before'  # where norms stand: 'before' each branch, 'after' it or at 'both'
    # norm of queries and keys: 'none', of every 'head', or over the 'width' of all heads
    model.qk_norm = 'none'
    model.head_norm = False  # a norm of the result of every head of attention
    model.parallel = False  # attention and feed-forward of a block read the same input
    model.tie = False  # whether the output uses the embedding table
    model.output_cap = 0.0  # c of `c tanh(logits / c)` at the output; 0 for none
    # factor of the token vectors at the input; 0 means sqrt(width), which gives them unit variance
    model.embedding_scale = 0.0
    model.embedding_norm = False  # a norm of the token vectors at the input
    # rank of low-rank adapters beside the projections of attention; 0 for none (see train.tune)
    model.lora_rank = 0
    model.lora_alpha = 16.0  # the adapters are scaled by lora_alpha / lora_rank
    model.dropout = 0.0  # probability, on the embeddings and on both branches of every block
    # of activations: 'float32' or 'bfloat16'; parameters, logits and the loss stay float32
    model.dtype = 'float32'
    # of products of float32: 'highest' for float32 itself, 'high', 'default' (TensorFloat-32 on a
    # GPU, bfloat16 on a TPU), or '' for that of JAX (JAX_DEFAULT_MATMUL_PRECISION)
    model.precision = ''
    # what the backward pass recomputes: 'none', 'full', 'dots' (all but products with weights)
    model.remat = 'none'
    model.block = 0  # tile of attention in tokens; 0 lets attention choose
    # of attention: 'dense', 'blocked', 'kernel' (on a GPU or a TPU), 'hopper' (the same with
    # another forward pass, on an H100), 'fused' (a kernel where one can run), or '' to let
    # attention choose
    model.implementation = ''

    config.train = train = ConfigDict()
    train.steps = 1000  # optimizer steps
    train.batch = 32  # sequences (or points) per step, over all devices and accumulated parts
    # tokens per sequence; for tasks other than language the largest task length; for tasks of
    # points the resolution of their grid
    train.length = 256
    # tasks other than language draw lengths from min_length .. length; a task may need more than 1
    train.min_length = 1
    # tokens per segment: segments are read one after the other, with a memory of the tokens before
    # (Transformer-XL); 0 reads the whole sequence at once
    train.segment = 0
    train.memory = 0  # tokens that this memory holds; no gradient passes through it
    # what is trained: 'all', 'adapters' (with the encodings), 'encodings', 'norms', 'embedding', or
    # several of them, such as 'encodings+norms+embedding'; the rest is frozen
    train.tune = 'all'
    train.lr = 1e-3  # peak learning rate of AdamW
    train.warmup = 100  # steps of linear warm-up to the peak
    train.end_lr_fraction = 0.05  # the cosine falls to this fraction of the peak
    # decoupled; on matrices of the model, not on norms, biases or anything inside an encoding
    train.weight_decay = 0.1
    train.b1 = 0.9  # decay of the mean of the gradient
    train.b2 = 0.98  # decay of the mean of its square
    train.clip = 1.0  # largest global norm of the gradient; 0 turns clipping off
    # parts into which a batch is cut, computed one after the other to save memory; the gradient is
    # the same
    train.accumulate = 1
    train.z_loss = 0.0  # weight of the squared log-partition of the logits in the loss
    train.log_every = 10  # steps between lines of metrics.jsonl
    train.eval_every = 200  # steps between validations; 0 for none
    train.eval_batches = 8  # batches of a validation, always the same ones
    train.save_every = 200  # steps between checkpoints; the last step is always saved
    train.keep = 3  # how many checkpoints are kept; between two saves there is one more

    # The mesh: the devices of all processes are data * fsdp * tensor * sequence.
    config.mesh = mesh = ConfigDict()
    # copies of the parameters, each with its rows of the batch; -1 takes the devices that are left
    mesh.data = -1
    mesh.fsdp = 1  # parts of the rows, with parameters and optimizer cut along the width
    mesh.tensor = 1  # parts of the heads and hidden units
    mesh.sequence = 1  # parts of the queries
    # without an accelerator: devices that the CPU counts as; 0 takes the largest number, up to one
    # per core, that divides the batch
    mesh.cpu_devices = 0

    config.cluster = cluster = ConfigDict()  # several processes, with timeouts in seconds
    cluster.start_timeout = 300  # how long the processes wait for each other at the start
    # A process that has been silent for so long counts as gone; one that was killed is noticed at
    # once. With 0 the processes do not watch each other: JAX notices after a minute or more, and
    # aborts with a long stack trace.
    cluster.peer_timeout = 60
    # the exit status of a run that was asked to stop before its end, also of a single process; with
    # one of 3 to 125 a scheduler that restarts failed runs continues it
    cluster.stop_status = 0

    config.eval = eval_ = ConfigDict()
    eval_.at_end = True  # whether the run is evaluated when training has ended
    # lengths to evaluate at; () is 1, 2, 4 and 8 times train.length, for fields 1, 2 and 4 times
    eval_.lengths = ()
    # protocols of language tasks, see lab/config/protocols.py
    eval_.protocols = ('nonoverlapping', 'sliding', 'same_tokens', 'per_position')
    eval_.split = 'test'  # 'train', 'validation' or 'test'
    eval_.tokens = 32768  # the most tokens that are scored, per protocol and length
    eval_.batch = 8  # sequences at a time at train.length, fewer at longer lengths
    # step of the sliding window, at most its length, and tokens that 'same_tokens' scores per
    # window, at most the shortest length
    eval_.stride = 64
    eval_.buckets = 8  # how many buckets of positions 'per_position' reports
    eval_.samples = 256  # examples per length and depth, for tasks other than language
    # for tasks with a depth: depths from 0 (first) to 1 (last), each evaluated at every length; ()
    # leaves the depth to the task
    eval_.depths = ()
    # exact match of answers that the model decodes token by token, for tasks other than language;
    # False takes the first choices of one pass, which are the same for most encodings
    eval_.decode = False
    # random positions are 'sampled' as in training; 'first' is the evaluation rule of the encoding
    eval_.positions = 'first'

    return config.lock()
