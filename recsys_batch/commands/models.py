"""train, register and export-model: how a model becomes the champion that the night uses, and goes to other servers."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recsys_batch.commands.options import json_option, with_config, with_config_if_any
from recsys_batch.commands.output import format_count, format_size, print_json, print_result, print_table, training_progress
from recsys_batch.config import Config
from recsys_batch.errors import ChampionDeleted, GateRefused, UsageError
from recsys_batch.model_servers import TARGETS
from recsys_batch.registry.promotion import Promotion, decide_promotion

if TYPE_CHECKING:
    from recsys_batch.dataset.user_sample import TrainingSample
    from recsys_batch.registry.bundle import Bundle
    from recsys_batch.registry.mlflow_registry import ModelRegistry
    from recsys_batch.spark.training_tables import TrainingPlan

logger = logging.getLogger("recsys_batch.commands")


@click.command("train", help="Train the reference two-tower and ranker; the alias moves if it beats popularity and the champion.")
@click.option("--max-seconds", type=click.FloatRange(min=1), help="Training budget; overrides training.max_seconds.")
@click.option("--force", is_flag=True, help="Train again although nothing changed since the last training.")
@click.option("--dry-run", is_flag=True, help="Say how many rows, users and items, how much memory and how many minutes; train nothing.")
@json_option
@with_config
def train_command(config: Config, max_seconds: float | None, force: bool, dry_run: bool, as_json: bool) -> None:
    from recsys_batch.model.training import train_bundle as run_training
    from recsys_batch.registry.mlflow_registry import ModelRegistry
    from recsys_batch.spark.training_tables import STATED_ROWS, identify_inputs, plan_training, read_training_tables

    if max_seconds is not None:
        config = config.model_copy(update={"training": config.training.model_copy(update={"max_seconds": max_seconds})})
    inputs = identify_inputs(config)
    if dry_run:
        _print_plan(plan_training(config, inputs), config, as_json=as_json)
        return
    registry = ModelRegistry(config)
    existing = None if force else registry.find_trained(inputs.key)
    if existing is not None:
        sentence = f"model version {existing.version} was trained on exactly these inputs and settings; --force trains again"
        print_result({"done": False, "model_version": existing.version, "reason": sentence}, sentence, as_json=as_json)
        with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
            _require_gate(existing.version, decide_promotion(registry.fetch(existing.version, Path(folder)).manifest["gate"]))
        return
    is_planned = config.training.max_events is not None or inputs.n_rows > STATED_ROWS
    sample = _require_memory(plan_training(config, inputs), config) if is_planned else None
    data = read_training_tables(config, inputs, sample)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
        champion = _fetch_champion_towers(registry, Path(folder))
        with training_progress() as progress:
            tables = (data.interactions, data.items, data.users)
            bundle = run_training(*tables, config, Path(folder) / "bundle", progress, champion, sample)
        params = {**config.model.model_dump(), **config.training.model_dump()}
        version = registry.register(bundle, params, bundle.manifest.get("curves"), training_key=inputs.key).version
    verdict = decide_promotion(bundle.manifest["gate"])
    if verdict.promoted:
        registry.set_champion(version)
    if not as_json:
        metrics = [(name, f"{value:.4f}") for name, value in sorted(bundle.manifest["metrics"].items())]
        print_table(f"model version {version}, validation", ("metric", "value"), metrics)
    sentence = f"model version {version} {'is' if verdict.promoted else 'is not'} the champion: {verdict.reason}"
    result = {"done": True, "model_version": version, "champion": verdict.promoted, "reason": verdict.reason}
    print_result({**result, "metrics": bundle.manifest["metrics"]}, sentence, as_json=as_json)
    _require_gate(version, verdict)


def _print_plan(plan: TrainingPlan, config: Config, *, as_json: bool) -> None:
    """Print what a training would read, hold in memory and take."""
    from recsys_batch.model.training_cost import estimate_cost, read_machine_bytes

    size, cost, machine_bytes = plan.size, estimate_cost(plan.size, config, plan.jvm_bytes), read_machine_bytes()
    if as_json:
        sample = plan.sample.to_dict() if plan.sample is not None else None
        figures = {"n_bytes": cost.n_bytes, "minutes": round(cost.seconds / 60, 1), "machine_bytes": machine_bytes}
        print_json({"dry_run": True, **vars(size), "sample": sample, **figures, "fits": cost.n_bytes <= machine_bytes})
        return
    rows = [
        ("rows of interactions", format_count(size.n_rows)),
        ("positive events trained on", format_count(size.n_events)),
        ("users", format_count(size.n_users)),
        ("items that they took", format_count(size.n_items)),
        ("items in the catalogue", format_count(size.n_catalogue)),
        ("memory at peak, JVM included", format_size(cost.n_bytes)),
        ("memory of this machine", format_size(machine_bytes)),
        ("minutes, about", f"{cost.seconds / 60:.1f}"),
    ]
    note = plan.sample.describe() if plan.sample is not None else "every user is trained on"
    print_table("train --dry-run: nothing was started", ("training", "value"), rows, note=note)
    if cost.n_bytes > machine_bytes:
        click.echo(_explain_shortage(cost.n_bytes, machine_bytes, config))


def _require_memory(plan: TrainingPlan, config: Config) -> TrainingSample | None:
    """Say what a training takes, and return its sample; raises UsageError where this machine has less memory."""
    from recsys_batch.model.training_cost import estimate_cost, read_machine_bytes

    cost, machine_bytes, size = estimate_cost(plan.size, config, plan.jvm_bytes), read_machine_bytes(), plan.size
    if cost.n_bytes > machine_bytes:
        raise UsageError(_explain_shortage(cost.n_bytes, machine_bytes, config))
    logger.info("training on %s", plan.sample.describe() if plan.sample is not None else f"all {size.n_events:,} positive events")
    logger.info(
        "%s users, %s items; about %s of memory at peak, JVM included, and %.1f minutes",
        *(format_count(size.n_users), format_count(size.n_items), format_size(cost.n_bytes), cost.seconds / 60),
    )
    return plan.sample


def _explain_shortage(needed: float, machine_bytes: float, config: Config) -> str:
    current = config.training.max_events
    setting = f"lower training.max_events (it is {current:,})" if current is not None else "set training.max_events"
    return (
        f"this training would take about {format_size(needed)} of memory, the machine has {format_size(machine_bytes)}: {setting}, "
        "which samples users, or train where there is more; `train --dry-run` says what a setting takes"
    )


def _require_gate(version: str, verdict: Promotion) -> None:
    if not verdict.beats_popularity:
        raise GateRefused(f"model version {version} does not beat popularity ({verdict.reason}); the alias stays where it was")


def _fetch_champion_towers(registry: ModelRegistry, folder: Path) -> Bundle | None:
    """Fetch the champion's bundle; None without one, or where it was registered as tables, which have no towers to compare.

    That it was deleted is told, and no error: it is what a training mends.
    """
    try:
        champion = registry.get_champion()
    except ChampionDeleted as deleted:
        logger.warning("nothing to compare with: %s", str(deleted).partition(":")[0])
        return None
    bundle = registry.fetch(champion.version, folder / "champion") if champion is not None else None
    return bundle if bundle is not None and bundle.kind == "two_tower" else None


@click.command(
    "register", help="Register your own model, a bundle, or embedding tables with or without an ONNX ranker; the next night uses it."
)
@click.option("--bundle", "bundle_dir", type=click.Path(exists=True, file_okay=False), help="Folder with bundle.json.")
@click.option("--user-embeddings", metavar="TABLE", help="Delta or Parquet folder, or catalog table: user_id, embedding.")
@click.option("--item-embeddings", metavar="TABLE", help="Delta or Parquet folder, or catalog table: item_id, embedding.")
@click.option("--ranker", type=click.Path(exists=True, dir_okay=False), help="ONNX file: see docs/bring-your-own-model.md.")
@click.option("--no-crown", is_flag=True, help="Register only; leave the alias where it is.")
@json_option
@with_config
def register_command(
    config: Config,
    bundle_dir: str | None,
    user_embeddings: str | None,
    item_embeddings: str | None,
    ranker: str | None,
    no_crown: bool,
    as_json: bool,
) -> None:
    from recsys_batch.registry.bundle import load_bundle
    from recsys_batch.registry.mlflow_registry import ModelRegistry

    tables_given = (user_embeddings is not None) + (item_embeddings is not None)
    if (bundle_dir is None) == (tables_given == 0) or tables_given == 1 or (bundle_dir is not None and ranker is not None):
        raise UsageError("pass either --bundle DIR, or --user-embeddings TABLE --item-embeddings TABLE [--ranker FILE]")
    registry = ModelRegistry(config)
    with tempfile.TemporaryDirectory(prefix="recsys-batch-") as folder:
        if bundle_dir is not None:
            bundle = load_bundle(bundle_dir)
            _check_bundle(bundle, config)
        else:
            from recsys_batch.night.run_locks import user_rows_lock
            from recsys_batch.spark.register import bundle_from_tables
            from recsys_batch.spark.session import get_session

            tables = str(user_embeddings), str(item_embeddings)
            with user_rows_lock(config):
                bundle = bundle_from_tables(get_session(config), config, *tables, ranker, Path(folder) / "bundle")
        version = registry.register(bundle, {"kind": bundle.kind, "embedding_dim": bundle.embedding_dim}).version
    if not no_crown:
        registry.set_champion(version)
    sentence = f"model version {version} registered{'' if no_crown else f' and made {config.mlflow.alias}'}"
    print_result({"model_version": version, "champion": not no_crown, "kind": bundle.kind}, sentence, as_json=as_json)


def _check_bundle(bundle: Bundle, config: Config) -> None:
    """Check that the night can use a bundle: build its parts, and embed some of the warehouse's items with it.

    Raises:
        BundleError: a part is missing, or its item ids are of another type than the warehouse's.
    """
    from recsys_batch.errors import BundleError
    from recsys_batch.model.ranker import Ranker
    from recsys_batch.model.towers import Towers
    from recsys_batch.ranking.features import FeatureSpec
    from recsys_batch.read import has_table, read_table

    if bundle.kind != "two_tower":
        raise BundleError(f"{bundle.path} is of kind {bundle.kind}: register its tables with --user-embeddings and --item-embeddings")
    lacking = [key for key in ("model", "features", "metrics") if key not in bundle.manifest]
    if lacking:
        raise BundleError(f"{bundle.path}: bundle.json lacks {', '.join(lacking)}")
    towers, _, _ = Towers.from_bundle(bundle), Ranker.from_bundle(bundle), FeatureSpec.from_dict(bundle.manifest["features"])
    if config.catalog is None and has_table(config.paths.warehouse, "items"):
        towers.encode_items(read_table(config.paths.warehouse, "items", columns=["item_id", "categories", "attributes"]).slice(0, 10))


@click.command("export-model", help="Write the ranker as a folder that another model server starts from, with a README of the commands.")
@click.option("--target", type=click.Choice(TARGETS), required=True, help="The server; onnx is the model alone.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; empty, or not there yet.")
@click.option("--bundle", "bundle_dir", type=click.Path(exists=True, file_okay=False), help="Folder with bundle.json, instead of a run.")
@click.option("--run-id", help="A published run other than the current one.")
@click.option("--model-version", help="Version on the server, a whole number.  [default: the run's model version; 1 for --bundle]")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Requests that the server joins at most; serve joins its own.",
)
@click.option("--batch-delay-ms", type=click.IntRange(0, 1000), default=1, show_default=True, help="Time that one waits for others.")
@click.option("--tensorflow-python", metavar="PYTHON", help="Interpreter with TensorFlow, for --target tfserving.")
@json_option
@with_config_if_any
def export_model_command(
    config: Config,
    target: str,
    out: Path,
    bundle_dir: str | None,
    run_id: str | None,
    model_version: str | None,
    batch_size: int,
    batch_delay_ms: int,
    tensorflow_python: str | None,
    as_json: bool,
) -> None:
    from recsys_batch.model_servers.export_folder import ServerBatching, export_model
    from recsys_batch.model_servers.ranker_model import ranker_of_bundle

    if bundle_dir is not None and run_id is not None:
        raise UsageError("pass either --bundle DIR or --run-id RUN")
    bundle, version = _open_bundle(config, bundle_dir, run_id)
    model = ranker_of_bundle(bundle, config.online.engine_model, model_version or version)
    files = export_model(model, target, out, ServerBatching(batch_size, batch_delay_ms), tensorflow_python)
    sentence = f"{model.name}, version {model.version}, for {target} is in {out}: {out / 'README.md'} has the commands"
    result = {"target": target, "folder": str(out), "model": model.name, "model_version": model.version, "files": files}
    print_result(result, sentence, as_json=as_json)


def _open_bundle(config: Config, bundle_dir: str | None, run_id: str | None) -> tuple[Bundle, str]:
    """Open (bundle, its model version) of a folder or of a published run."""
    from recsys_batch.registry.bundle import load_bundle

    if bundle_dir is not None:
        return load_bundle(bundle_dir), "1"
    from recsys_batch.read import published_run
    from recsys_batch.storage.artifacts import artifact_root, bundle_folder
    from recsys_batch.storage.node_cache import NodeCache

    warehouse = config.paths.warehouse
    run = published_run(warehouse, run_id)
    cache = NodeCache.from_paths(config.paths)
    return load_bundle(cache.local_copy(bundle_folder(artifact_root(warehouse), run.run_id))), run.model_version
