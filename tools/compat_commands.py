"""Run commands of recsys-batch one after another in this process, and so in one Spark session: a JSON list of command lines as argument.

tools/compat.py calls it in the environment of a pair. It prints the seconds of each, and ends with the first exit code that is not 0.
"""

import json
import sys
import time

from recsys_batch.cli import run


def main() -> int:
    for words in json.loads(sys.argv[1]):
        began = time.monotonic()
        code = run(words)
        print(f"{words[0]}: exit code {code}, {time.monotonic() - began:.1f} s", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
