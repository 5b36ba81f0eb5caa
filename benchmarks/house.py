"""How large the code is, and how far a reader walks in it.

    PYTHONPATH=. python benchmarks/house.py

It prints lines of Python, the files of methods, the largest folder without subfolders, long files,
the functions of the package between a call and the bias of a tile, what an encoding may do and
state, what `import posenc_jax` loads, and what a training of two steps with its evaluation repeats.
A file of a method is one that registers something that is no task. Its code is what is neither
import, Card, docstring, comment nor blank line. Every figure is computed from the files of the
working directory. docs/testing.md compares the figures with those before the redesign.
"""

import ast
import collections
import contextlib
import dataclasses
import importlib
import io
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax.numpy as jnp
from flax import nnx

import posenc_jax as pj

ROOT = pathlib.Path.cwd()
LONG = 300  # lines
PACKAGE = str(pathlib.Path(pj.__file__).parent)


def files(*folders: str) -> list[pathlib.Path]:
    return [
        path for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))
        if '__pycache__' not in path.parts
    ]  # fmt: skip


def lines(path: pathlib.Path) -> int:
    return len(path.read_text(encoding='utf-8').splitlines())


def code(path: pathlib.Path) -> int:
    """The lines of a file that are its method."""
    text = path.read_text(encoding='utf-8')
    rows, taken = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            taken |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for decorator in getattr(node, 'decorator_list', ()):
                if ast.unparse(decorator).startswith('register('):
                    taken |= set(range(decorator.lineno, decorator.end_lineno + 1))
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                taken |= set(range(first.lineno, first.end_lineno + 1))
    kept = (row.strip() for number, row in enumerate(rows, 1) if number not in taken)
    return sum(bool(row) and not row.startswith('#') for row in kept)


def of_methods() -> list[pathlib.Path]:
    found = files('posenc_jax')
    return [
        path for path in found
        if "@register(" in (text := path.read_text(encoding='utf-8')) and "kind='task'" not in text
    ]  # fmt: skip


def frames(call) -> int:
    """The functions of the package on the stack where `alibi_bias` is first called."""
    found: list[int] = []

    def look(frame, event, _):
        if event == 'call' and frame.f_code.co_name == 'alibi_bias' and not found:
            count = 0
            while frame is not None:
                count += frame.f_code.co_filename.startswith(PACKAGE)
                frame = frame.f_back
            found.append(count)

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found[0]


def walks() -> dict[str, int]:
    """Functions from a call to the bias: attention, a layer, a model, a decoding step."""
    lab = 'posenc_jax.lab' if (ROOT / 'posenc_jax' / 'lab').is_dir() else 'posenc_jax'
    decode = importlib.import_module(f'{lab}.decoding.decode')
    models = importlib.import_module(f'{lab}.model')
    tok, q = pj.Tokens.of(length=4), jnp.ones((1, 4, 2, 8))
    encoding = pj.make('alibi()', heads=2)
    layer = pj.Attention('alibi()', 8, 2, rngs=nnx.Rngs(0))
    cfg = models.TransformerConfig(
        vocab_size=7, train_len=8, layers=1, width=8, heads=2, encoding='alibi()'
    )
    model = models.Transformer(cfg, rngs=nnx.Rngs(0))
    cache = decode.prefill(
        model, decode.init_cache(model, pj.Tokens.of(length=8)), jnp.array([[1, 2]])
    )[1]
    return {
        'attend': frames(lambda: pj.attend(encoding, q, q, q, tok, tok)),
        'layer': frames(lambda: layer(jnp.ones((1, 4, 8)))),
        'model': frames(lambda: model(jnp.array([[1, 2, 3]]))),
        'decode step': frames(lambda: decode.decode_step(model, cache, jnp.array([1]))),
    }


def vocabulary() -> dict[str, int]:
    """What an encoding may do and state: doors, capabilities, traits, promises."""
    of = lambda name: importlib.import_module(f'posenc_jax.protocol.{name}')
    capable = vars(of('capabilities')).values()
    own = [c for c in capable if isinstance(c, type) and c.__module__.endswith('capabilities')]
    return {
        'doors': len(of('encoding').DOORS),
        'capabilities': len(own),
        'traits': len(of('encoding').TRAITS),
        'promises': len(dataclasses.fields(of('card').Promises)),
    }


def imported() -> tuple[int, float]:
    """The modules of the package that its import loads, and its seconds beside those of JAX and
    Flax, in a fresh process.
    """
    program = (
        'import sys, time, jax, flax.nnx; begun = time.perf_counter(); import posenc_jax; '
        'print(sum(m.split(".")[0] == "posenc_jax" for m in sys.modules), '
        'time.perf_counter() - begun)'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, seconds = done.stdout.split()
    return int(count), float(seconds)


# What is counted in a run -> the file of the package and the name of its function.
COUNTED = {
    'parses of a spec string': ('language/spec.py', 'parse'),
    'builds of the model': ('lab/model/transformer.py', '__init__'),
    'traces of the model': ('lab/model/transformer.py', 'hidden'),
}


def of_a_run() -> dict[str, int]:
    """What a training of two steps, which evaluates one length at its end, calls: the functions of
    `COUNTED`, the functions that check something, and the calls of these.
    """
    defaults = importlib.import_module('posenc_jax.lab.config.defaults')
    train = importlib.import_module('posenc_jax.lab.train.loop').train
    config = defaults.get_config()
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(steps=2, batch=8, length=16, warmup=0)
    config.eval.update(lengths=(16,), tokens=64, stride=16, protocols=('nonoverlapping',))
    calls = collections.Counter()

    def look(frame, event, _):
        file = frame.f_code.co_filename
        if event == 'call' and file.startswith(PACKAGE):
            calls[file[len(PACKAGE) + 1 :], frame.f_code.co_name] += 1

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config.workdir = folder
        sys.setprofile(look)
        try:
            train(config)
        finally:
            sys.setprofile(None)
    checks = {place: count for place, count in calls.items() if 'check' in place[1]}
    return {name: calls[place] for name, place in COUNTED.items()} | {
        'functions that check': len(checks),
        'their calls': sum(checks.values()),
    }


def main() -> None:
    python = lambda *folders: sum(map(lines, files(*folders)))
    package, tests, around = python('posenc_jax'), python('tests'), python('configs', 'evidence')
    everything = files('.')
    print(f'lines of Python: {sum(map(lines, everything))}; package {package}; tests {tests}; '
          f'configs and evidence {around}')  # fmt: skip
    methods = of_methods()
    sizes, codes = [*map(lines, methods)], [*map(code, methods)]
    print(f'files of methods: {len(methods)}, median {statistics.median(sizes):g} lines, '
          f'share of code {sum(codes) / sum(sizes):.0%}')  # fmt: skip
    flat = collections.Counter(path.parent for path in files('posenc_jax'))
    for folder, count in flat.most_common(4):
        print(f'folder {folder.relative_to(ROOT)}: {count} files')
    long = [path for path in files('posenc_jax') if lines(path) > LONG]
    print(f'files of the package with more than {LONG} lines: {len(long)}')
    print('functions to the bias: ' + ', '.join(f'{k} {v}' for k, v in walks().items()))
    print('an encoding: ' + ', '.join(f'{name} {count}' for name, count in vocabulary().items()))
    count, seconds = imported()
    print(f'import posenc_jax: {count} modules, {seconds:.2f} s beside JAX and Flax')
    print('a run of two steps: ' + ', '.join(f'{k} {v}' for k, v in of_a_run().items()))


if __name__ == '__main__':
    main()
