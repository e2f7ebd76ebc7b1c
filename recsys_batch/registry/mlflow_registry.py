"""Model versions, the champion alias and metrics of nights in MLflow: the only file that imports it.

Only drivers call this; executors never reach the tracking server.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.registry.bundle import Bundle, load_bundle

_BUNDLE = "bundle"
_DIGEST_TAG = "bundle_digest"
_TRAINING_TAG = "training_key"
_METRICS_PER_CALL = 1000  # as many as a tracking server takes


@dataclass(frozen=True)
class RegisteredModel:
    """A version of the registered model."""

    version: str
    mlflow_run_id: str
    digest: str


class ModelRegistry:
    """The tracking server and model registry of one config."""

    def __init__(self, config: Config) -> None:
        state = Path(config.paths.state).absolute()
        self._name = config.mlflow.model_name
        self._alias = config.mlflow.alias
        named = uri = config.mlflow.tracking_uri or os.environ.get("RECSYS_BATCH_TRACKING_URI")
        if uri is None:
            state.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{state / 'mlflow.db'}"
        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        mlflow.set_tracking_uri(uri)
        self._experiment = self._get_or_create_experiment(config.mlflow.experiment, None if named else state / "mlartifacts")

    def register(
        self, bundle: Bundle, params: Mapping[str, Any], curves: Mapping[str, Sequence[float]] | None = None, *, training_key: str = ""
    ) -> RegisteredModel:
        """Log a bundle with its metrics and curves, and make it a version. The same content registered again is the same version.

        ``training_key`` is the hash of the training's inputs and settings, by which ``find_trained`` looks the version up.
        """
        try:
            self._client.get_registered_model(self._name)
        except MlflowException:
            self._client.create_registered_model(self._name)
        existing = self._find_by_tag(_DIGEST_TAG, bundle.digest)
        if existing is not None:
            return existing
        run_id = self._client.create_run(self._experiment, run_name=f"model-{bundle.digest[:8]}").info.run_id
        for key, value in params.items():
            self._client.log_param(run_id, key, value)
        self.log_metrics(run_id, bundle.manifest.get("metrics", {}))
        for name, points in (curves or {}).items():
            for step, value in enumerate(points):
                self._client.log_metric(run_id, name, float(value), step=step)
        self._client.log_artifacts(run_id, str(bundle.path), _BUNDLE)
        self._client.set_terminated(run_id)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{_BUNDLE}"
        tags = {_DIGEST_TAG: bundle.digest, _TRAINING_TAG: training_key}
        version = self._client.create_model_version(self._name, source, run_id, tags=tags)
        return RegisteredModel(str(version.version), run_id, bundle.digest)

    def find_trained(self, training_key: str) -> RegisteredModel | None:
        """Find the version that a training of that key registered; None where there is none."""
        return self._find_by_tag(_TRAINING_TAG, training_key)

    def get_champion(self) -> RegisteredModel | None:
        """Look up the version that the alias names; None while there is none."""
        try:
            version = self._client.get_model_version_by_alias(self._name, self._alias)
        except MlflowException:
            return None
        return RegisteredModel(str(version.version), str(version.run_id), str(version.tags.get(_DIGEST_TAG, "")))

    def set_champion(self, version: str) -> None:
        """Move the alias to ``version``."""
        self._client.set_registered_model_alias(self._name, self._alias, version)

    def fetch(self, version: str, directory: Path) -> Bundle:
        """Download and verify the bundle of a version.

        Raises InputMissing where there is no such version or its files are gone, BundleError where it is damaged.
        """
        try:
            model_version = self._client.get_model_version(self._name, version)
            directory.mkdir(parents=True, exist_ok=True)
            local = download_artifacts(artifact_uri=str(model_version.source), dst_path=str(directory))
        except (MlflowException, OSError) as error:
            raise InputMissing(f"model {self._name} version {version} cannot be fetched: {error}") from None
        return load_bundle(local)

    def start_night(self, run_id: str, tags: Mapping[str, str]) -> str:
        """Create the MLflow run that a night logs its driver metrics to; its id."""
        created = self._client.create_run(self._experiment, run_name=run_id, tags={"recsys_batch.run_id": run_id, **tags})
        return str(created.info.run_id)

    def log_metrics(self, mlflow_run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics to an MLflow run."""
        now = int(time.time() * 1000)
        logged = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        for start in range(0, len(logged), _METRICS_PER_CALL):
            self._client.log_batch(mlflow_run_id, logged[start : start + _METRICS_PER_CALL])

    def log_figure(self, mlflow_run_id: str, figure: Any, name: str) -> None:
        """Log a matplotlib figure to an MLflow run, as the file ``name``."""
        self._client.log_figure(mlflow_run_id, figure, name)

    def log_file(self, mlflow_run_id: str, path: Path) -> None:
        """Log a file to an MLflow run, under its own name."""
        self._client.log_artifact(mlflow_run_id, str(path))

    def set_tag(self, mlflow_run_id: str, key: str, value: str) -> None:
        """Set a tag of an MLflow run."""
        self._client.set_tag(mlflow_run_id, key, value)

    def finish_run(self, mlflow_run_id: str, *, failed: bool) -> None:
        """Close a night's MLflow run."""
        self._client.set_terminated(mlflow_run_id, "FAILED" if failed else "FINISHED")

    def _get_or_create_experiment(self, name: str, artifacts: Path | None) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return str(existing.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))

    def _find_by_tag(self, tag: str, value: str) -> RegisteredModel | None:
        for version in self._client.search_model_versions(f"name='{self._name}'"):
            if version.tags.get(tag) == value:
                return RegisteredModel(str(version.version), str(version.run_id), str(version.tags.get(_DIGEST_TAG, "")))
        return None
