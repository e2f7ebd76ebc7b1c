"""How a server runs: what ``serve`` was given, handed to its worker processes in one environment variable."""

from __future__ import annotations

import os

import msgspec

ENVIRONMENT = "RECSYS_BATCH_SERVE"
ADMIN_TOKEN, CLIENT_TOKEN, REDIS_URL = "RECSYS_BATCH_ADMIN_TOKEN", "RECSYS_BATCH_CLIENT_TOKEN", "RECSYS_BATCH_REDIS_URL"
"""Secrets come from the environment only."""
LOAD_LOCK = "opening.lock"
"""In the server's folder: who holds it opens a snapshot."""


class ServerSettings(msgspec.Struct, frozen=True):
    """Attributes as in the [online] section of the config, and where this server keeps what its workers tell each other.

    Attributes:
        snapshots: folder of snapshots.
        state: folder of this server: its workers' states and metrics.
    """

    snapshots: str
    state: str
    host: str
    port: int
    workers: int
    max_k: int
    max_ids: int
    max_body_kb: int
    max_waiting: int
    max_age_hours: float
    max_age_hard_hours: float | None
    store_timeout_ms: float
    poll_ms: float
    redis_cluster: bool
    batch_rows: int
    batch_delay_us: int
    grpc_port: int | None
    exposures: str | None
    exposures_max_mb: float
    page: bool

    def export_to_environment(self) -> None:
        """For processes that are started from here on."""
        os.environ[ENVIRONMENT] = msgspec.json.encode(self).decode()


def settings_from_environment() -> ServerSettings:
    """Those of the server that this process works for."""
    return msgspec.json.decode(os.environ[ENVIRONMENT], type=ServerSettings)
