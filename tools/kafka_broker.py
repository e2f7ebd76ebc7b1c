"""A Kafka broker of one node on loopback, of the jars of `make kafka-jars`, for tests and benchmarks: started, killed, started again."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pyspark

from recsys_batch.spark.java import ensure_java

JARS = Path(".jars-kafka-broker")
_START_SECONDS = 60
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={folder}/logs
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=2097152
auto.create.topics.enable=false
"""


class KafkaBroker:
    """A broker that keeps its messages in ``folder``; a context manager that starts and stops it."""

    def __init__(self, folder: Path, jars: Path = JARS) -> None:
        self._folder, self._jars = folder, jars
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._controller = _free_port(), _free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> "KafkaBroker":
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / "server.properties"
        properties.write_text(_PROPERTIES.format(port=self._port, controller=self._controller, folder=self._folder))
        self._java("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", str(properties)).wait(_START_SECONDS)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)

    def start(self) -> None:
        """Start the broker, and wait until it answers."""
        self._process = self._java("kafka.Kafka", str(self._folder / "server.properties"))
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the broker did not start: {(self._folder / 'broker.log').read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End the broker by a signal, and wait until it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_START_SECONDS)

    def _java(self, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        ensure_java()
        java = str(Path(os.environ["JAVA_HOME"]) / "bin" / "java") if "JAVA_HOME" in os.environ else "java"
        (scala,) = (Path(pyspark.__file__).parent / "jars").glob("scala-library-*.jar")  # left out of what Spark resolves
        options = ["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{self._jars.resolve()}/*:{scala}"]
        with (self._folder / "broker.log").open("ab") as log:
            return subprocess.Popen([java, *options, main, *arguments], stdout=log, stderr=log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
