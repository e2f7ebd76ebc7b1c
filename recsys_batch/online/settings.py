"""Settings of a server: made by ``serve`` from the config, handed to its worker processes in one environment variable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from recsys_batch.config import Online

ENVIRONMENT = "RECSYS_BATCH_SERVE"
ADMIN_TOKEN, CLIENT_TOKEN, ENGINE_TOKEN = "RECSYS_BATCH_ADMIN_TOKEN", "RECSYS_BATCH_CLIENT_TOKEN", "RECSYS_BATCH_ENGINE_TOKEN"
REDIS_URL = "RECSYS_BATCH_REDIS_URL"
"""Secrets come from the environment only."""
LOAD_LOCK = "opening.lock"
"""In the server's folder: who holds it opens a snapshot."""
LIVE_MARK = "live"
"""In the server's folder: a file whose mtime says when the follower last had all live lists."""


class ServerSettings(Online):
    """The [online] section of the config as one server runs it: paths are absolute, and ``workers`` is a number.

    Attributes:
        state: folder of this server, where its workers tell each other their states and metrics.
        warehouse: whose live lists are followed; not read where ``live`` is off.
        tls_certificate, tls_key: PEM files, for HTTP and gRPC; both or neither.
        tls_client_ca: PEM file of who signs clients' certificates, which they must have then.
        server_pid: process that supervises; its processes end with it.
    """

    state: str
    workers: int
    warehouse: str
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    server_pid: int = Field(default_factory=os.getpid)

    @classmethod
    def from_section(cls, section: Online, state: str, warehouse: str, **overrides: Any) -> ServerSettings:
        """Merge the config's section with what the command line names.

        Args:
            overrides: keys of the section; one that is None is not named.
        """
        values = section.model_dump() | {name: value for name, value in overrides.items() if value is not None}
        values |= {"state": state, "warehouse": warehouse}
        for name in ("snapshots", "exposures", "tls_certificate", "tls_key", "tls_client_ca"):
            values[name] = str(Path(values[name]).absolute()) if values.get(name) else None
        values["workers"] = values["workers"] or len(os.sched_getaffinity(0))
        return cls.model_validate(values)

    def export_to_environment(self) -> None:
        """Pass the settings to processes that are started from here on."""
        os.environ[ENVIRONMENT] = self.model_dump_json()


def settings_from_environment() -> ServerSettings:
    """Read the settings of the server that this process works for."""
    return ServerSettings.model_validate_json(os.environ[ENVIRONMENT])
