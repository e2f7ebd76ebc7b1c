"""Find the Java that Spark runs on, so that a missing one is a sentence and not a stack trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from recsys_batch.errors import UsageError

OLDEST, NEWEST = 17, 21
"""Spark 4.2 is built for these and those between."""

PROJECT_JAVA = Path(".java")
"""Where ``make setup`` puts a fetched Java."""


def find_java(environ: Mapping[str, str], system_folder: Path = Path("/usr/lib/jvm")) -> Path | None:
    """JAVA_HOME of a Java 17 to 21: from JAVA_HOME, PATH, the system's folder, then the project's; None where there is none."""
    for home in _candidates(environ, system_folder):
        if OLDEST <= (_major_version(home) or 0) <= NEWEST:
            return home
    return None


def ensure_java() -> None:
    """Point JAVA_HOME of this process at a usable Java.

    Raises:
        UsageError: there is none.
    """
    home = find_java(os.environ)
    if home is None:
        raise UsageError(
            f"no Java {OLDEST} to {NEWEST} found (looked at JAVA_HOME, PATH, /usr/lib/jvm and {PROJECT_JAVA}/): "
            "run `make setup`, or install one, for example the package openjdk-17-jre-headless"
        )
    os.environ["JAVA_HOME"] = str(home)


def _candidates(environ: Mapping[str, str], system_folder: Path) -> Iterator[Path]:
    if environ.get("JAVA_HOME"):
        yield Path(environ["JAVA_HOME"])
    on_path = shutil.which("java", path=environ.get("PATH", ""))
    if on_path:
        yield Path(on_path).resolve().parent.parent
    for folder in (system_folder, PROJECT_JAVA.absolute()):
        if folder.is_dir():
            yield from sorted(folder.iterdir())


def _major_version(home: Path) -> int | None:
    java = home / "bin" / "java"
    if not os.access(java, os.X_OK):
        return None
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', said)
    return int(found.group(1)) if found else None
