"""The command line of a program that reads runs."""

import argparse
from collections.abc import Sequence

from posenc_jax.lab.config.overrides import read_overrides
from posenc_jax.lab.files.command import Parser, processes_of

Processes = tuple[str, int | None, int | None]  # the arguments of `cluster.together`


class RunParser(Parser):
    """A `Parser` with the arguments that programs which read runs share: modules of one's own,
    several processes that work together, and `--config.NAME=VALUE`, which changes a field.
    """

    def read(
        self, argv: Sequence[str] | None
    ) -> tuple[argparse.Namespace, Processes, dict[str, str]]:
        """The arguments, the processes, and dotted names -> texts of the fields that are changed.
        A wrong argument ends the program with one line.
        """
        self.add_imports(of_runs=True)
        self.add_processes()
        known, rest = self.parse_known_args(argv)
        try:
            return known, processes_of(known), read_overrides(rest, self.near)
        except ValueError as error:
            self.error(str(error))
