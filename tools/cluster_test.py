"""A night on a real cluster: Spark standalone with a master and two workers on loopback, every job by spark-submit. `make cluster-test`.

Driver and workers have an interpreter with this package's dependencies, and the package itself only as the archive that
`make package` built: the checkout is not on their path. In the middle of candidates an executor is killed. In the end the tables
are those of a night of local mode.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.compute as pc
from background import in_background

from recsys_batch.read import published_run, read_table, run_rows
from recsys_batch.spark.java import ensure_java
from recsys_batch.tables.run_manifest import STEP_NAMES

ROOT = Path(__file__).parent.parent
OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")
DATE, FORCED, STEPWISE = "2026-01-01", "2026-01-02", "2026-01-03"
_SECONDS = 600  # of one job


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--keep", action="store_true", help="Leave the folder with tables and logs.")
    arguments = parser.parse_args()
    ensure_java()
    folder = Path(tempfile.mkdtemp(prefix="cluster-test-"))
    try:
        python = bare_interpreter(folder / "python")
        with cluster(folder, python) as (master, workers):
            submit = Submit(folder, master, python)
            numbers = ("--users", str(arguments.users), "--items", str(arguments.items), "--events", str(arguments.events), "--seed", "5")
            submit("generate", *numbers)
            submit("train", "--max-seconds", "20")
            with killing_an_executor(workers, submit, folder) as killed:
                submit("nightly", "--run-date", DATE)
            if not killed:
                raise SystemExit("no executor was killed: candidates was over before one was found")
            print(f"killed executor process {killed[0]} during candidates; the night ended all the same")
            for step in STEP_NAMES:
                submit(step, "--run-date", STEPWISE)
            submit("rollback")
            submit("status")
            submit("backfill", "--start", DATE, "--end", DATE)
            submit("maintain", "--dry-run")
            submit("evaluate", "--holdout", "--k", "10", expected=(4,))  # nothing was held out
            submit("nightly", "--run-date", DATE)  # published already: exit code 0
            named = Submit(folder, master, python, catalog=folder / "catalog")
            named("generate", *numbers)
            named("nightly", "--run-date", DATE)  # by the model that is champion already
            named("status")
        local = folder / "local"
        shutil.copytree(folder / "warehouse", local)
        run_locally(folder, local, "nightly", "--run-date", FORCED, "--force")
        compare(folder / "warehouse", local)
        compare(folder / "catalog" / "recs.db", local)
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("cluster test passed")
    return 0


def bare_interpreter(target: Path) -> Path:
    """An interpreter that has every dependency of this one, and not this package: what is installed editable is not on its path."""
    venv.create(target, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = target / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    python = target / "bin" / "python"
    found = subprocess.run([python, "-I", "-c", "import recsys_batch"], cwd=target, capture_output=True, text=True, check=False)
    if "No module named 'recsys_batch'" not in found.stderr:
        raise SystemExit(f"the bare interpreter sees the package: {found.stderr or found.stdout}")
    return python


@contextmanager
def cluster(folder: Path, python: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A master and two workers of one core each; all end with the block."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    port = free_port()
    master = f"spark://127.0.0.1:{port}"
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": str(python)}
    for name in ("SPARK_HOME", "PYTHONPATH"):
        environment.pop(name, None)
    spark_class = str(Path(sys.executable).parent / "spark-class")
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> None:
        with (logs / f"{name}.log").open("wb") as log:
            command = [spark_class, f"org.apache.spark.deploy.{words[0]}", *words[1:]]
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True))

    try:
        start("master", "master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        wait_for(logs / "master.log", "I have been elected leader")
        for number in (1, 2):
            sizes = ("--cores", "1", "--memory", "2g", "--work-dir", str(folder / f"work-{number}"), "--webui-port", "0")
            start(f"worker-{number}", "worker.Worker", "--host", "127.0.0.1", *sizes, master)
        for number in (1, 2):
            wait_for(logs / f"worker-{number}.log", "Successfully registered with master")
        yield master, started[1:]
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Submit:
    """spark-submit of a job, as a user of the cluster calls it.

    Args:
        catalog: where a Hive catalog keeps its tables; None for tables that are paths.
    """

    def __init__(self, folder: Path, master: str, python: Path, catalog: Path | None = None) -> None:
        self.folder = folder
        self.log = folder / "submit.log"
        archives = sorted((ROOT / "dist").glob("recsys_batch-*.zip"))
        if not archives:
            raise SystemExit("dist/ has no archive of the package: run `make package`")
        jars = ",".join(str(path) for path in sorted((ROOT / ".jars").glob("*.jar")))
        self._jobs = folder / "jobs"
        shutil.copytree(ROOT / "jobs", self._jobs, dirs_exist_ok=True)
        self._options = options(folder, folder / "warehouse")
        settings = {"spark.cores.max": "2", "spark.executor.memory": "1g", "spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
        settings |= {"spark.pyspark.python": str(python), "spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "4"}
        settings |= {"spark.databricks.delta.snapshotPartitions": "2"}
        if catalog is not None:
            metastore = f"jdbc:derby:;databaseName={folder / 'metastore'};create=true"
            settings |= {"spark.sql.catalogImplementation": "hive", "spark.hadoop.javax.jdo.option.ConnectionURL": metastore}
            settings |= {"spark.sql.warehouse.dir": str(catalog)}
            self._options = [*options(folder, folder / "named"), "--set", "catalog=spark_catalog.recs"]
        confs = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
        spark_submit = str(Path(sys.executable).parent / "spark-submit")
        properties = str(ROOT / "conf" / "spark-defaults.standalone.conf")
        self._command = [spark_submit, "--properties-file", without_packages(properties, folder), "--master", master, "--jars", jars]
        self._command += ["--py-files", str(archives[-1]), *confs]
        self._environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_DRIVER_PYTHON": str(python)}
        for name in ("SPARK_HOME", "PYTHONPATH"):
            self._environment.pop(name, None)

    def __call__(self, job: str, *words: str, expected: tuple[int, ...] = (0,)) -> None:
        started = time.monotonic()
        command = [*self._command, str(self._jobs / f"{job}.py"), *self._options, *words]
        with self.log.open("ab") as log:
            code = subprocess.run(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, timeout=_SECONDS, check=False
            ).returncode
        print(f"spark-submit jobs/{job}.py {' '.join(words)}: exit code {code}, {time.monotonic() - started:.0f} s", flush=True)
        if code not in expected:
            raise SystemExit("\n".join(self.log.read_text(errors="replace").splitlines()[-40:]))


def without_packages(properties: str, folder: Path) -> str:
    """The fragment as it is for clusters without a network: the jars are named instead of fetched."""
    lines = [line for line in Path(properties).read_text(encoding="utf-8").splitlines() if not line.startswith("spark.jars.packages")]
    lines = [re.sub(r"^(spark\.executor\.cores\s+)\d+", r"\g<1>1", line) for line in lines]
    target = folder / "spark-defaults.conf"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(target)


def options(folder: Path, warehouse: Path) -> list[str]:
    settings = (
        f"paths.warehouse={warehouse}",
        f"paths.state={folder / 'state'}",
        f"paths.jars={ROOT / '.jars'}",
        "retrieval.mode=ivf",
        "retrieval.n_candidates=200",
        "scoring.top_k=50",
    )
    return ["--conf", str(ROOT / "conf" / "smoke.toml"), *(part for setting in settings for part in ("--set", setting))]


@contextmanager
def killing_an_executor(workers: list[subprocess.Popen[bytes]], submit: Submit, folder: Path) -> Iterator[list[int]]:
    """While the block runs: SIGKILL for one executor, once candidates has begun."""
    killed: list[int] = []

    def watch(over: threading.Event) -> None:
        while not over.wait(0.05):
            if not any(folder.joinpath("warehouse", "candidates").rglob("part-*.parquet")):
                continue
            for process in executors_of(workers[0].pid):
                with suppress(ProcessLookupError):  # it ended by itself: another one then
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    return

    with in_background(watch):
        yield killed


def executors_of(worker: int) -> list[int]:
    """Processes of a worker's executors."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            child = folder.name.isdigit() and f"PPid:\t{worker}\n" in (folder / "status").read_text()
            if child and b"CoarseGrainedExecutorBackend" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def run_locally(folder: Path, warehouse: Path, *words: str) -> None:
    command = [str(Path(sys.executable).parent / "recsys-batch"), *words, *options(folder, warehouse)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if found.returncode:
        raise SystemExit(found.stderr[-3000:])


def compare(ours: Path, theirs: Path) -> None:
    """The cluster's two nights and the local one have the same rows."""
    runs = {run.run_id for run in run_rows(str(ours)) if run.status == "PUBLISHED"}
    local = published_run(str(theirs)).run_id
    for name in OUTPUTS:
        expected = rows(theirs, name, local)
        for run in sorted(runs):
            if rows(ours, name, run) != expected:
                raise SystemExit(f"{name} of run {run} on the cluster is not what local mode computes")
    print(f"all rows of {', '.join(sorted(runs))} are those of local mode: {', '.join(OUTPUTS)}")


def rows(warehouse: Path | str, name: str, run_id: str) -> list[tuple[str, ...]]:
    """A run's rows in a fixed order, without what tells runs apart."""
    table = read_table(str(warehouse), name, where=pc.field("run_id") == run_id)
    names = [column for column in table.schema.names if column not in ("run_id", "run_date", "generated_at")]
    return sorted(tuple(map(str, values)) for values in zip(*(table[column].to_pylist() for column in names), strict=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(log: Path, sentence: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while sentence not in (log.read_text(errors="replace") if log.exists() else ""):
        if time.monotonic() > end:
            raise SystemExit(f"{log.name} does not say {sentence!r}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
