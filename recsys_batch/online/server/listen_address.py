"""Addresses that a server listens on: found by name, and had by one server alone."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from recsys_batch.errors import UsageError

_WAIT_SECONDS = 2.0
"""For the workers of a server that was killed a moment ago: they end by themselves."""
_LISTENING = "0A"


def resolve_host(host: str) -> str:
    """Look up the IP address of a host name, of version 4 if it has one. Raises UsageError: it has none."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host!r} is no address of this machine ({error}): name an IP address, 127.0.0.1 say") from None
    addresses = [str(address[0]) for *_, address in sorted(found, key=lambda entry: entry[0] != socket.AF_INET)]
    return addresses[0]


@contextlib.contextmanager
def reserve_address(host: str, port: int, option: str) -> Iterator[None]:
    """Have an address for the ``with`` block, for this process and those that it starts.

    Workers listen with SO_REUSEPORT, with which a second server would just take a share of the requests. So this process binds first,
    without: that fails where anybody has the port. Listening and shutting down makes the binding strict, it gets no connection from there
    on, and with SO_REUSEPORT set then workers of the same user may join. It ends with the process, however that ends.

    Args:
        host: IP address.
        option: that the port comes from, for the message.

    Raises:
        UsageError: somebody else has it, or it cannot be had.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections that are only waited out
        try:
            _bind_alone(holder, host, port)
        except OSError as error:
            raise UsageError(_why_not(host, port, option, error)) from None
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield


def _bind_alone(holder: socket.socket, host: str, port: int) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            holder.bind((host, port))
            holder.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            break
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    holder.shutdown(socket.SHUT_RD)


def _why_not(host: str, port: int, option: str, error: OSError) -> str:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, PermissionError):
        return f"{address} needs rights that this user lacks, as ports below 1024 do: choose another {option}"
    if error.errno == errno.EADDRINUSE:
        holder = find_listener(port)
        return f"{address} is in use{f' by {holder}' if holder else ''}: end that first, or choose another {option}"
    return f"{address} cannot be listened on ({error.strerror}): host has to be an address of this machine"


def find_listener(port: int) -> str | None:
    """Name the process that listens on a port in words; None where it is another user's, or nobody does."""
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(Path("/proc/net") / table, port)}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for handle in (process / "fd").iterdir():
                if os.readlink(handle) in inodes:
                    return _in_words(process)
    return None


def _in_words(process: Path) -> str:
    name = (process / "comm").read_text().strip()
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return f"process {process.name} ({name}), which process {parent} started"


def _listening_inodes(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port]
