"""export-snapshot and serve: the online side."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recsys_batch.commands.json_output import json_option, print_result
from recsys_batch.commands.options import with_config, with_config_if_any
from recsys_batch.commands.terminal import format_count
from recsys_batch.config import Config

if TYPE_CHECKING:
    from recsys_batch.online.export.published_run import PublishedRun
    from recsys_batch.online.snapshot.manifest import SnapshotManifest


@click.command(
    "export-snapshot", help="Turn a published run into a snapshot for the online ranker. No JVM where lists go into the snapshot."
)
@click.option("--run-id", help="A published run other than the current one.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of snapshots.  [default: online.snapshots]")
@click.option("--activate/--no-activate", default=True, show_default=True, help="Let servers go over to it.")
@json_option
@with_config
def export_snapshot_command(config: Config, run_id: str | None, out: Path | None, activate: bool, as_json: bool) -> None:
    from recsys_batch.online.export.published_run import open_published_run
    from recsys_batch.online.serving.traffic_split import read_traffic_split
    from recsys_batch.online.snapshot import repository
    from recsys_batch.storage.node_cache import NodeCache

    folder, began = out or Path(config.online.snapshots), time.monotonic()
    run = open_published_run(config.paths.warehouse, NodeCache.from_paths(config.paths), run_id, config.retrieval.metric)
    name = run.run.run_id
    made, said = name not in repository.list_snapshots(folder), []
    if not made:
        said.append(f"snapshot {name} is in {folder} already")
    else:
        manifest = _written(config, run, folder)
        size = sum(entry["bytes"] for entry in manifest.files.values())
        told = f"{format_count(manifest.n_users)} users, {format_count(manifest.n_items)} items, {size / 2**20:,.1f} MiB"
        said.append(f"snapshot {name}: {told} in {time.monotonic() - began:.1f} s, in {folder / name}")
    if activate and repository.read_current(folder) != name:
        repository.set_current(folder, name)
        said.append(f"{folder / repository.CURRENT_FILE} names {name} now")
    gone = list(repository.delete_old(folder, config.online.keep, read_traffic_split(folder).names))
    said += [f"removed {one}: online.keep = {config.online.keep}" for one in gone]
    result = {"snapshot": name, "done": made, "folder": str(folder / name), "current": repository.read_current(folder), "removed": gone}
    print_result(result, "\n".join(said), as_json=as_json)


def _written(config: Config, run: PublishedRun, folder: Path) -> SnapshotManifest:
    from recsys_batch.online.snapshot.writer import write_snapshot

    if config.online.store == "lmdb":
        return write_snapshot(folder, run.contents(with_records=True, n_samples=config.online.samples))
    from recsys_batch.commands.fill_redis import fill_redis

    return write_snapshot(folder, run.contents(with_records=False, n_samples=config.online.samples), lambda: fill_redis(config, run))


@click.command("serve", help="Answer ranking requests from the current snapshot, and go over to others as they come.")
@click.option("--snapshots", type=click.Path(path_type=Path), help="Folder of snapshots.  [default: online.snapshots]")
@click.option("--host", help="Address.  [default: online.host]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: online.port]")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Open Inference Protocol over gRPC.  [default: online.grpc_port]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: online.workers, or one per core]")
@click.option("--exposures", type=click.Path(path_type=Path), help="Folder for the log of what was shown.  [default: online.exposures]")
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="PEM file; HTTPS, with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file.")
@with_config_if_any
def serve_command(
    config: Config,
    snapshots: Path | None,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    workers: int | None,
    exposures: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Tokens come from RECSYS_BATCH_ADMIN_TOKEN and RECSYS_BATCH_CLIENT_TOKEN."""
    from recsys_batch.online.server.supervisor import run_server
    from recsys_batch.online.settings import ServerSettings

    options = {"host": host, "port": port, "grpc_port": grpc_port, "workers": workers, "exposures": exposures, "snapshots": snapshots}
    settings = ServerSettings.from_section(config.online, tempfile.mkdtemp(prefix="recsys-batch-serve-"), **options)
    click.echo(f"serving {settings.snapshots} on {settings.host}:{settings.port} with {settings.workers} workers", err=True)
    run_server(settings, certificate=tls_certificate, key=tls_key)
