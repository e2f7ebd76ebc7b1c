"""The stores that `make object-store-test` runs against: a server on loopback each, what its clients need, and what can go wrong in it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

from hdfs_server import hdfs_server
from pyarrow import fs
from s3_server import s3_server

ROOT = Path(__file__).parent.parent
BUCKET = "recsys-test"
_SECONDS_AWAY = 5.0


@dataclass(frozen=True)
class Fault:
    """What a store can do to a night.

    Attributes:
        during: makes it happen; a block.
        exit_code: of a night meanwhile.
        says: what that night's error says; "" where it does not fail.
    """

    name: str
    during: Callable[[], AbstractContextManager[None]]
    exit_code: int
    says: str


@dataclass(frozen=True)
class RunningStore:
    """A store while its server runs.

    Attributes:
        warehouse: the location of a warehouse in it.
        settings: for [spark.conf].
        faults: that its server can be made to have.
    """

    warehouse: str
    settings: dict[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@contextmanager
def run_s3(folder: Path) -> Iterator[RunningStore]:
    """Run moto. It has no quotas, no read-only buckets, and forgets everything when it is stopped: no faults but those of Spark."""
    with s3_server() as environment, _environment(environment):
        filesystem = fs.S3FileSystem(endpoint_override=environment["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True)
        filesystem.create_dir(BUCKET)
        # What a user of a store with S3's interface puts into [spark.conf]; for S3 itself none of it is needed.
        settings = {
            "spark.hadoop.fs.s3a.endpoint": environment["AWS_ENDPOINT_URL"],
            "spark.hadoop.fs.s3a.endpoint.region": environment["AWS_REGION"],
            "spark.hadoop.fs.s3a.path.style.access": "true",
        }
        yield RunningStore(f"s3a://{BUCKET}/recs/warehouse", settings)


@contextmanager
def run_hdfs(folder: Path) -> Iterator[RunningStore]:
    """Run Hadoop's name node and data node."""
    with hdfs_server(ROOT / ".jars-hdfs", folder / "hdfs") as server:

        @contextmanager
        def quota() -> Iterator[None]:
            server.administer("-setSpaceQuota", "1m", "/recs")
            yield
            server.administer("-clrSpaceQuota", "/recs")

        @contextmanager
        def read_only() -> Iterator[None]:
            server.administer("-safemode", "enter")
            yield
            server.administer("-safemode", "leave")

        @contextmanager
        def away() -> Iterator[None]:
            """Kill the servers when the night has been at work for a while, and start them again."""

            def restart() -> None:
                server.stop()
                time.sleep(_SECONDS_AWAY)
                server.start()

            timer = Timer(25, restart)
            timer.start()
            yield
            timer.join()

        yield RunningStore(
            f"{server.location}/recs/warehouse",
            faults=(
                Fault("full quota", quota, 1, "quota of /recs in HDFS is used up"),
                Fault("read-only store", read_only, 1, "HDFS is read-only now"),
                Fault("servers killed and started again", away, 0, ""),
            ),
        )


STORE_SERVERS = {"s3": run_s3, "hdfs": run_hdfs}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Give a store's credentials and endpoint to this process and those that it starts: the only place that has them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
