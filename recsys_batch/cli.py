"""The command line ``recsys-batch``; ``jobs/*.py`` call the same commands under spark-submit.

Exit codes: 0 done or already done, 1 failed (may be retried), 2 bad usage or config, 3 a gate refused, 4 inputs missing or stale.
"""

import logging
import signal
import sys
from collections.abc import Sequence

import click

from recsys_batch import __version__, logs
from recsys_batch.commands import digest, erase, ingest, inspection, models, night, online, operations, plan, report, stream
from recsys_batch.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, RecsysBatchError, caused_by_interrupt

EXTRAS = {
    "read": ("deltalake",),
    "report": ("matplotlib", "cycler", "jinja2"),
    "night": ("pyspark", "py4j", "delta", "delta-spark", "torch", "faiss", "mlflow", "scipy", "pandas", "onnx", "threadpoolctl"),
    "online": (
        "httptools",
        "uvloop",
        "lmdb",
        "redis",
        "msgspec",
        "prometheus_client",
        "grpc",
        "grpc_health",
        "grpc_reflection",
        "google",
        "aiohttp",
        "uvloop",
    ),
}
"""Packages that only an extra installs, by what an import or a look for their version misses."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done or already done; 1 failed, may be retried; 2 bad usage or config; 3 a gate refused; "
    "4 inputs missing or stale.",
)
@click.version_option(__version__, package_name="recsys-batch")
@click.option("-v", "--verbose", is_flag=True, help="Debug log, and the stack trace of an error.")
@click.option("--log-format", type=click.Choice(logs.LOG_FORMATS), default="text", show_default=True, help="Lines on standard error.")
def group(verbose: bool, log_format: str) -> None:
    """Batch recommendations on Spark: precompute every user's top-K nightly, publish it all or not at all."""
    logs.configure(log_format)
    logging.getLogger("recsys_batch").setLevel(logging.DEBUG if verbose else logging.INFO)


for _command in (
    ingest.ingest_command,
    ingest.generate_command,
    models.train_command,
    models.register_command,
    models.export_model_command,
    *night.step_commands,
    night.nightly_command,
    night.rollback_command,
    night.status_command,
    operations.backfill_command,
    operations.maintain_command,
    erase.erase_command,
    inspection.evaluate_command,
    inspection.show_command,
    inspection.changes_command,
    report.report_command,
    digest.digest_command,
    stream.stream_command,
    plan.plan_command,
    online.export_snapshot_command,
    online.serve_command,
):
    group.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line, without the program's name; its exit code."""
    try:
        group.main(args=list(arguments), prog_name="recsys-batch", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except click.Abort:
        return _report_interrupt()
    except RecsysBatchError as error:
        _report_error(error, str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        click.echo(f"error: this command needs {error.name}, which this install leaves out: pip install 'recsys-batch[{extra}]'", err=True)
        return EXIT_USAGE
    except Exception as error:
        if caused_by_interrupt(error):
            return _report_interrupt()
        from recsys_batch.storage.stores import explain_refusal

        refusal = explain_refusal(str(error))
        if refusal:
            _report_error(error, refusal)
            return EXIT_FAILED
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        _report_error(error, f"{type(error).__name__}: {first_line}")
        return EXIT_FAILED
    return EXIT_OK


def _report_interrupt() -> int:
    click.echo("interrupted; the same command goes on where this one stopped", err=True)
    return EXIT_FAILED


def _report_error(error: Exception, sentence: str) -> None:
    click.echo(f"error: {sentence}", err=True)
    logger = logging.getLogger("recsys_batch")
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("stack trace", exc_info=error)
    elif not isinstance(error, RecsysBatchError):
        click.echo("(recsys-batch -v COMMAND shows the stack trace)", err=True)


def main(*command: str) -> None:
    """Run the command line of this process, or ``command`` with its options, and exit with the code."""
    # SIGTERM, by which schedulers stop a job, acts as Ctrl-C: the running step records its failure, and the exit code is 1.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run([*command, *sys.argv[1:]]))


def job(command: str) -> None:
    """Run a command as ``jobs/COMMAND.py`` under spark-submit: the same options, the same exit codes."""
    main(command)
