"""Print the tables of docs/readers.md from what readers do with reader_samples.py; ``--write`` puts them into the file.

Needs what `make setup` installs, and a network for Polars 1, which gets an environment of its own for the run.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract_tables import put_into
from reader_probes import SECTIONS, ZONE, Spark, probe, versions_of
from reader_samples import make_samples

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "readers.md"
BEGIN = "<!-- begin: written by tools/reader_table.py --write, do not edit -->"
END = "<!-- end: tools/reader_table.py -->"
POLARS_1 = ("polars==1.44.2", "deltalake==1.6.6", "pyarrow==25.0.1", "tzdata==2025.2")
TITLES = {
    "spark": "Spark",
    "duckdb": "DuckDB",
    "polars": "Polars 2",
    "polars1": "Polars 1",
    "pandas": "pandas",
    "arrow": "deltalake, Arrow",
    "querybuilder": "deltalake, QueryBuilder",
}
"""Columns of the tables, in order."""


@dataclass(frozen=True)
class SeenColumn:
    """What one reader did.

    Attributes:
        versions: of the packages that it was seen with.
        cells: label of the row -> what was seen.
    """

    versions: str
    cells: Mapping[str, str]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print(f"error: unknown arguments {arguments}; the only option is --write", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        text = render(see_all(Path(folder)))
    if arguments:
        DOCUMENT.write_text(put_into(DOCUMENT.read_text(encoding="utf-8"), text, BEGIN, END), encoding="utf-8")
    else:
        print(text, end="")
    return 0


def see_all(folder: Path) -> dict[str, SeenColumn]:
    """Run every reader on fresh samples."""
    samples = folder / "samples"
    samples.mkdir()
    make_samples(samples)
    seen = {name: run_reader(name, samples, sys.executable) for name in TITLES if name not in ("spark", "polars1")}
    seen["polars1"] = run_reader("polars", samples, make_polars_1(folder / "polars1"))
    from recsys_batch.config import load_config
    from recsys_batch.spark.session import get_session

    session = get_session(load_config(ROOT / "conf" / "smoke.toml", [f"paths.jars={ROOT / '.jars'}"]))
    seen["spark"] = run_spark(samples, session)
    session.stop()
    return seen


def run_reader(name: str, samples: Path, python: str) -> SeenColumn:
    """Run a reader in a process whose zone is not UTC."""
    words = [python, str(Path(__file__).parent / "reader_probes.py"), name, str(samples)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env={**os.environ, "TZ": ZONE}, text=True, timeout=300)
    return SeenColumn(**json.loads(done.stdout))


def run_spark(samples: Path, session: Any) -> SeenColumn:
    """Run Spark in a session whose zone is not UTC; the session's own comes back."""
    before = session.conf.get("spark.sql.session.timeZone")
    session.conf.set("spark.sql.session.timeZone", ZONE)
    try:
        reader = Spark(samples, session)
        return SeenColumn(versions_of(reader), probe(reader))
    finally:
        session.conf.set("spark.sql.session.timeZone", before)


def make_polars_1(folder: Path) -> str:
    """Make an environment with Polars 1; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *POLARS_1], check=True)
    return python


def render(seen: Mapping[str, SeenColumn]) -> str:
    """Write the tables in Markdown."""
    lines = [f"Seen with: {'; '.join(f'{title}: {seen[name].versions}' for name, title in TITLES.items())}.", ""]
    for section, rows in SECTIONS.items():
        lines += [f"### {section}", "", f"| | {' | '.join(TITLES.values())} |", "|---" * (len(TITLES) + 1) + "|"]
        lines += [f"| {' | '.join(map(_escape, [label, *(seen[name].cells[label] for name in TITLES)]))} |" for label in rows]
        lines.append("")
    return "\n".join(lines)


def parse(document: str) -> dict[str, SeenColumn]:
    """Read the tables back from the page."""
    part = document.partition(BEGIN)[2].partition(END)[0]
    words = next(line for line in part.splitlines() if line.startswith("Seen with: "))
    said = dict(each.split(": ", 1) for each in words.removeprefix("Seen with: ").removesuffix(".").split("; "))
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ") and not line.startswith("| | ")]
    by_label = {_unescape(label): [_unescape(cell) for cell in cells] for label, *cells in rows}
    return {
        name: SeenColumn(said[title], {label: cells[place] for label, cells in by_label.items()})
        for place, (name, title) in enumerate(TITLES.items())
    }


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;")


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&#124;", "|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
