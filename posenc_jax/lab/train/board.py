"""TensorBoard scalars, written by the thread that calls `Board.write`, so that this thread gets the
error of a full disk.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from posenc_jax.lab.files import disk


class Board:
    """An event file of TensorBoard in a folder.

    tensorboardX has a SummaryWriter, which writes from a thread of its own. When that thread meets
    a full disk it ends, and the next call of the writer waits for ever. So this class writes the
    file itself.

    Args:
      directory: the folder; it is made if it does not exist.
      step: the step from which the run continues. TensorBoard ignores what other files in the
        folder hold of later steps.

    Raises:
      DiskFullError: the disk is full; also from `write`.
    """

    def __init__(self, directory: pathlib.Path, step: int):
        from tensorboardX.proto import event_pb2

        disk.make_folder(directory)
        self._event = event_pb2.Event
        self._file = disk.appended(
            directory / f'events.out.tfevents.{time.time():.3f}.{socket.gethostname()}'
        )
        self._add(file_version='brain.Event:2')
        self._add(
            step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of a step, by name."""
        from tensorboardX.proto.summary_pb2 import Summary

        for name, value in values.items():
            self._add(
                step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])
            )

    def _add(self, **fields) -> None:
        """Writes one record: its length, a checksum, the event, a checksum."""
        from tensorboardX.record_writer import masked_crc32c

        event = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack('<Q', len(event))
        sums = [struct.pack('<I', masked_crc32c(part)) for part in (length, event)]
        self._file.write(length + sums[0] + event + sums[1])

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
