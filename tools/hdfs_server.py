"""An HDFS for tests, on loopback: Hadoop's own name node and data node in one JVM (MiniDFSCluster), from the jars of `make hdfs-jars`."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SECONDS = 120.0
_MAIN = "org.apache.hadoop.test.MiniDFSClusterManager"


class HdfsServer:
    """A running name node; what is in it goes with it.

    Attributes:
        location: hdfs://127.0.0.1:PORT.
    """

    def __init__(self, jars: Path, folder: Path, port: int) -> None:
        self.location = f"hdfs://127.0.0.1:{port}"
        self._port, self._jars, self._folder = port, jars, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.start(format_it=True)

    def start(self, *, format_it: bool = False) -> None:
        """Start it, with what it had before unless ``format_it``."""
        details = self._folder / "details.json"
        details.unlink(missing_ok=True)
        words = ["-datanodes", "1", "-nnport", str(self._port), "-httpport", str(_free_port()), "-writeDetails", str(details)]
        words += ["-format"] if format_it else []
        with (self._folder / "hdfs.log").open("ab") as log:
            command = [*self._java(), _MAIN, *words]
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log, env=_plain_environment())
        end = time.monotonic() + _SECONDS
        while not (details.exists() and details.read_text().endswith("}") and json.loads(details.read_text())):
            if self._process.poll() is not None or time.monotonic() > end:
                text = (self._folder / "hdfs.log").read_text(errors="replace")
                raise SystemExit(f"HDFS did not start (are its jars in {self._jars}? `make hdfs-jars`):\n{text[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End its process, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def administer(self, *words: str) -> None:
        """Run a command of `hdfs dfsadmin`, such as -setSpaceQuota or -safemode, as the superuser."""
        command = [*self._java(), "org.apache.hadoop.hdfs.tools.DFSAdmin", "-fs", self.location, *words]
        subprocess.run(command, check=True, cwd=self._folder, env=_plain_environment(), capture_output=True, timeout=_SECONDS)

    def _java(self) -> list[str]:
        return ["java", "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{self._jars.resolve()}/*"]


@contextmanager
def hdfs_server(jars: Path, folder: Path) -> Iterator[HdfsServer]:
    """Run an HDFS whose files lie in ``folder``, as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = HdfsServer(jars, folder, _free_port())
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HADOOP_")}
