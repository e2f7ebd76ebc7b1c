"""The processes of a real server: each ends with its parent, comes back where it dies, and follows snapshots whatever it finds."""

import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc
import tritonclient.utils

from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages

TOKEN = "for tests only"


def processes_of(pid: int) -> dict[int, str]:
    """All processes that a process has started, and those that they have, with their command lines."""
    told = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(row[0]), int(row[1]), row[2]) for row in (line.split(maxsplit=2) for line in told.splitlines())]
    found: dict[int, str] = {}
    for _ in range(4):
        found |= {one: command for one, parent, command in rows if parent == pid or parent in found}
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked for its status yet."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def log_of(server: Any) -> str:
    return str((server.snapshots.parent / f"serve-{server.port}.log").read_text())


def metric(server: Any, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.call("GET", "/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
def test_all_processes_end_with_a_server_that_is_killed_and_say_so(
    make: Any, serve: Any, current: Any, wait_for: Any, find_port: Any, tmp_path: Path
) -> None:
    folder, port = make(), find_port()
    current(folder, "first")
    live = ("--set", "online.live=table", "--set", f"paths.warehouse={tmp_path / 'warehouse'}")
    server = serve(folder, "--workers", "2", "--grpc-port", str(port), "--exposures", str(tmp_path / "log"), *live)
    wait_for(lambda: len(server.workers()) == 2, 60)
    assert [server.rank(user)["source"] for user in range(5)] == ["ranker"] * 5

    def modules() -> list[str]:
        found = [re.search(r"grpc_server|live.follower", command) for command in processes_of(server.process.pid).values()]
        return sorted(match[0] for match in found if match is not None)

    wait_for(lambda: modules() == ["grpc_server", "grpc_server", "live.follower"], 60)
    started = processes_of(server.process.pid)
    assert len(started) == 5
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)
    wait_for(lambda: all(is_gone(pid) for pid in started))
    assert log_of(server).count(f"the server, process {server.process.pid}, is gone") == 5
    assert list((tmp_path / "log").glob("exposures-*.segment"))
    again = serve(folder, "--grpc-port", str(port))
    assert again.rank(5)["source"] == "ranker"


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_its_address_to_the_next_at_once(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder)
    (orphan,) = processes_of(server.process.pid)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)
    command = [sys.executable, "-m", "recsys_batch", "serve", "--snapshots", str(folder), "--workers", "1", "--port", str(server.port)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as again:
        wait_for(lambda: is_gone(orphan) and server.call("GET", "/readyz")[0] == 200, 60)
        assert again.poll() is None
        again.send_signal(signal.SIGTERM)
        assert again.wait(20) == 0


def test_a_second_server_on_the_address_is_refused_and_the_first_goes_on(make: Any, serve: Any, current: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder)
    command = [sys.executable, "-m", "recsys_batch", "serve", "--snapshots", str(folder / "other"), "--port", str(server.port)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2 and f"127.0.0.1:{server.port} is in use by process" in ended.stderr
    assert f"which process {server.process.pid} started" in ended.stderr
    assert all(server.rank(user)["snapshot_id"] == "first" for user in range(10))


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_comes_back_and_the_log_says_why(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder)
    for _ in range(3):
        worker = wait_for(server.workers)[0]
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda dead=worker: dead not in server.workers() and server.workers(), 60)
    assert server.rank(5)["source"] == "ranker"
    assert re.search(
        r"worker 1 \(process \d+\) was killed by signal 9 after [\d.]+ s; it is started again in 0.4 s \(3 in a row\)", log_of(server)
    )
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_a_current_that_cannot_be_read_is_counted_and_the_next_one_is_followed(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder = make()
    make("second")
    current(folder, "first")
    server = serve(folder)
    (folder / "CURRENT").write_bytes(b"\xff\xfe\x00")
    failures = 'recsys_loop_failures_total{loop="reading CURRENT"}'
    wait_for(lambda: metric(server, failures) >= 2)
    assert server.rank(5)["snapshot_id"] == "first"
    status, told, _ = server.call("GET", "/readyz")
    assert (status, told["following"]) == (200, "failing")
    requests = metric(server, 'recsys_http_requests_total{route="/v1/rank",status="200"}')
    server.rank(6)
    wait_for(lambda: metric(server, 'recsys_http_requests_total{route="/v1/rank",status="200"}') > requests)
    current(folder, "second")
    wait_for(lambda: server.rank(5)["snapshot_id"] == "second")
    assert server.call("GET", "/readyz")[1]["following"] == "ok"
    assert log_of(server).count("reading CURRENT failed") == 1 and "works again" in log_of(server)


@pytest.mark.slow
def test_a_server_starts_beside_a_current_that_cannot_be_read_and_says_so(make: Any, serve: Any, current: Any, wait_for: Any) -> None:
    folder = make()
    (folder / "CURRENT").write_bytes(b"\xff\xfe\x00")
    server = serve(folder, ready=False)
    status, told, _ = server.call("GET", "/readyz")
    assert (status, told["snapshot_id"]) == (200, "first") and "CURRENT cannot be read" in told["fallback"]
    current(folder, "first")
    wait_for(lambda: server.call("GET", "/readyz")[1]["fallback"] is None)


@pytest.mark.slow
def test_the_metrics_page_shows_a_process_that_stands_still(make: Any, serve: Any, current: Any, wait_for: Any, find_port: Any) -> None:
    folder = make()
    current(folder, "first")
    server = serve(folder, "--grpc-port", str(find_port()), "--set", "online.grpc_workers=1")
    name = 'recsys_follower_last_look_seconds{process="%s"}'
    wait_for(lambda: 0 < metric(server, name % "grpc") < 1 and 0 < metric(server, name % "worker") < 1)
    (standing,) = [pid for pid, command in processes_of(server.process.pid).items() if "grpc_server" in command]
    os.kill(standing, signal.SIGSTOP)
    try:
        wait_for(lambda: metric(server, name % "grpc") > 1.5)
        assert metric(server, name % "worker") < 1
    finally:
        os.kill(standing, signal.SIGCONT)
    wait_for(lambda: metric(server, name % "grpc") < 1)


def infer_status(channel: grpc.Channel, token: str | None) -> grpc.StatusCode:
    """The status of a call that clients' tokens are for."""
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ServerMetadata",
        request_serializer=messages.ServerMetadataRequest.SerializeToString,
        response_deserializer=messages.ServerMetadataResponse.FromString,
    )
    try:
        call(messages.ServerMetadataRequest(), timeout=10, metadata=[("authorization", f"Bearer {token}")] if token else [])
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]
    return grpc.StatusCode.OK


@pytest.fixture
def secure(make: Any, serve: Any, current: Any, find_port: Any, authority: Any, wait_for: Any) -> Callable[..., Any]:
    """Starts a server with a certificate, for HTTP and gRPC."""

    def start(*options: str) -> Any:
        folder, port = make(), find_port()
        current(folder, "first")
        certificate, key = authority.sign("server")
        tls = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--grpc-port", str(port))
        server = serve(folder, *tls, *options, tls=True, RECSYS_BATCH_CLIENT_TOKEN="theirs")
        server.grpc_url, server.url = f"127.0.0.1:{port}", f"https://127.0.0.1:{server.port}"
        return server

    return start


def http_status(server: Any, authority: Any, pair: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if pair is not None:
        context.load_cert_chain(*pair)
    request = urllib.request.Request(f"{server.url}/v2", headers={"authorization": "Bearer theirs"})
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_grpc_has_the_certificate_and_the_tokens_of_http(secure: Any, authority: Any, wait_for: Any) -> None:
    server = secure()
    wait_for(lambda: http_status(server, authority) == 200, 60)
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with grpc.secure_channel(server.grpc_url, credentials) as channel:
        wait_for(lambda: infer_status(channel, "theirs") == grpc.StatusCode.OK, 60)
        assert infer_status(channel, TOKEN) == grpc.StatusCode.OK
        assert infer_status(channel, None) == infer_status(channel, "wrong") == grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(server.grpc_url) as channel:
        assert infer_status(channel, "theirs") == grpc.StatusCode.UNAVAILABLE
    with tritonclient.grpc.InferenceServerClient(server.grpc_url, ssl=True, root_certificates=str(authority.certificate)) as client:
        assert client.is_server_live()


@pytest.mark.slow
def test_with_an_authority_for_clients_only_those_with_its_certificates_get_in(secure: Any, authority: Any, wait_for: Any) -> None:
    server = secure("--tls-client-ca", str(authority.certificate))
    pair = authority.sign("client")
    wait_for(lambda: http_status(server, authority, pair) == 200, 60)
    with pytest.raises(OSError):
        http_status(server, authority)
    root, key, chain = authority.certificate.read_bytes(), pair[1].read_bytes(), pair[0].read_bytes()
    with grpc.secure_channel(server.grpc_url, grpc.ssl_channel_credentials(root, key, chain)) as channel:
        wait_for(lambda: infer_status(channel, "theirs") == grpc.StatusCode.OK, 60)
    with grpc.secure_channel(server.grpc_url, grpc.ssl_channel_credentials(root)) as channel:
        assert infer_status(channel, "theirs") == grpc.StatusCode.UNAVAILABLE
