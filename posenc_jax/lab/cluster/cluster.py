"""Several processes of one program: how they find each other, start together and end together."""

import contextlib
import dataclasses
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from posenc_jax.base.programs import WRONG_INPUT, program
from posenc_jax.lab.cluster.peers import FAILED, ClusterError, Peers
from posenc_jax.lab.config import defaults
from posenc_jax.lab.files import checkpoint_files
from posenc_jax.lab.files.command import in_line
from posenc_jax.protocol.errors import quoted

# Environment variables in which schedulers give the number of processes.
CLUSTER_VARIABLES = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train or evaluate together.

    Attributes:
      coordinator: 'HOST:PORT' of process 0. With 'auto' JAX finds the coordinator, the number of
        processes and the number of this process (TPU pods, Slurm, Open MPI).
      processes: how many there are.
      process_id: the number of this process, 0 .. processes - 1.
    """

    coordinator: str
    processes: int = 0
    process_id: int = -1

    @contextlib.contextmanager
    def joined(
        self, timeouts: ConfigDict, directory: pathlib.Path | None
    ) -> Iterator[Peers | None]:
        """Connects the processes, each of which then watches the others. The context must be
        entered before any device is used.

        If a process is gone or ends with an error, all others end with one line and status 1. With
        `peer_timeout` 0 there are no watchers, and None is yielded: JAX alone notices, later, and
        prints a long stack trace.

        Args:
          timeouts: `config.cluster`.
          directory: the run directory, whose newest checkpoint the line names; None where nothing
            is trained.

        Raises:
          ValueError: the flags do not fit together, or differ from those of other processes.
          ClusterError: a process did not start in time.
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
                # JAX acts only if the watchers have failed.
                heartbeat_timeout_seconds=100 + 2 * timeouts.peer_timeout,
            )  # fmt: skip
            yield peers
            peers.leave(jax.distributed.shutdown)

    def _resolved(self, timeout: int) -> tuple[str, int, int, Sequence[int] | None]:
        """Coordinator, number of processes, number of this process, and its devices (None: all)."""
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
        return self.coordinator, self.processes, self.process_id, None


def _host_and_port(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f'coordinator must be HOST:PORT or auto, got {quoted(coordinator)}')
    return host.strip('[]'), int(port)


def cluster_of(coordinator: str, processes: int | None, process_id: int | None) -> Cluster | None:
    """The cluster that the flags of a program describe; None where they describe one process.

    Args:
      coordinator, processes, process_id: see `Cluster`; '' and None where a flag is not given.

    Raises:
      ValueError: the flags do not fit together.

    Example:
      >>> cluster_of('', 1, 0), cluster_of('host:1234', 2, 1)
      (None, Cluster(coordinator='host:1234', processes=2, process_id=1))
    """
    if coordinator == 'auto':
        if processes is not None or process_id is not None:
            raise ValueError(
                '--coordinator=auto finds the processes itself; leave out --processes and '
                '--process_id'
            )
        return Cluster(coordinator)
    count = 1 if processes is None else processes
    if count < 1:
        raise ValueError(f'--processes must be at least 1, got {count}')
    if not coordinator:
        given = f'--processes={count}' if count > 1 else f'--process_id={process_id}'
        if count > 1 or process_id:
            raise ValueError(
                f'{given} needs the address of process 0; give --coordinator=HOST:PORT '
                '--processes=N --process_id=I, or none of them for one process'
            )
        return None
    number = 0 if process_id is None and count == 1 else process_id
    if number is None or not 0 <= number < count:
        raise ValueError(
            f'process_id must lie in 0 .. processes - 1, got {number} of {count}; give --process_id'
        )
    return Cluster(coordinator, count, number)


def find_cluster(coordinator: str, processes: int | None, process_id: int | None) -> Cluster | None:
    """The cluster that the flags or the variables of a scheduler describe; None for one process.

    Args, Raises: as for `cluster_of`; also ValueError for a variable of a scheduler that is not a
    number.
    """
    if cluster := cluster_of(coordinator, processes, process_id):
        return cluster
    scheduled = _scheduled(CLUSTER_VARIABLES)
    return (
        Cluster('auto') if scheduled or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') else None
    )


def _scheduled(variables: Sequence[str]) -> dict[str, int]:
    """Those of the variables of schedulers that say that there are several processes."""
    sizes = {name: os.environ.get(name, '1') for name in variables}
    for name, size in sizes.items():
        if not size.isdecimal():
            raise ValueError(
                f'the variable {name} is {size!r}, expected how many processes there are; unset '
                'it for one'
            )
    return {name: int(size) for name, size in sizes.items() if int(size) > 1}


def leave(status: int) -> int:
    """Ends this process at once if it is one of several. It does not wait for the others, as JAX
    would: they have been told of its error. Nor does it wait for threads of a save that failed,
    which try for minutes to reach a bucket. Otherwise returns the status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() or checkpoint_files.writers():
        os._exit(status)
    return status


# What ends a program with one line.
ERRORS = ValueError, OSError, ImportError, ClusterError


def failed(name: str, error: BaseException) -> int:
    """Prints one of `ERRORS` in the name of a program. Returns its exit status, or ends this
    process as `leave` does.
    """
    print(f'{program(name)}: {in_line(error)}', file=sys.stderr)
    return leave(FAILED if isinstance(error, ClusterError) else WRONG_INPUT)


@contextlib.contextmanager
def together(coordinator: str, processes: int | None, process_id: int | None) -> Iterator[bool]:
    """Joins the processes that evaluate together, or does nothing if there is only this one. Yields
    whether this is process 0. What the others print in the context is dropped.

    Args:
      coordinator, processes, process_id: see `posenc_jax.lab.files.command.processes_of`.

    Raises:
      ValueError, ClusterError: as for `cluster_of` and `Cluster.joined`.
    """
    cluster = cluster_of(coordinator, processes, process_id)
    if cluster is None:
        # SLURM_NTASKS is also set where a batch script starts one process.
        for name, count in _scheduled(('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')).items():
            raise ValueError(
                f'this is one of {count} processes ({name}); give --coordinator=auto, so that they '
                'work together, or start one'
            )
        yield True
        return
    with contextlib.ExitStack() as until_done:
        until_done.enter_context(cluster.joined(defaults.get_config().cluster, None))
        if jax.process_index():
            until_done.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield jax.process_index() == 0
