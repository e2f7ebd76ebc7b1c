"""Make sure there is a Java for Spark: use the machine's, or fetch one into the project."""

from __future__ import annotations

import os
import sys

from recsys_batch.spark.java import NEWEST, OLDEST, PROJECT_JAVA, find_java


def main() -> int:
    home = find_java(os.environ)
    if home is None:
        home = _fetch()
    if home is None:
        print(
            f"error: no Java {OLDEST} to {NEWEST} found, and none could be downloaded: "
            "install one (for example the package openjdk-17-jre-headless) and run make again",
            file=sys.stderr,
        )
        return 1
    print(f"Java: {home}")
    return 0


def _fetch() -> object:
    import jdk

    print(f"no Java {OLDEST} to {NEWEST} found, fetching {OLDEST} into {PROJECT_JAVA}/ ...")
    PROJECT_JAVA.mkdir(exist_ok=True)
    try:
        jdk.install(str(OLDEST), jre=True, path=str(PROJECT_JAVA))
    except Exception as error:
        print(f"the download failed: {error}", file=sys.stderr)
        return None
    return find_java(os.environ)


if __name__ == "__main__":
    sys.exit(main())
