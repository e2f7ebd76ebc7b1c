"""Model versions, the champion alias and metrics of nights in MLflow: the only file that imports it.

Only drivers call this; executors never reach the tracking server. "There is none" is what MLflow says by RESOURCE_DOES_NOT_EXIST alone:
whatever else goes wrong is tried again, and then ends the command (decision 0250).
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from recsys_batch.config import Config
from recsys_batch.errors import ChampionDeleted, InputMissing, RecsysBatchError, RegistryUnavailable
from recsys_batch.registry.bundle import Bundle, load_bundle
from recsys_batch.storage.file_lock import file_lock

logger = logging.getLogger("recsys_batch.registry")

_BUNDLE = "bundle"
_DIGEST_TAG = "bundle_digest"
_TRAINING_TAG = "training_key"
_METRICS_PER_CALL = 1000  # as many as a tracking server takes
_NOT_THERE, _ALREADY_THERE, _NOT_TAKEN = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "TEMPORARILY_UNAVAILABLE"
_TRIES = 3  # of each call; a locked sqlite file answers after 20 s, a server that is away after MLflow's own tries
_WAIT_SECONDS = 1.0  # after the first try, then twice as long
_FIRST_USE_SECONDS = 120.0  # in which another process makes a sqlite store's tables: 5 s on an idle core

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RegisteredModel:
    """A version of the registered model."""

    version: str
    mlflow_run_id: str
    digest: str


class ModelRegistry:
    """The tracking server and model registry of one config.

    Every method raises RegistryUnavailable where MLflow cannot be asked, or fails.
    """

    def __init__(self, config: Config) -> None:
        state = Path(config.paths.state).absolute()
        self._name = config.mlflow.model_name
        self._alias = config.mlflow.alias
        named = uri = config.mlflow.tracking_uri or os.environ.get("RECSYS_BATCH_TRACKING_URI")
        if uri is None:
            state.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{state / 'mlflow.db'}"
        self._store = _describe_store(uri)
        for noisy in ("alembic", "mlflow.tracking"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a stack trace of what is raised as well
        mlflow.set_tracking_uri(uri)
        with _first_use(uri):
            self._client = self._read(_open_store, uri)
            self._experiment = self._get_or_create_experiment(config.mlflow.experiment, None if named else state / "mlartifacts")

    def register(
        self, bundle: Bundle, params: Mapping[str, Any], curves: Mapping[str, Sequence[float]] | None = None, *, training_key: str = ""
    ) -> RegisteredModel:
        """Log a bundle with its metrics and curves, and make it a version. The same content registered again is the same version.

        ``training_key`` is the hash of the training's inputs and settings, by which ``find_trained`` looks the version up.
        """
        client = self._client
        if self._find(client.get_registered_model, self._name) is None:
            self._create(client.create_registered_model, self._name)
        existing = self._find_by_tag(_DIGEST_TAG, bundle.digest)
        if existing is not None:
            return existing
        run_id = self._write(client.create_run, self._experiment, run_name=f"model-{bundle.digest[:8]}").info.run_id
        for key, value in params.items():
            self._write(client.log_param, run_id, key, value)
        self.log_metrics(run_id, bundle.manifest.get("metrics", {}))
        for name, points in (curves or {}).items():
            for step, value in enumerate(points):
                self._write(client.log_metric, run_id, name, float(value), step=step)
        self._write(client.log_artifacts, run_id, str(bundle.path), _BUNDLE)
        self._write(client.set_terminated, run_id)
        source = f"{self._read(client.get_run, run_id).info.artifact_uri}/{_BUNDLE}"
        tags = {_DIGEST_TAG: bundle.digest, _TRAINING_TAG: training_key}
        version = self._write(client.create_model_version, self._name, source, run_id, tags=tags)
        return RegisteredModel(str(version.version), run_id, bundle.digest)

    def find_trained(self, training_key: str) -> RegisteredModel | None:
        """Find the version that a training of that key registered; None where there is none."""
        return self._find_by_tag(_TRAINING_TAG, training_key)

    def get_champion(self) -> RegisteredModel | None:
        """Look up the version that the alias names; None while there is none.

        Raises ChampionDeleted where there was one: MLflow takes the alias away with the version that it named.
        """
        model = self._find(self._client.get_registered_model, self._name)
        if model is None:
            return None
        # The alias by itself is INVALID_PARAMETER_VALUE where it is not set, as a name is that cannot be an alias.
        named = model.aliases.get(self._alias)
        number = named or model.tags.get(self._champion_tag)
        version = self._find(self._client.get_model_version, self._name, str(number)) if number else None
        if number and version is None:
            raise ChampionDeleted(
                f"version {number} of model {self._name}, which was {self._alias}, was deleted from MLflow: run `recsys-batch train`, "
                f"`recsys-batch register` your own, or set the alias {self._alias} to another version"
            )
        return None if version is None or not named else _describe_version(version)

    def require_champion(self) -> RegisteredModel:
        """Look up the version that the alias names. Raises InputMissing while there is none, ChampionDeleted where it was deleted."""
        champion = self.get_champion()
        if champion is None:
            raise InputMissing(
                f"model {self._name} has no alias {self._alias}: run `recsys-batch train`, or `recsys-batch register` your own"
            )
        return champion

    def set_champion(self, version: str) -> None:
        """Move the alias to ``version``, and remember it, for the alias goes with a version that is deleted."""
        self._read(self._client.set_registered_model_tag, self._name, self._champion_tag, version)
        self._read(self._client.set_registered_model_alias, self._name, self._alias, version)

    def fetch(self, version: str, directory: Path) -> Bundle:
        """Download and verify the bundle of a version.

        Raises InputMissing where there is no such version or its files are gone, BundleError where it is damaged.
        """
        model_version = self._find(self._client.get_model_version, self._name, version)
        if model_version is None:
            raise InputMissing(f"model {self._name} has no version {version}: it was deleted from MLflow")
        source = str(model_version.source)
        directory.mkdir(parents=True, exist_ok=True)

        def download() -> str:
            try:
                return str(download_artifacts(artifact_uri=source, dst_path=str(directory)))
            except (MlflowException, OSError) as error:
                if not _are_files_gone(error):
                    raise
                raise InputMissing(f"the files of model {self._name} version {version} are gone: {_first_line(error)}") from None

        return load_bundle(self._read(download))

    def start_night(self, run_id: str, tags: Mapping[str, str]) -> str:
        """Create the MLflow run that a night logs its driver metrics to; its id."""
        tags = {"recsys_batch.run_id": run_id, **tags}
        return str(self._write(self._client.create_run, self._experiment, run_name=run_id, tags=tags).info.run_id)

    def log_metrics(self, mlflow_run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics to an MLflow run."""
        now = int(time.time() * 1000)
        logged = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        for start in range(0, len(logged), _METRICS_PER_CALL):
            self._write(self._client.log_batch, mlflow_run_id, logged[start : start + _METRICS_PER_CALL])

    def log_figure(self, mlflow_run_id: str, figure: Any, name: str) -> None:
        """Log a matplotlib figure to an MLflow run, as the file ``name``."""
        self._write(self._client.log_figure, mlflow_run_id, figure, name)

    def log_file(self, mlflow_run_id: str, path: Path) -> None:
        """Log a file to an MLflow run, under its own name."""
        self._write(self._client.log_artifact, mlflow_run_id, str(path))

    def set_tag(self, mlflow_run_id: str, key: str, value: str) -> None:
        """Set a tag of an MLflow run."""
        self._write(self._client.set_tag, mlflow_run_id, key, value)

    def finish_run(self, mlflow_run_id: str, *, failed: bool) -> None:
        """Close a night's MLflow run."""
        self._write(self._client.set_terminated, mlflow_run_id, "FAILED" if failed else "FINISHED")

    @property
    def _champion_tag(self) -> str:
        return f"recsys_batch.{self._alias}"

    def _get_or_create_experiment(self, name: str, artifacts: Path | None) -> str:
        existing = self._read(self._client.get_experiment_by_name, name)
        if existing is None:
            self._create(self._client.create_experiment, name, artifact_location=artifacts.as_uri() if artifacts else None)
            existing = self._read(self._client.get_experiment_by_name, name)
        return str(existing.experiment_id)

    def _find_by_tag(self, tag: str, value: str) -> RegisteredModel | None:
        for version in self._read(self._client.search_model_versions, f"name='{self._name}'"):
            if version.tags.get(tag) == value:
                return _describe_version(version)
        return None

    def _find(self, call: Callable[..., Answer], *arguments: Any) -> Answer | None:
        """Call MLflow for something that may not be there; None where it says so."""
        try:
            return self._read(call, *arguments)
        except MlflowException:
            return None

    def _create(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call MLflow to create something that has a name; that another process was first is no error."""
        try:
            self._write(call, *arguments, **options)
        except MlflowException as error:
            if error.error_code != _ALREADY_THERE:
                raise

    def _read(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """Call MLflow for what may be done twice; any failure is tried again."""
        return self._try(call, arguments, options, lambda error: True)

    def _write(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """Call MLflow for what must not be done twice; tried again only where the store says that it took nothing."""
        return self._try(call, arguments, options, lambda error: getattr(error, "error_code", None) == _NOT_TAKEN)

    def _try(
        self, call: Callable[..., Answer], arguments: tuple[Any, ...], options: Mapping[str, Any], again: Callable[[Exception], bool]
    ) -> Answer:
        """Call MLflow up to ``_TRIES`` times.

        Raises MlflowException where it says that something is not there, or is there already, and our own errors as they are;
        RegistryUnavailable for anything else, also of SQLAlchemy and Alembic.
        """
        began, attempt = time.monotonic(), 1
        while True:
            try:
                return call(*arguments, **options)
            except RecsysBatchError:
                raise
            except Exception as error:
                if isinstance(error, MlflowException) and error.error_code in (_NOT_THERE, _ALREADY_THERE):
                    raise
                doing, reason = getattr(call, "__name__", "call").strip("_").replace("_", " "), _first_line(error)
                if attempt == _TRIES or not again(error):
                    tries = f"after {attempt} tries in {time.monotonic() - began:.0f} s" if attempt > 1 else "not tried again"
                    raise RegistryUnavailable(
                        f"MLflow at {self._store} failed to {doing}, {tries}: {reason}. Does another process hold it, or is it away? "
                        "Run the command again when it answers"
                    ) from error
                wait = _WAIT_SECONDS * 2 ** (attempt - 1)
                logger.warning("MLflow at %s failed to %s: %s; trying again in %.0f s", self._store, doing, reason, wait)
                time.sleep(wait)
                attempt += 1


def _open_store(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time open a sqlite store: MLflow makes a fresh one's tables without a lock, and the second process fails.

    Raises Busy where another process holds it for two minutes.
    """
    path = _sqlite_file(uri)
    if path is None:
        yield
        return
    with file_lock(path.with_name(f"{path.name}.first-use"), f"MLflow's store {path}", "is being opened", _FIRST_USE_SECONDS):
        yield


def _sqlite_file(uri: str) -> Path | None:
    """Locate the file of a sqlite store; None of another store, and of one in memory."""
    scheme, separator, path = uri.partition(":///")
    path = path.partition("?")[0]
    return Path(path) if separator and scheme.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


def _describe_store(uri: str) -> str:
    """Name a store in a message, without the user and password that its URI may have."""
    parsed = urlparse(uri)
    return uri if parsed.hostname is None else f"{parsed.scheme}://{parsed.hostname}"


def _describe_version(version: Any) -> RegisteredModel:
    return RegisteredModel(str(version.version), str(version.run_id), str(version.tags.get(_DIGEST_TAG, "")))


def _are_files_gone(error: Exception) -> bool:
    """Whether an error of a download says that the files are not there, and not that they could not be had."""
    if isinstance(error, MlflowException):
        return bool(error.error_code == _NOT_THERE)
    if hasattr(error, "response"):  # of requests, where a server has the files
        return getattr(error.response, "status_code", None) == 404
    return isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
