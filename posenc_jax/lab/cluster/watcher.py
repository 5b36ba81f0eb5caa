"""The watcher of a process that trains together with others: a script that `peers.py` starts. It
imports the standard library alone.

The watcher of process 0 listens at the address of the coordinator. Every other watcher keeps a
connection to it, over which both repeat that their processes run. JAX has a service of its own in
process 0, which here accepts connections from the same machine only. What JAX in other processes
sends to the service goes through the watchers, in a tunnel. The near end of the tunnel stays open
when process 0 is gone; otherwise JAX would abort before our message is written.

A watcher writes to its process on standard output: first 'met ADDRESS', 'refused WHY' or 'alone
WHY', later 'left' or 'end'. The process writes 'leaving', 'bye' and 'failed WHY' to the standard
input of the watcher.
"""

import contextlib
import errno
import json
import os
import pathlib
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

_HELLO = 'posenc_jax'
_LONGEST = 2000  # bytes of a line between watchers


class _NeverCameError(RuntimeError):
    """Processes that should work together did not connect. `Peers.meet` raises `ClusterError`."""


class _Watcher:
    """The connections of a watcher, and what it does when a process is gone.

    Args:
      address, count, own, start, silence, directory: `address`, `processes`, `process_id`, `start`,
        `silence` and `directory` of `Peers`.
      program: name of the program, with which the message that ends the process begins.
      process: id (of the operating system) of the process that is watched over.
      grace: seconds in which the process may itself raise the error that another has reported.
    """

    def __init__(self, address, count, own, start, silence, directory, program, process, grace):
        from paths import path  # in lab/files/, see the end of this file
        from saved_steps import continues

        self._address, self._count, self._own, self._start, self._silence = (
            tuple(address),
            count,
            own,
            start,
            silence,
        )
        again = 'started again in every process'
        self._next = lambda: (
            continues(path(directory), again)
            if directory
            else f'{again}, the same command repeats what is not saved'
        )
        self._program, self._process, self._grace = program, process, grace
        # In process 0 the connections to all others; in these the connection to process 0.
        self._others: dict[int, socket.socket] = {}
        self._left: set[int] = set()  # numbers of the processes that said 'bye'
        self._leaving = threading.Event()
        self._change = threading.Condition()
        # Taken for good by the first reason to end the process, so that no other one is reported.
        self._ending = threading.Lock()
        self._met, self._cause, self._service = False, '', 0

    def run(self) -> None:
        try:
            print('met', self._meet(), flush=True)
        except (ValueError, _NeverCameError) as error:
            print('refused' if isinstance(error, ValueError) else 'alone', error, flush=True)
            return
        for line in sys.stdin:
            what, _, text = line.strip().partition(' ')
            if what == 'leaving':
                self._leaving.set()
            if what == 'bye':
                self._bye()
                return
            if what == 'failed':
                self._ending.acquire()
                self._leaving.set()
                self._say('failed', f'process {self._own} of {self._count} ended with {text}')
                _thread(self._last, text)
        os._exit(0)  # the process has ended without 'bye'; the others notice the closed connection

    def _bye(self) -> None:
        self._say('bye')
        if not self._own:
            with self._change:
                self._change.wait_for(lambda: self._left >= self._others.keys(), self._silence)
        self._ending.acquire()
        print('left', flush=True)

    def _last(self, text: str) -> None:
        """Ends a process that has failed but does not end, as it may be waiting for the others."""
        time.sleep(self._silence)
        self._quit(text)

    # Meeting.

    def _meet(self) -> str:
        deadline = time.monotonic() + self._start
        if self._own:
            self._others[0] = self._join(deadline)
            _thread(self._tunnel, listener := socket.create_server(('127.0.0.1', 0)))
            self._service = listener.getsockname()[1]
        else:
            _thread(self._accept, self._listen())
            self._gather(deadline)
        for number, connection in self._others.items():
            connection.settimeout(self._silence)
            _thread(self._hear, number, connection)
        _thread(self._beat)
        return f'127.0.0.1:{self._service}'

    def _listen(self) -> socket.socket:
        port = self._address[1]
        both = socket.has_dualstack_ipv6()
        try:
            return socket.create_server(
                ('', port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            )
        except OSError as error:
            raise ValueError(
                f'process 0 cannot listen at port {port} of the coordinator {self._at()} '
                f'({os.strerror(error.errno)}); '
                'choose a free one in --coordinator, for all processes'
            ) from None

    def _gather(self, deadline: float) -> None:
        missing = lambda: sorted(set(range(1, self._count)) - self._others.keys())
        with self._change:
            self._change.wait_for(lambda: not missing(), deadline - time.monotonic())
            if found := missing():
                who = f'process{"es" * (len(found) > 1)} {", ".join(map(str, found))}'
                text = (
                    f'{who} of {self._count} did not connect to {self._at()} within '
                    f'{self._waited()}'
                )
                self._say('ended', text)
                raise _NeverCameError(f'{text}; {self._next()}')
            self._met, self._service = True, _free_port()  # JAX takes the port next
            self._say('go')

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            _thread(self._welcome, connection)

    def _welcome(self, connection: socket.socket) -> None:
        """Answers a new connection, unless it is that of a stranger."""
        with contextlib.suppress(OSError):
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(self._grace)
        hello, what, number, count = [*(_line(connection) or '').split(), '', '', '', ''][:4]
        if hello != _HELLO or not (number.isdecimal() and count.isdecimal()):
            connection.close()
        elif what == 'tunnel':
            near = _connect(('127.0.0.1', self._service), time.monotonic() + self._start)
            _join_ends(connection, near)
        elif int(count) != self._count or not 0 < int(number) < self._count:
            _send(
                connection,
                'refused',
                f'process 0 was started with --processes={self._count}, this one as {number} of '
                f'{count}',
            )
        else:
            with self._change:
                if self._met or _open(self._others.get(int(number))):
                    _send(
                        connection,
                        'refused',
                        f'process {number} is there already; each process needs its own '
                        '--process_id',
                    )
                    return
                self._others[int(number)] = connection
                _send(connection, 'welcome')
                self._change.notify_all()

    def _join(self, deadline: float) -> socket.socket:
        """The connection to process 0. Returns when all processes have connected."""
        connection = answer = None
        try:
            connection = _connect(self._address, deadline)
            _send(connection, _HELLO, f'watch {self._own} {self._count}')
            connection.settimeout(max(deadline - time.monotonic(), 1.0))
            answer = _line(connection)
            if answer == 'welcome':
                # Process 0 may have begun to wait later; it will say who is missing.
                connection.settimeout(self._start + self._grace)
                answer = _line(connection)
        except OSError as error:
            if connection is None:
                raise _NeverCameError(
                    f'the coordinator, process 0 at {self._at()}, could not be reached within '
                    f'{self._waited()} ({error.strerror or error}); '
                    f'{self._next()}'
                ) from None
        what, _, text = (answer or '').partition(' ')
        if what == 'refused':
            raise ValueError(text)
        if what in ('ended', 'failed'):
            raise _NeverCameError(f'{text}; {self._next()}')
        if what != 'go':
            raise _NeverCameError(
                f'process 0 at {self._at()} did not begin within {self._waited()}: it ended, or '
                'something else listens there; '
                f'{self._next()}'
            )
        return connection

    def _at(self) -> str:
        return ':'.join(map(str, self._address))

    def _waited(self) -> str:
        return f'{self._start:g} s (cluster.start_timeout)'

    # Watching.

    def _beat(self) -> None:
        while True:
            time.sleep(min(self._silence / 4, 5.0))
            if _runs(self._process):
                self._say('here')

    def _hear(self, number: int, connection: socket.socket) -> None:
        why = 'its connection closed unexpectedly'
        try:
            while line := _line(connection):
                what, _, text = line.partition(' ')
                if what == 'bye':
                    with self._change:
                        self._left.add(number)
                        self._change.notify_all()
                    return
                if what == 'failed':  # this process may raise and report the same error
                    # The first failure is the one to name; other processes end because of it.
                    self._cause = self._cause or text
                    if not self._own:
                        self._say('failed', text)
                    time.sleep(self._grace)
                if what in ('failed', 'ended'):
                    self._end(text)
        except TimeoutError:
            why = f'nothing was heard of it for {self._silence:g} s (cluster.peer_timeout)'
        except OSError:
            pass
        self._end(
            f'process {number} of {self._count}{"" if number else ", the coordinator,"} is gone: '
            f'{why}'
        )

    def _say(self, what: str, text: str = '') -> None:
        for connection in list(self._others.values()):
            with contextlib.suppress(OSError):  # `_hear` reports that the other end is gone
                _send(connection, what, text)

    def _end(self, text: str) -> None:
        self._ending.acquire()
        text = self._cause or text
        self._say('ended', text)
        self._quit(f'{text}; {self._next()}')

    def _quit(self, text: str) -> None:
        """Ends the process, even if it is waiting inside JAX."""
        with contextlib.suppress(OSError):
            print(f'{self._program}: {text}', file=sys.stderr, flush=True)
            print('end', flush=True)
            time.sleep(self._grace)  # the process may be unable to read 'end'
            os.kill(self._process, signal.SIGKILL)
        os._exit(0)

    # The tunnel.

    def _tunnel(self, listener: socket.socket) -> None:
        """Connects the client of JAX, through process 0, to the service of JAX."""
        while True:
            near, _ = listener.accept()
            with contextlib.suppress(OSError):
                far = _connect(self._address, time.monotonic() + self._start)
                _send(far, _HELLO, f'tunnel {self._own} {self._count}')
                _join_ends(near, far, self._hold)

    def _hold(self) -> None:
        """Waits after process 0 has closed its end of the tunnel. Either all processes are leaving,
        or process 0 is gone, which `_hear` reports.
        """
        self._leaving.wait()
        time.sleep(1.0)


def _join_ends(
    near: socket.socket, far: socket.socket, hold: Callable[[], None] = lambda: None
) -> None:
    """Copies what arrives at either end to the other. When `far` has closed, `near` is closed only
    after `hold` has returned.
    """
    for end in (near, far):
        end.settimeout(None)
    _thread(_pump, near, far, lambda: None)
    _thread(_pump, far, near, hold)


def _pump(source: socket.socket, sink: socket.socket, hold: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
    hold()
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _connect(address: tuple[str, int], deadline: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(
                address, timeout=max(deadline - time.monotonic(), 1.0)
            )
            # Where nobody listens, the port drawn for this end may be that of the address.
            if connection.getsockname() == connection.getpeername():
                connection.close()
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _send(connection: socket.socket, *words: str) -> None:
    connection.sendall((' '.join(words).strip() + '\n').encode())


def _line(connection: socket.socket) -> str | None:
    """The next line, read byte by byte so that nothing after it is read; None at the end."""
    found = b''
    while not found.endswith(b'\n') and len(found) < _LONGEST:
        byte = connection.recv(1)
        if not byte:
            return None
        found += byte
    return found.decode(errors='replace').strip()


def _open(connection: socket.socket | None) -> bool:
    """Whether the other end, which has nothing to send yet, has not closed the connection."""
    return connection is not None and not select.select([connection], [], [], 0)[0]


def _runs(process: int) -> bool:
    """Whether a process is not stopped (by SIGSTOP), where the system shows it. A process that
    waits for ever cannot be distinguished from one that works.
    """
    try:
        state = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return True
    return state not in ('T', 't')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _thread(function: Callable, *arguments) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


if __name__ == '__main__':
    # Only this folder is added to the path: importing the package takes seconds.
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'files'))
    # A watcher ends with its process, which may still save a checkpoint after one of these signals.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _Watcher(**json.loads(sys.argv[1])).run()
