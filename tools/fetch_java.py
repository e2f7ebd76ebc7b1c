"""Make sure there is a Java for Spark: use the machine's, or fetch one into the project."""

import os
import socket
import sys
from pathlib import Path

from recsys_batch.spark.java import NEWEST, OLDEST, PLACES, PROJECT_JAVA, find_java

SILENCE_S = 60
"""A host that says nothing for this long is taken for unreachable."""


def main() -> int:
    home = find_java(os.environ)
    if home is None:
        print(f"no Java {OLDEST} to {NEWEST} found, fetching {OLDEST} into {PROJECT_JAVA}/ ...", flush=True)
        problem = _fetch(PROJECT_JAVA)
        home = find_java(os.environ)
        if home is None:
            print(
                f"error: no Java {OLDEST} to {NEWEST} found (looked at {PLACES}) and none could be downloaded ({problem}): "
                f"install one, for example the package openjdk-{OLDEST}-jre-headless, or set JAVA_HOME, and run make again",
                file=sys.stderr,
            )
            return 1
        print(f"Java: {home}")
    return 0


def _fetch(folder: Path) -> str:
    """Download a runtime into ``folder``; what went wrong, in words."""
    folder.mkdir(exist_ok=True)
    socket.setdefaulttimeout(SILENCE_S)
    try:
        import jdk

        jdk.install(str(OLDEST), jre=True, path=str(folder))
    except Exception as error:  # the package wraps whatever the network, the archive or the disk raised
        return f"{type(error).__name__}: {error}"
    return "what was downloaded does not start on this machine"


if __name__ == "__main__":
    sys.exit(main())
