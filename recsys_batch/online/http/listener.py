"""The socket of a worker: takes connections, and ends them with their answers. Made by server/worker.py."""

import asyncio
import socket
import ssl

from recsys_batch.online.http.app import App
from recsys_batch.online.http.connection import HttpConnection
from recsys_batch.online.http.connection_bounds import ConnectionBounds

_BACKLOG = 2048
_ENDING_LOOK_SECONDS = 0.02


class HttpListener:
    """Listens for HTTP/1.1 in one event loop.

    Args:
        seconds: that heads, bodies and reading clients may take.
        max_connections: open at a time; past it the one that has been silent for longest gives way.
        tls: for https; None for http.
    """

    def __init__(self, app: App, *, seconds: float, max_connections: int, tls: ssl.SSLContext | None = None) -> None:
        self._app, self._tls = app, tls
        self._bounds = ConnectionBounds(seconds, max_connections)
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> None:
        """Listen on an address that ``reserve_address`` has reserved; other workers share it."""
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        handshake = self._bounds.seconds if self._tls is not None else None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(self._app, self._bounds),
            sock=listening,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=handshake,
        )

    async def close(self, grace_seconds: float) -> None:
        """Take no more connections, and have the requests that are here answered, within a time."""
        if self._server is not None:
            self._server.close()
        self._bounds.is_ending = True
        for connection in list(self._bounds.connections):
            connection.end()
        until = asyncio.get_running_loop().time() + grace_seconds
        while self._bounds.connections and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_ENDING_LOOK_SECONDS)
