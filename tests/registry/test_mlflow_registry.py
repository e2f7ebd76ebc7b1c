"""The registry on a sqlite store of MLflow: what is not there is told from what cannot be asked, and processes may use it at once."""

import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from recsys_batch import cli
from recsys_batch.config import Config, load_config
from recsys_batch.errors import EXIT_FAILED, EXIT_MISSING, ChampionDeleted, ConfigError, InputMissing, RegistryUnavailable
from recsys_batch.registry import mlflow_registry
from recsys_batch.registry.bundle import Bundle, write_bundle
from recsys_batch.registry.mlflow_registry import ModelRegistry

NAME = "recsys_batch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder whose store has its tables: to make them takes seconds."""
    path = tmp_path_factory.mktemp("state")
    ModelRegistry(config_of(path))
    return path


@pytest.fixture
def registry(folder: Path, request: pytest.FixtureRequest) -> ModelRegistry:
    """A registry whose model is this test's own."""
    return ModelRegistry(config_of(folder, f"mlflow.model_name={request.node.originalname}"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", {"kind": "embeddings", "embedding_dim": 3})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow waits 0.2 s for a locked file in place of 20, and nobody rests between tries."""

    def shorten(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_others: Any) -> tuple[str, Any]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 200"), parameters

    monkeypatch.setattr(mlflow_registry, "_WAIT_SECONDS", 0.01)
    event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield
    event.remove(Engine, "before_cursor_execute", shorten)


def config_of(state: Path, *overrides: str) -> Config:
    return load_config(None, [f"paths.state={state}", f"paths.warehouse={state / 'warehouse'}", *overrides])


def client_of(state: Path) -> MlflowClient:
    uri = f"sqlite:///{state / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def locked(state: Path) -> Iterator[sqlite3.Connection]:
    """Hold the store as a process does that writes a lot."""
    connection = sqlite3.connect(state / "mlflow.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield connection
    finally:
        connection.close()


def test_there_is_no_champion_before_a_model_is_registered_and_none_before_one_is_crowned(registry: ModelRegistry, bundle: Bundle) -> None:
    assert registry.get_champion() is None
    registered = registry.register(bundle, {})
    assert registry.get_champion() is None
    with pytest.raises(InputMissing, match=r"has no alias champion: run `recsys-batch train`"):
        registry.require_champion()
    registry.set_champion(registered.version)
    assert registry.get_champion() == registry.require_champion() == registered
    assert registered.digest == bundle.digest


@pytest.mark.usefixtures("impatient")
def test_a_locked_store_is_no_missing_champion(registry: ModelRegistry, bundle: Bundle, folder: Path) -> None:
    registry.set_champion(registry.register(bundle, {}).version)
    calls: list[Callable[[], Any]] = [
        registry.get_champion,
        lambda: registry.find_trained("a"),
        lambda: registry.fetch("1", bundle.path.parent / "download"),
        lambda: registry.start_night("r1", {}),
        lambda: registry.set_champion("1"),
        lambda: ModelRegistry(config_of(folder)),
    ]
    with locked(folder):
        for call in calls:
            with pytest.raises(RegistryUnavailable, match=r"MLflow at sqlite:.*mlflow.db failed to .*, after 3 tries in .* is locked"):
                call()
    champion = registry.get_champion()
    assert champion is not None and champion.version == "1"


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_free_again_is_asked_again(
    registry: ModelRegistry, bundle: Bundle, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.set_champion(registry.register(bundle, {}).version)
    with locked(folder) as connection, caplog.at_level(logging.WARNING, "recsys_batch.registry"):
        monkeypatch.setattr(time, "sleep", lambda _seconds: connection.rollback())
        champion = registry.get_champion()
    assert champion is not None and champion.version == "1"
    assert [record.message for record in caplog.records if "trying again" in record.message] != []


@pytest.mark.usefixtures("impatient")
def test_a_command_that_meets_a_locked_store_fails_with_a_sentence_and_may_be_retried(
    folder: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "conf.toml"
    conf.write_text(f'[paths]\nstate = "{folder}"\n')
    with locked(folder):
        assert cli.run(["register", "--bundle", str(bundle.path), "--conf", str(conf)]) == EXIT_FAILED
    error_text = capsys.readouterr().err
    assert "error: MLflow at sqlite:" in error_text and "database is locked" in error_text and "Traceback" not in error_text


def test_a_champion_that_was_deleted_is_said_to_be_deleted(registry: ModelRegistry, bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    name = registry._name
    version = registry.register(bundle, {}).version
    registry.set_champion(version)
    client_of(folder).delete_model_version(name, version)
    for call in (registry.get_champion, registry.require_champion):
        with pytest.raises(ChampionDeleted, match=f"version {version} of model {name}, which was champion, was deleted") as raised:
            call()
        assert raised.value.exit_code == EXIT_MISSING
    with pytest.raises(InputMissing, match=f"has no version {version}: it was deleted"):
        registry.fetch(version, tmp_path / "download")
    other = write_bundle(tmp_path / "other", {"kind": "embeddings", "embedding_dim": 4})
    second = registry.register(other, {})
    with pytest.raises(ChampionDeleted):
        registry.get_champion()
    registry.set_champion(second.version)
    assert registry.get_champion() == second


def test_an_alias_that_somebody_took_away_leaves_no_champion(registry: ModelRegistry, bundle: Bundle, folder: Path) -> None:
    registry.set_champion(registry.register(bundle, {}).version)
    client_of(folder).delete_registered_model_alias(registry._name, "champion")
    assert registry.get_champion() is None


def test_files_that_are_gone_are_missing(registry: ModelRegistry, bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    registered = registry.register(bundle, {})
    assert registry.fetch(registered.version, tmp_path / "a").digest == bundle.digest
    for file in (folder / "mlartifacts" / registered.mlflow_run_id).rglob("*.json"):
        file.unlink()
    (folder / "mlartifacts" / registered.mlflow_run_id).rename(tmp_path / "away")
    with pytest.raises(InputMissing, match=f"files of model .* version {registered.version} are gone"):
        registry.fetch(registered.version, tmp_path / "b")


RESERVED = ["latest", "LATEST", "Latest", "v1", "V2", "v007"]
NAMES = ["", *RESERVED, "champion", "v", "v1a", "1", "la-test", "prod_2", "a b", "a/b", "é", "x" * 256]


@pytest.mark.parametrize("alias", NAMES)
def test_config_takes_the_aliases_that_mlflow_lets_be_set(alias: str, folder: Path) -> None:
    client = client_of(folder)
    try:
        client.create_registered_model("aliases")
        client.create_model_version("aliases", "file:///nowhere")
    except MlflowException:
        pass  # by the first
    try:
        client.set_registered_model_alias("aliases", alias, "1")
        can_be_set = True
    except MlflowException:
        can_be_set = False
    if can_be_set:
        assert load_config(None, [f'mlflow.alias="{alias}"']).mlflow.alias == alias
    else:
        with pytest.raises(ConfigError, match=r"mlflow.alias: Value error, (is reserved: MLflow|cannot be an alias of MLflow)"):
            load_config(None, [f'mlflow.alias="{alias}"'])


FIRST_USE = """
import sys, time
from pathlib import Path
from recsys_batch.config import load_config
from recsys_batch.registry.mlflow_registry import ModelRegistry
folder, number = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
registry = ModelRegistry(load_config(None, [f"paths.state={folder / 'state'}"]))
print(registry.get_champion(), len(registry.start_night(f"r{number}", {})))
"""


@pytest.mark.slow
def test_two_processes_may_use_a_fresh_store_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in range(2)]
    try:
        while len(list(tmp_path.glob("ready-*"))) < 2 and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        (tmp_path / "go").touch()
        answers = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [(process.returncode, out) for process, (out, _) in zip(processes, answers, strict=True)] == [(0, "None 32\n")] * 2, answers
    runs = client_of(tmp_path / "state").search_runs([experiment.experiment_id for experiment in experiments_of(tmp_path / "state")])
    assert sorted(run.info.run_name for run in runs) == ["r0", "r1"]
    assert [experiment.name for experiment in experiments_of(tmp_path / "state")].count(NAME) == 1


def experiments_of(state: Path) -> list[mlflow.entities.Experiment]:
    return list(client_of(state).search_experiments())


def test_a_stores_password_is_in_no_message() -> None:
    assert mlflow_registry._describe_store("postgresql://user:secret@db.example:5432/mlflow") == "postgresql://db.example"
