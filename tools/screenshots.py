"""Pictures of the explorer page for the documentation: starts `serve` on a folder of snapshots and photographs it in headless Chromium.

python tools/screenshots.py SNAPSHOTS [--out docs/images] [--user ID] [--session ID ...]
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

_FEW_COLOURS = 128
"""A page of flat colours loses nothing that the eye sees, and is a third of the size."""


@contextmanager
def server(snapshots: Path) -> Iterator[str]:
    """The address of a server of one worker."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "serve", "--snapshots", str(snapshots)]
    process = subprocess.Popen([*command, "--port", str(port), "--workers", "1"])
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/readyz").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"the server on {snapshots} was not ready within a minute")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def photograph(page: Page, address: str, path: Path) -> None:
    """The page once its answer is there and nothing moves."""
    page.goto(address)
    page.locator("#online li[data-id]").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=path)


def smaller(path: Path) -> None:
    """The same picture with few colours (matplotlib brings Pillow along)."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(_FEW_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """By day and by night."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--user", default="")
    parser.add_argument("--session", nargs="*", default=[])
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("this needs Chromium: apt-get install chromium")
    given.out.mkdir(parents=True, exist_ok=True)
    parts = [("user", given.user), ("day", "4"), ("hour", "20"), ("device", "tv"), *(("session", one) for one in given.session)]
    with server(given.snapshots) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        address = f"{url}/#{urlencode([part for part in parts if part[1]])}"
        for name, scheme in (("explorer", "light"), ("explorer-dark", "dark")):
            page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            path = given.out / f"{name}.png"
            photograph(page, address, path)
            smaller(path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
