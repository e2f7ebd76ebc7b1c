"""Reports of runs that were logged to the MLflow under ``paths.state`` and show an erased user: removed, as `report` makes them again."""

import html
import re
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.erasure.erased_users import ErasedUsers


def find_logged_reports(config: Config, users: ErasedUsers) -> list[Path]:
    """List the pages with a card of one of these users, by the card's title."""
    if not users.ids:
        return []
    ids = sorted({spelled for text in users.ids for spelled in (text, html.escape(text))})
    title = re.compile(rf"<h3>User (?:{'|'.join(map(re.escape, ids))})\s*<")
    pages = Path(config.paths.state, "mlartifacts").rglob("*.html")
    return [path for path in pages if title.search(path.read_text(encoding="utf-8", errors="replace"))]


def remove_logged_reports(config: Config, users: ErasedUsers) -> None:
    """Remove the pages with a card of one of these users."""
    for path in find_logged_reports(config, users):
        path.unlink(missing_ok=True)
