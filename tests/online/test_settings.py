"""A server's settings are the config's section with the command line's overrides."""

import os
from pathlib import Path

import pytest

from recsys_batch.config import Online
from recsys_batch.online.settings import ENVIRONMENT, ServerSettings, settings_from_environment


def test_workers_get_the_whole_section_and_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "")
    section = Online(max_k=7, host="0.0.0.0", port=9, exposures="log", max_age_hard_hours=72.0, page=False)
    settings = ServerSettings.from_section(section, "/state", "/warehouse", port=8000, host=None, snapshots=Path("here"))
    settings.export_to_environment()
    assert settings_from_environment() == settings
    expected = {"port": 8000, "snapshots": f"{Path.cwd()}/here", "exposures": f"{Path.cwd()}/log", "workers": len(os.sched_getaffinity(0))}
    tls = {"tls_certificate": None, "tls_key": None, "tls_client_ca": None}
    own = {"state": "/state", "warehouse": "/warehouse", "server_pid": os.getpid(), **tls}
    assert settings.model_dump() == {**section.model_dump(), **expected, **own}


def test_without_a_folder_nothing_is_logged_and_named_workers_count() -> None:
    settings = ServerSettings.from_section(Online(workers=3, grpc_port=9000), "/state", "/warehouse", workers=2, grpc_port=None)
    assert (settings.exposures, settings.workers, settings.grpc_port) == (None, 2, 9000)
