"""An S3 server for tests, on loopback: moto's. In a process of its own, as deltalake waits for answers with the interpreter's lock held."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 30.0


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """What the environment of its clients has to have, while it runs. Everything in it goes with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_plain_environment())
    try:
        _wait(process, port)
        yield {
            "AWS_ACCESS_KEY_ID": "for-tests",
            "AWS_SECRET_ACCESS_KEY": "for-tests",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the S3 server did not start: is moto[server] installed (pip install '.[dev]')?") from None
            time.sleep(0.05)
