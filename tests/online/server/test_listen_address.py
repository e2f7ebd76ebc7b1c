"""An address is one server's alone, whoever else wants it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from recsys_batch.errors import UsageError
from recsys_batch.online.server import listen_address
from recsys_batch.online.server.listen_address import reserve_address, resolve_host


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_address, "_WAIT_SECONDS", 0.0)


@contextlib.contextmanager
def listening(host: str, port: int, *options: int) -> Iterator[socket.socket]:
    """A program that listens, with these options of its socket."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        for option in options:
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((host, port))
        listener.listen()
        yield listener


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_second_server_does_not_get_the_address_even_before_anybody_listens(host: str, find_port: Any) -> None:
    port = find_port()
    refused = pytest.raises(UsageError, match=r"is in use.*choose another --port")
    with reserve_address("127.0.0.1", port, "--port"), refused, reserve_address(host, port, "--port"):
        pytest.fail("had twice")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("option", [socket.SO_REUSEPORT, socket.SO_REUSEADDR], ids=["reuseport", "reuseaddr"])
def test_whoever_listens_on_the_port_keeps_it_and_is_named(host: str, option: int, find_port: Any) -> None:
    port = find_port()
    refused = pytest.raises(UsageError, match=rf"in use by process {os.getpid()} \(.+\), which process {os.getppid()} started")
    with listening(host, port, option), refused, reserve_address("127.0.0.1", port, "--port"):
        pytest.fail("had twice")


def test_no_other_program_gets_the_port_meanwhile_and_anybody_does_afterwards(find_port: Any) -> None:
    port = find_port()
    refused = pytest.raises(OSError, match="in use")
    with reserve_address("127.0.0.1", port, "--port"), refused, listening("127.0.0.1", port, socket.SO_REUSEADDR):
        pytest.fail("had twice")
    with reserve_address("127.0.0.1", port, "--port"), listening("127.0.0.1", port, socket.SO_REUSEPORT):
        pass


def test_workers_share_the_port_and_get_every_connection(find_port: Any) -> None:
    port = find_port()
    with (
        reserve_address("127.0.0.1", port, "--port"),
        listening("127.0.0.1", port, socket.SO_REUSEPORT) as one,
        listening("127.0.0.1", port, socket.SO_REUSEPORT) as two,
    ):
        one.setblocking(False)
        two.setblocking(False)
        n_accepted = 0
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", port), 5):
                for listener in (one, two):
                    with contextlib.suppress(BlockingIOError):
                        listener.accept()[0].close()
                        n_accepted += 1
        assert n_accepted == 30


def test_connections_that_a_server_closed_do_not_keep_its_port(find_port: Any) -> None:
    port = find_port()
    with (
        reserve_address("127.0.0.1", port, "--port"),
        listening("127.0.0.1", port, socket.SO_REUSEADDR, socket.SO_REUSEPORT) as worker,  # as workers and gRPC do
        socket.create_connection(("127.0.0.1", port), 5) as client,
    ):
        worker.accept()[0].close()  # first, so that its side is the one that waits
        assert client.recv(1) == b""
    with reserve_address("127.0.0.1", port, "--port"):
        pass


def test_an_address_of_another_machine_is_refused(find_port: Any) -> None:
    with pytest.raises(UsageError, match="has to be an address of this machine"), reserve_address("192.0.2.1", find_port(), "--port"):
        pytest.fail("had")


def test_a_host_name_is_looked_up_and_one_that_there_is_not_is_refused() -> None:
    assert (resolve_host("localhost"), resolve_host("::1"), resolve_host("0.0.0.0")) == ("127.0.0.1", "::1", "0.0.0.0")
    for host in ("nowhere.invalid", "a..b", "1.2.3.4.5"):
        with pytest.raises(UsageError, match="is no address of this machine"):
            resolve_host(host)
