"""A gate in front of a store, through which all connections go: it can stop answering, or break, at once."""

import contextlib
import selectors
import socket
import threading

from tests.training.jobs import free_port

#: What the gate can be, besides "open": connections are accepted and nothing is answered ("silent"); the same, but the
#: store gets and does what it is asked, only its answer is lost ("mute"); connections are refused and open ones end
#: ("refused"); every request is answered by an error of the server ("failing").
STALLED, BROKEN = ("silent", "mute"), ("refused", "failing")
MODES = (*STALLED, *BROKEN, "open")
_FAILING = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Gate:
    """Forwards connections to a port of this machine, in one of the modes.

    ``url`` is where it listens; at ``orders``, a port, a process may send the name of a mode and a line break, and is
    answered "ok" once the mode holds.
    """

    def __init__(self, target: int) -> None:
        self.target, self.port, self.mode, self.turned = target, free_port(), "open", 0
        self.url = f"http://127.0.0.1:{self.port}"
        self.dropped = threading.Event()  # a question or an answer has been lost
        self._lock, self._open = threading.Lock(), set[socket.socket]()
        self._orders = socket.create_server(("127.0.0.1", 0))
        self.orders = self._orders.getsockname()[1]
        self._listen()
        threading.Thread(target=self._take_orders, daemon=True).start()

    def turn(self, mode: str) -> None:
        """From now on the gate is in this mode."""
        assert mode in MODES, mode
        with self._lock:
            before, self.mode = self.mode, mode
            self.turned += mode != "open"
            if mode == "refused" and before != "refused":
                _close(self._listener)
            if before == "refused" and mode != "refused":
                self._listen()
            for one in self._open if mode in BROKEN else ():
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Listen no more."""
        for listener in (self._listener, self._orders):
            _close(listener)

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _take_orders(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line = self._orders.accept()[0]
                with line, line.makefile("r") as words:
                    self.turn(words.readline().strip())
                    line.sendall(b"ok")

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server, client:
            with self._lock:
                self._open |= {client, server}
            try:
                self._between(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _between(self, client: socket.socket, server: socket.socket) -> None:
        deaf = False  # what a stalled store has taken it never answers, even when it is back
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    mode = self.mode
                    if mode == "failing" and key.fileobj is client:
                        client.sendall(_FAILING)
                        return
                    deaf = deaf or mode == "silent" or (mode == "mute" and key.fileobj is server)
                    if deaf:
                        self.dropped.set()
                        continue
                    key.data.sendall(data)


def _close(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    listener.close()
