"""Which processes train together, how they meet, and how they part."""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from posenc_jax.training.peers import Peers

# Variables by which schedulers tell a process how many there are.
CLUSTER_VARIABLES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train together.

    Attributes:
      coordinator: 'HOST:PORT' of process 0, or 'auto' to let JAX find all three (TPU pods, Slurm,
        Open MPI).
      processes, process_id: how many there are, and which one this is.
    """

    coordinator: str
    processes: int = 0
    process_id: int = -1

    @contextlib.contextmanager
    def joined(self, timeouts: ConfigDict, directory: pathlib.Path) -> Iterator[Peers | None]:
        """The processes together, each watching the others; must come before any device is touched.

        A process that is gone, or ends with an error, ends all others with one line and status 1.
        With a `peer_timeout` of 0 there are no watchers: JAX alone notices, later and with a page
        of stack.

        Args:
          timeouts: `config.cluster`.
          directory: of the run, whose newest checkpoint is told.

        Raises:
          ValueError: flags that do not fit together, or to the other processes.
          ClusterError: processes that never came.
        """
        coordinator, processes, process_id, devices = self._resolved(timeouts.start_timeout)
        if not timeouts.peer_timeout:
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                devices,
                initialization_timeout=timeouts.start_timeout,
            )
            yield None
            return
        peers = Peers(
            _host_and_port(coordinator), processes, process_id, start=timeouts.start_timeout,
            silence=timeouts.peer_timeout,
            directory=directory,
        )  # fmt: skip
        service = peers.meet()
        with peers.telling():
            jax.distributed.initialize(
                service, processes, process_id, devices, coordinator_bind_address=service,
                initialization_timeout=timeouts.start_timeout,
                heartbeat_timeout_seconds=100 + 2 * timeouts.peer_timeout,  # only where ours fails
            )  # fmt: skip
            yield peers
            peers.leave(jax.distributed.shutdown)

    def _resolved(self, timeout: int) -> tuple[str, int, int, Sequence[int] | None]:
        """Coordinator, processes, process and the devices that are its own; None for all."""
        if self.coordinator == 'auto':
            from jax._src.clusters import ClusterEnv

            found = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, timeout
            )
            if None in found[:3]:
                raise ValueError(
                    'coordinator is auto, and JAX finds no cluster here; give HOST:PORT of '
                    'process 0'
                )
            return found
        if not 0 <= self.process_id < self.processes:
            raise ValueError(
                f'process_id must lie in 0 .. processes - 1, got {self.process_id} of '
                f'{self.processes}'
            )
        return self.coordinator, self.processes, self.process_id, None


def _host_and_port(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f'coordinator is HOST:PORT or auto, got {coordinator!r}')
    return host.strip('[]'), int(port)


def find_cluster(coordinator: str, processes: int, process_id: int) -> Cluster | None:
    """The cluster that flags or a scheduler's variables describe; None for a single process.

    Raises:
      ValueError: a variable that is no number.
    """
    if coordinator or processes > 1:
        return Cluster(coordinator, processes, process_id)
    sizes = {name: os.environ.get(name, '1') for name in CLUSTER_VARIABLES}
    for name, size in sizes.items():
        if not size.isdecimal():
            raise ValueError(
                f'the variable {name} is {size!r}, expected how many processes there are; unset '
                'it for one'
            )
    scheduled = any(int(size) > 1 for size in sizes.values())
    return (
        Cluster('auto') if scheduled or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') else None
    )


def leave(status: int) -> None:
    """Ends this process; in a cluster without waiting for the others, as JAX would do, who know of
    its error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
