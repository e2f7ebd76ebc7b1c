"""E-mails out of a digest, one HTML file per user: python docs/examples/digest/render.py DIGEST.jsonl FOLDER

A sender would hand each of them to its mail server instead, and keep what it has handed over by (digest, user), so that it can be
started again.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader


def mails(digest: Path) -> Iterator[tuple[Any, str]]:
    """(user_id, HTML) of each record; a line at a time, so that a digest may be of any size."""
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("mail.html.j2")
    with digest.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["user_id"], template.render(**record)


def main(digest: str, folder: str) -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    n = 0
    for user_id, html in mails(Path(digest)):
        (target / f"{quote(str(user_id), safe='')}.html").write_text(html, encoding="utf-8")
        n += 1
    print(f"{n} e-mails in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
