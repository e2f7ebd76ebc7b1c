"""Checks before a server starts: each fault that would keep it from starting is one sentence."""

import importlib.util
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from recsys_batch.errors import UsageError
from recsys_batch.online.server.tls_files import check_tls_files
from recsys_batch.online.settings import ADMIN_TOKEN, CLIENT_TOKEN, ENGINE_TOKEN, REDIS_URL, ServerSettings

_TOKEN = re.compile(r"[!-~]([ -~]*[!-~])?")
_LEAST_BYTES = 2**20


def check_startup(settings: ServerSettings) -> None:
    """Check all that a server needs and can be looked at beforehand; addresses are ``reserve_address``'s.

    Raises:
        UsageError: something cannot be used; says what to do.
    """
    check_tls_files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    _check_snapshots(Path(settings.snapshots))
    if settings.exposures:
        _check_writable(Path(settings.exposures), "exposures")
    _check_writable(Path(settings.state), "the server's temporary folder (TMPDIR)")
    for name in (ADMIN_TOKEN, CLIENT_TOKEN, ENGINE_TOKEN):
        _check_token(name, os.environ.get(name, ""))
    if os.environ.get(REDIS_URL):
        _check_url(REDIS_URL, os.environ[REDIS_URL], ("redis", "rediss", "unix"))
    if settings.engine != "onnx":
        _check_url("online.engine_url", settings.engine_url, ("http", "https"))
    if settings.live != "off":
        _check_live(settings)


def _check_snapshots(folder: Path) -> None:
    """A folder that is not there yet is waited for; one that can never be read is refused."""
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"snapshots {folder} cannot be read ({error.strerror}): name a folder that this user may read") from None


def _check_writable(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST_BYTES))
            file.flush()
    except OSError as error:
        raise UsageError(
            f"{what} {folder} cannot be written ({error.strerror}): name a folder with room that this user may write"
        ) from None


def _check_token(name: str, token: str) -> None:
    if token and not _TOKEN.fullmatch(token):
        raise UsageError(f"{name} has blanks at its ends, or signs that are not ASCII, and no client could send it: give it another value")


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> None:
    """The URL is not repeated: it may have a password in it."""
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in schemes and (parts.scheme == "unix" or parts.hostname is not None) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UsageError(f"{name} is no URL of {' or '.join(schemes)}, as {schemes[0]}://127.0.0.1:PORT is")


def _check_live(settings: ServerSettings) -> None:
    if importlib.util.find_spec("deltalake") is None:
        install = "pip install 'recsys-batch[online,read]'"
        raise UsageError(
            f"online.live = {settings.live} reads the warehouse by deltalake, which is not installed: {install}, or set it to off"
        )
    if settings.live == "redis" and not os.environ.get(REDIS_URL):
        raise UsageError(f"online.live = redis needs a server: name it in {REDIS_URL}")
