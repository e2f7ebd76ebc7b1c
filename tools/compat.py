"""Releases of Spark and Delta that fit: a smoke run of the pipeline in a virtual environment for each pair. `make compat`.

pip chooses the newest pyspark and delta-spark that a row of PAIRS allows. With them, their own jars and the packages of the
environment that runs this: generate, train, a night, an incremental night, a stream over what is there, a rollback, and readers
without a JVM. The rows have to be the same for every pair. Prints a table and writes .compat/compat.json; fails unless every pair
within the ranges of setup.cfg works, or is refused with a sentence.
"""

import argparse
import configparser
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contract_tables import put_into
from reader_probes import Arrow, DuckDb, Polars
from rich.console import Console
from rich.table import Table

from recsys_batch.errors import UsageError
from recsys_batch.read import published_run, run_rows
from recsys_batch.spark.java import ensure_java
from recsys_batch.spark.versions import name_delta_jar

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".compat"
DOCUMENT = ROOT / "docs" / "versions.md"
BEGIN = "<!-- begin: written by tools/compat.py --write, do not edit -->"
END = "<!-- end: tools/compat.py -->"
PAIRS = (
    ("4.0.*", "4.0.*"),
    ("4.0.*", "4.4.0"),
    ("4.1.*", "4.1.*"),
    ("4.1.*", "4.2.*"),
    ("4.1.*", "4.3.*"),
    ("4.1.*", "4.4.0"),
    ("4.2.0", "4.1.*"),
    ("4.2.*", "4.4.0"),
    ("4.2.*", "4.4.*"),
    ("4.3.*", "*"),
)
"""What pip is asked for, as `==` of pyspark and of delta-spark."""
USERS, ITEMS, EVENTS = 400, 150, 8_000
FIRST, SECOND = "2026-01-01", "2026-01-02"
WORKS, REFUSED, UNRESOLVED, NO_JARS, FAILED = "works", "refused", "no such pair", "no jars", "fails"
_SECONDS = 600  # of one process


class StepFailed(Exception):
    """A command of a smoke run ended otherwise than it should; the message is the end of its output."""


@dataclass(frozen=True)
class PairResult:
    """What became of one pair.

    Attributes:
        wanted: what pip was asked for.
        pyspark, delta: the versions that it chose; empty where it found none.
        in_range: whether setup.cfg allows the two.
        outcome: WORKS, REFUSED (by ``name_delta_jar``), UNRESOLVED (by pip), NO_JARS (on Maven Central) or FAILED.
        reason: a sentence where it does not work.
        rows: of the nights and the stream, as their readers count them.
        digest: of those rows.
        seconds: of the commands.
    """

    wanted: str
    pyspark: str = ""
    delta: str = ""
    in_range: bool = False
    outcome: str = FAILED
    reason: str = ""
    rows: int = 0
    digest: str = ""
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", metavar="PYSPARK:DELTA", help="For example 4.1.*:4.3.* ; others keep the result they had.")
    parser.add_argument("--keep", action="store_true", help="Leave the folders with tables and logs.")
    parser.add_argument("--write", action="store_true", help="Put the table into docs/versions.md.")
    arguments = parser.parse_args()
    pairs = [tuple(pair.split(":", 1)) for pair in arguments.pairs] if arguments.pairs else PAIRS
    ensure_java()
    FOLDER.mkdir(exist_ok=True)
    record = FOLDER / "compat.json"
    results = {each["wanted"]: PairResult(**each) for each in json.loads(record.read_text())["pairs"]} if record.is_file() else {}
    for pyspark, delta in pairs:
        result = try_pair(pyspark, delta, keep=arguments.keep)
        print(f"{result.wanted}: {result.outcome}{result.reason and ', ' + result.reason}", flush=True)
        results[result.wanted] = result
        order = [describe_pair(*pair) for pair in PAIRS]
        results = dict(sorted(results.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
        environment = {"python": sys.version.split()[0], "numpy": version("numpy"), "pyarrow": version("pyarrow")}
        record.write_text(json.dumps({**environment, "pairs": [asdict(each) for each in results.values()]}, indent=1) + "\n")
    print_results(results.values())
    if arguments.write:
        text = render_markdown(results.values())
        DOCUMENT.write_text(put_into(DOCUMENT.read_text(encoding="utf-8"), text, BEGIN, END), encoding="utf-8")
    complaint = judge(results.values())
    print(complaint or "compat passed", file=sys.stderr if complaint else sys.stdout)
    return 1 if complaint else 0


def describe_pair(pyspark: str, delta: str) -> str:
    return f"pyspark {pyspark}, delta-spark {delta}"


def judge(results: Iterable[PairResult]) -> str:
    """Say what is wrong with the ranges of setup.cfg, or with the rows; empty where nothing is."""
    results = list(results)
    bad = [each.wanted for each in results if each.in_range and each.outcome not in (WORKS, REFUSED)]
    if bad:
        return f"setup.cfg allows what does not work: {'; '.join(bad)}"
    outside = [each.wanted for each in results if each.outcome == WORKS and not each.in_range]
    if outside:
        return f"setup.cfg leaves out what works: {'; '.join(outside)}"
    digests = {each.digest for each in results if each.outcome == WORKS}
    if len(digests) > 1:
        return "the rows are not the same for every pair"
    return "" if digests else "no pair works"


def print_results(results: Iterable[PairResult]) -> None:
    table = Table(title="Spark and Delta", title_justify="left", header_style="bold")
    for name in ("asked for", "pyspark", "delta-spark", "in range", "outcome", "rows", "of digest", "seconds"):
        table.add_column(name, overflow="fold")
    for each in results:
        figures = (f"{each.rows:,}", each.digest[:8], f"{each.seconds:.0f}") if each.outcome == WORKS else ("", "", "")
        table.add_row(each.wanted, each.pyspark, each.delta, "yes" if each.in_range else "no", each.outcome, *figures)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def render_markdown(results: Iterable[PairResult]) -> str:
    """Write the table of docs/versions.md."""
    lines = ["| pyspark | delta-spark | setup.cfg allows it | |", "|---|---|---|---|"]
    for each in results:
        text = f"works, {each.rows:,} rows `{each.digest[:8]}`" if each.outcome == WORKS else each.outcome
        lines.append(f"| {each.pyspark} | {each.delta} | {'yes' if each.in_range else 'no'} | {text} |")
    return "\n".join(lines) + "\n"


def try_pair(pyspark: str, delta: str, *, keep: bool) -> PairResult:
    """Resolve a pair, install it, fetch its jars and run the pipeline with it."""
    result = PairResult(describe_pair(pyspark, delta))
    try:
        chosen = resolve_pair(pyspark, delta)
    except StepFailed as error:
        return replace(result, outcome=UNRESOLVED, reason=str(error))
    result = replace(result, pyspark=chosen[0], delta=chosen[1], in_range=is_in_range(*chosen))
    try:
        name_delta_jar(*chosen)
    except UsageError as error:
        return replace(result, outcome=REFUSED, reason=str(error))
    home = FOLDER / f"pyspark-{chosen[0]}-delta-{chosen[1]}"
    python = make_environment(home, *chosen)
    try:
        run_command([python, ROOT / "tools" / "fetch_jars.py", "--target", home / "jars"], ROOT, home / "jars.log")
    except StepFailed:
        return replace(
            result, outcome=NO_JARS, reason=f"io.delta:{name_delta_jar(*chosen)}:{chosen[1]} cannot be fetched: see {home}/jars.log"
        )
    folder, began = Path(tempfile.mkdtemp(prefix="compat-")), time.monotonic()
    try:
        rows = run_pipeline(python, home / "jars", folder)
    except Exception as error:  # a reader that cannot read fails in its own way; other pairs are tried all the same
        shutil.copyfile(folder / "commands.log", home / "commands.log")
        first_line = (str(error).splitlines() or [""])[0]
        return replace(result, outcome=FAILED, reason=f"{type(error).__name__}: {first_line[:300]} (see {home}/commands.log)")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return replace(result, outcome=WORKS, rows=len(rows), digest=digest, seconds=round(time.monotonic() - began, 1))


def resolve_pair(pyspark: str, delta: str) -> tuple[str, str]:
    """Ask pip which versions it would install. Raises StepFailed where it finds none."""
    wanted = [f"{name}=={release}" if release != "*" else name for name, release in (("pyspark", pyspark), ("delta-spark", delta))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--dry-run", "--ignore-installed"]
        run_command([*pip, "--report", report, *wanted], ROOT, Path(folder) / "pip.log")
        chosen = {
            item["metadata"]["name"].replace("_", "-"): item["metadata"]["version"] for item in json.loads(report.read_text())["install"]
        }
    return chosen["pyspark"], chosen["delta-spark"]


def is_in_range(pyspark: str, delta: str) -> bool:
    """Whether setup.cfg's extra ``night`` allows the two versions; pip compares."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line.strip() for line in setup["options.extras_require"]["night"].splitlines()]
    ranges = [line for line in lines if line.startswith(("pyspark", "delta-spark"))]
    if len(ranges) != 2:
        raise SystemExit(f"setup.cfg's extra night has to name pyspark and delta-spark once each, found {ranges}")
    with tempfile.TemporaryDirectory() as folder:
        for name, release in (("pyspark", pyspark), ("delta_spark", delta)):
            wheel_info = Path(folder) / f"{name}-{release}.dist-info"
            wheel_info.mkdir()
            (wheel_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {release}\n")
            (wheel_info / "INSTALLER").write_text("compat\n")
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index", "--disable-pip-version-check", *ranges]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": folder, "PIP_FIND_LINKS": ""}, capture_output=True, text=True, check=False
        )
    return done.returncode == 0


def make_environment(home: Path, pyspark: str, delta: str) -> Path:
    """Make a virtual environment with the pair, and everything else from the environment that runs this; its Python."""
    environment = home / f"venv-{sys.version_info.major}.{sys.version_info.minor}"
    python = environment / "bin" / "python"
    ready = environment / ".ready"
    if not ready.exists():
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, symlinks=True, with_pip=True)
        pair = (f"pyspark=={pyspark}", f"delta-spark=={delta}")
        run_command([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *pair], home, home / "pip.log")
        (site,) = environment.glob("lib/python*/site-packages")
        # Behind the environment's own packages, so that the pair is what is found; .pth files there are not read.
        (site / "others.pth").write_text(f"{ROOT}\n{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
        ready.touch()
    found = subprocess.run(
        [python, "-c", "import pyspark, importlib.metadata as m; print(pyspark.__version__, m.version('delta-spark'))"],
        env=environment_of_commands(),
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if found != [pyspark, delta]:
        raise SystemExit(f"{environment} has pyspark and delta-spark {found}, expected {pyspark} and {delta}: remove the folder")
    return python


def run_pipeline(python: Path, jars: Path, folder: Path) -> list[str]:
    """Run the commands of a smoke run; the rows of both nights and the stream, in a fixed order, as text.

    Raises StepFailed where a command fails, or where readers or what was published are not as they should be.
    """
    warehouse = folder / "warehouse"
    settings = [
        f"paths.warehouse={warehouse}",
        f"paths.state={folder / 'state'}",
        f"paths.jars={jars}",
        "spark.conf.spark.driver.memory=1g",
    ]
    settings.append("spark.conf.spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    # By epochs, not by seconds: the same model whatever else the machine does.
    settings += ["training.max_epochs=2", "training.max_seconds=600"]
    options = ["--conf", str(ROOT / "conf" / "smoke.toml"), *(part for setting in settings for part in ("--set", setting))]
    commands = (
        ("generate", "--users", str(USERS), "--items", str(ITEMS), "--events", str(EVENTS), "--seed", "5"),
        ("train",),
        ("nightly", "--run-date", FIRST),
        ("ingest", "--source", str(write_events(folder / "second.csv", step=20)), "--format", "csv"),
        ("nightly", "--run-date", SECOND, "--incremental"),
        ("ingest", "--source", str(write_events(folder / "third.csv", step=30)), "--format", "csv"),
        ("stream", "--available-now"),
        ("maintain",),
        ("rollback",),
    )
    lines = json.dumps([[command, *options, *words] for command, *words in commands])
    run_command([python, ROOT / "tools" / "compat_commands.py", lines], folder, folder / "commands.log")
    runs = {run.run_id: run for run in run_rows(str(warehouse)) if run.status == "PUBLISHED"}
    if sorted(runs) != [f"{FIRST}-r1", f"{SECOND}-r1"] or runs[f"{SECOND}-r1"].metrics["incremental"] != 1.0:
        raise StepFailed(f"published are {sorted(runs)}, expected a night of {FIRST} and an incremental one of {SECOND}")
    current = published_run(str(warehouse)).run_id
    if current != f"{FIRST}-r1":
        raise StepFailed(f"after the rollback readers see {current}, expected {FIRST}-r1")
    return read_outputs(warehouse)


def write_events(path: Path, step: int) -> Path:
    """Write a CSV file of one event each of every ``step``-th user, on items that exist, after all that were generated."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("user_id", "item_id", "event_ts", "weight"))
        for user in range(1, USERS, step):
            writer.writerow((user, (7 * user) % ITEMS + 1, f"2026-01-01 12:{user % 60:02d}:00", 1.0))
    return path


def read_outputs(warehouse: Path) -> list[str]:
    """Read topk and topk_live by three readers without a JVM; the rows, sorted. Raises StepFailed where they do not agree."""
    columns = ("run_id", "user_id", "rank", "item_id", "score")
    rows: list[str] = []
    for table in ("topk", "topk_live"):
        expected = sorted(map(repr, Arrow(warehouse).read(table, columns)))
        if not expected:
            raise StepFailed(f"{table}: there are no rows")
        for reader in (DuckDb(warehouse), Polars(warehouse)):
            if sorted(map(repr, reader.read(table, columns))) != expected:
                raise StepFailed(f"{table}: {reader.title} reads other rows than deltalake")
        rows += [f"{table} {row}" for row in expected]
    return rows


def run_command(words: Sequence[Any], folder: Path, log: Path) -> None:
    """Run a command to its end, its output into ``log``. Raises StepFailed with the last line where its exit code is not 0."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8", errors="replace") as output:
        output.write(f"$ {' '.join(map(str, words))}\n")
        output.flush()
        done = subprocess.run(
            list(map(str, words)), cwd=folder, env=environment_of_commands(), stdout=output, stderr=output, timeout=_SECONDS, check=False
        )
        output.seek(0)
        last = (output.read().strip().splitlines() or [""])[-1]
    if done.returncode:
        raise StepFailed(f"exit code {done.returncode}: {last[:500]}")


def environment_of_commands() -> dict[str, str]:
    """Leave out what would lead a process to packages of another environment, or to another Spark."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPARK_HOME", "VIRTUAL_ENV")}


if __name__ == "__main__":
    sys.exit(main())
