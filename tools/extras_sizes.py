"""Measure what each extra installs, in a virtual environment of its own: `make sizes`.

    python tools/extras_sizes.py [EXTRA ...] [--write]      # all of them: some 25 GB are unpacked, one after the other

An environment holds what the extra asks for and nothing else, not even pip. ``--write`` puts the table into docs/decisions/0001-extras.md;
an extra that is named alone is measured alone, and its row replaces the one that is there.
"""

from __future__ import annotations

import argparse
import configparser
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from contract_tables import put_into

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "decisions" / "0001-extras.md"
BEGIN = "<!-- begin: written by tools/extras_sizes.py --write, do not edit -->"
END = "<!-- end: tools/extras_sizes.py -->"
PLAIN = "(plain)"
_N_LARGEST = 5
_HEAD = ["| extra | packages | MB | largest, MB |", "|---|---|---|---|"]


@dataclass(frozen=True)
class InstalledSize:
    """Size of an environment's site-packages.

    Attributes:
        n_packages: distributions, ours among them. n_bytes: of all files. by_package: bytes by name, largest first.
    """

    n_packages: int
    n_bytes: int
    by_package: dict[str, int]


def main(arguments: list[str]) -> int:
    known = [PLAIN, *list_extras()]
    parser = argparse.ArgumentParser(description="Measure what each extra installs.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.extras if name not in known]:
        parser.error(f"setup.cfg has no extra {', '.join(unknown)}: it has {', '.join(known)}")
    print("\n".join(_HEAD), flush=True)
    rows: dict[str, str] = {}
    for name in options.extras or known:
        rows[name] = format_row(name, measure_extra(name))
        print(rows[name], flush=True)
        if options.write:
            document = DOCUMENT.read_text(encoding="utf-8")
            DOCUMENT.write_text(put_into(document, merge_rows(document, rows, known), BEGIN, END), encoding="utf-8")
    return 0


def list_extras() -> list[str]:
    """List the extras of setup.cfg, in its order."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return list(settings["options.extras_require"])


def measure_extra(name: str) -> InstalledSize:
    """Install an extra (PLAIN: none) into a new environment, measure it, and remove it."""
    with tempfile.TemporaryDirectory(prefix="extras-sizes-") as folder:
        source, environment = Path(folder) / "source", Path(folder) / "environment"
        source.mkdir()
        for part in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, source)
        shutil.copytree(ROOT / "recsys_batch", source / "recsys_batch", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{source}[{name}]" if name != PLAIN else str(source)], check=True)
        (site_packages,) = environment.glob("lib/python*/site-packages")
        return measure_site_packages(site_packages)


def measure_site_packages(folder: Path) -> InstalledSize:
    """Measure a site-packages folder, all of it and by package."""
    by_package = {found.name: _count_bytes(found) for found in distributions(path=[str(folder)])}
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return InstalledSize(len(by_package), n_bytes, dict(sorted(by_package.items(), key=lambda entry: -entry[1])))


def _count_bytes(found: Distribution) -> int:
    paths = (Path(str(found.locate_file(file))) for file in found.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def format_row(name: str, size: InstalledSize) -> str:
    """Format an extra's row of the table; MB are of 1,000,000 bytes."""
    largest = ", ".join(f"{package} {n_bytes / 1e6:,.0f}" for package, n_bytes in list(size.by_package.items())[:_N_LARGEST])
    return f"| {name if name == PLAIN else f'`[{name}]`'} | {size.n_packages} | {size.n_bytes / 1e6:,.0f} | {largest} |"


def merge_rows(document: str, rows: dict[str, str], known: list[str]) -> str:
    """Make the table of new rows, and of the document's own for extras that were not measured; extras that are gone go."""
    lines = document.partition(BEGIN)[2].partition(END)[0].splitlines()
    before = {line.split("|")[1].strip().strip("`[]"): line for line in lines if line.startswith(("| `[", f"| {PLAIN}"))}
    measured = [rows.get(name) or before.get(name) for name in known]
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, wheels of the package index, pins of setup.cfg."
    return "\n".join([*_HEAD, *(row for row in measured if row), "", where, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
