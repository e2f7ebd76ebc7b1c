"""A Python worker whose connection Spark closes ends without a word; pyspark's own prints the BrokenPipeError of its last answer."""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize(("module", "printed"), [("pyspark.daemon", "BrokenPipeError"), ("recsys_batch.spark.executors.daemon", None)])
def test_a_worker_between_tasks_ends_quietly_when_spark_closes_its_connection(module: str, printed: str | None) -> None:
    folder = tempfile.mkdtemp()  # short: a socket's path has 107 characters at most
    settings = {"PYTHON_UNIX_DOMAIN_ENABLED": "true", "SPARK_REUSE_WORKER": "1", "PYTHON_WORKER_FACTORY_SOCK_DIR": folder}
    command = [sys.executable, "-m", module, "pyspark.worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env={**os.environ, **settings}, stdin=pipe, stdout=pipe, stderr=pipe) as daemon:
        assert daemon.stdout is not None
        (length,) = struct.unpack("!i", daemon.stdout.read(4))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(daemon.stdout.read(length).decode())
            (worker,) = struct.unpack("!i", connection.recv(4))
        while Path(f"/proc/{worker}").exists():
            time.sleep(0.05)
        _, stderr = daemon.communicate()
    assert stderr.decode() == "" if printed is None else printed in stderr.decode()
