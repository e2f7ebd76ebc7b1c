"""The commands: what they print, and the exit code that a scheduler sees."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recsys_batch.cli import group, run
from recsys_batch.commands.night import print_night
from recsys_batch.config import Config
from recsys_batch.night.steps import OUTPUTS, STEPS
from recsys_batch.read import published_run
from recsys_batch.registry.mlflow_registry import ModelRegistry
from recsys_batch.tables.run_manifest import STEP_NAMES

ROOT = Path(__file__).parent.parent
Options = Callable[[Config], list[str]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nightly"], "Missing option '--run-date'"),
        (["nightly", "--run-date", "yesterday"], "not a date like"),
        (["status", "--conf", "nowhere.toml"], "nowhere.toml does not exist"),
        (["status", "--set", "scoring.topk=3"], "did you mean scoring.top_k?"),
        (["evaluate", "--holdout", "--k", "0"], "positive whole numbers"),
        (["evaluate"], "either --truth PATH or --holdout or --exposures"),
        (["evaluate", "--holdout", "--exposures"], "either --truth PATH or --holdout or --exposures"),
        (["ingest", "--format", "csv"], "pass --source PATH"),
        (["ingest", "--format", "csv", "--source", "x", "--columns", "user"], "expected OUR_NAME=YOUR_COLUMN"),
        (["register"], "either --bundle DIR"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_a_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--conf" not in arguments and arguments[0] not in ("fly",):
        arguments = [arguments[0], "--conf", str(ROOT / "conf" / "smoke.toml"), *arguments[1:]]
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_missing_inputs_are_exit_code_4(config: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "--holdout", *options(config)]) == 4
    assert "no night is published yet" in capsys.readouterr().err
    assert run(["train", *options(config)]) == 4
    assert "run `recsys-batch ingest` before train" in capsys.readouterr().err


def test_status_before_the_first_night(config: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", *options(config)]) == 0
    assert "no night has run yet" in capsys.readouterr().out


def test_status_as_json(published: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--json", *options(published)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["current"] == "2026-03-01-r1"
    assert [(r["status"], r["current"], r["n_users"]) for r in said["runs"]] == [("PUBLISHED", True, 153)]


def test_status_says_how_far_the_lists_go_that_a_stream_refreshed(
    fresh_published: Config, options: Options, put_live_lists: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    put_live_lists(fresh_published.paths.warehouse, "2026-02-28-r1", 9, {"u004": [590]})
    assert run(["status", "--json", *options(fresh_published)]) == 0
    assert "live" not in json.loads(capsys.readouterr().out)
    put_live_lists(fresh_published.paths.warehouse, "2026-03-01-r1", 4, {"u003": [500, 510], "u020": [540]})
    put_live_lists(fresh_published.paths.warehouse, "2026-03-01-r1", 6, {"u003": [570, 580]})
    assert run(["status", "--json", *options(fresh_published)]) == 0
    assert json.loads(capsys.readouterr().out)["live"] == {"n_users": 2, "batch_id": 6, "events_through": "2026-03-01 00:06:00+00:00"}
    assert run(["status", *options(fresh_published)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("live")]
    assert line == "live: 2 users refreshed, to version 6 of interactions, 2026-03-01 00:06:00 UTC"


@pytest.mark.usefixtures("spark")
def test_a_published_date_is_exit_code_0(published: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("nightly", "publish"):
        assert run([command, "--run-date", "2026-03-01", *options(published)]) == 0
        assert "already published as run 2026-03-01-r1" in capsys.readouterr().out


@pytest.mark.usefixtures("spark")
def test_a_refused_gate_is_exit_code_3(fresh_published: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    refused = [*options(fresh_published), "--set", "audit.min_user_coverage=1.0", "--set", "audit.max_popular_share=0.0"]
    assert run(["nightly", "--run-date", "2026-03-02", *refused]) == 3
    assert "is not published: popular_share" in capsys.readouterr().err


def test_training_again_on_the_same_inputs_is_already_done(trained: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *options(trained)]) == 0
    assert "was trained on exactly these inputs" in capsys.readouterr().out


def test_a_dry_run_says_what_a_training_takes_and_starts_nothing(
    trained: Config, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recsys_batch.registry.mlflow_registry.ModelRegistry", None)  # a registry that is opened fails
    assert run(["train", "--dry-run", "--json", *options(trained), "--set", "training.max_events=1000"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dry_run"] and said["fits"] and said["sample"]["n_events"] == said["n_events"] <= 1_000 < said["n_rows"]
    assert said["n_bytes"] > 2**30 and said["minutes"] > 0
    assert run(["train", "--dry-run", *options(trained)]) == 0
    text = capsys.readouterr().out
    assert "nothing was started" in text and "every user is trained on" in text


def test_a_training_that_the_machine_has_no_memory_for_is_refused_before_it_reads(
    trained: Config, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recsys_batch.model.training_cost.read_machine_bytes", lambda: 2**30)
    monkeypatch.setattr("recsys_batch.spark.training_tables.read_training_tables", None)
    small = ["--set", "training.max_events=1000"]
    assert run(["train", "--force", *options(trained), *small]) == 2
    assert "the machine has 1.0 GiB: lower training.max_events (it is 1,000)" in capsys.readouterr().err
    assert run(["train", "--dry-run", *options(trained), *small]) == 0
    assert "this training would take about" in capsys.readouterr().out


def test_training_on_a_sample_says_so_and_the_bundle_keeps_it(
    fresh: Config, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["train", "--json", *options(fresh), "--set", "training.max_events=1000", "--set", f"paths.state={tmp_path / 'mine'}"])
    captured = capsys.readouterr()
    assert code in (0, 3) and "training on a sample of" in captured.err
    said = json.loads(captured.out)
    registry = ModelRegistry(fresh.model_copy(update={"paths": fresh.paths.model_copy(update={"state": str(tmp_path / "mine")})}))
    manifest = registry.fetch(said["model_version"], tmp_path / "fetched").manifest
    assert manifest["sample"]["n_users"] == manifest["n_users"] < manifest["sample"]["of_users"]


def test_show_prints_titles(published: Config, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "--users", "2", *options(published)]) == 0
    assert capsys.readouterr().out.count("Title ") > 20
    assert run(["show", "--user-id", "quiet", *options(published)]) == 0
    assert "user quiet (popular)" in capsys.readouterr().out
    assert run(["show", "--user-id", "nobody", *options(published)]) == 4
    assert "'nobody' has no list" in capsys.readouterr().err


def test_a_light_install_says_what_to_install(
    trained: Config, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "recsys_batch.registry.mlflow_registry", raising=False)
    assert run(["train", *options(trained)]) == 2
    assert "pip install 'recsys-batch[night]'" in capsys.readouterr().err


def test_every_command_has_its_job_and_they_are_the_same() -> None:
    jobs = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    assert set(jobs) == set(group.commands) - {"show", "changes", "serve"}
    assert all(f'job("{name}")' in text for name, text in jobs.items())


def test_steps_are_named_alike_where_they_are_run_and_scheduled() -> None:
    assert (*STEPS, "audit", "publish") == STEP_NAMES and set(OUTPUTS) == set(STEPS)
    text = (ROOT / "jobs" / "airflow" / "recsys_nightly.py").read_text()  # in Airflow's environment the package is not installed
    assert f"STEPS = {STEP_NAMES}".replace("'", '"') in text


def test_a_job_runs_as_a_script(published: Config, options: Options) -> None:
    done = subprocess.run([sys.executable, "jobs/status.py", *options(published)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "2026-03-01-r1" in done.stdout) == (0, True), done.stderr


def test_the_online_side_loads_neither_spark_nor_torch_nor_mlflow() -> None:
    code = "import recsys_batch.online, sys; print([m for m in ('pyspark', 'torch', 'mlflow', 'delta') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_that_ends_tells_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name for name, command in group.commands.items() if not any("--json" in one.opts for one in command.params)} == {"serve"}


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--run-id", "2026-03-01-r1"], ["show", "--users", "2"], ["changes", "--help"], ["nightly", "--help"]]
)
def test_what_people_read_fits_into_80_columns(
    published: Config, options: Options, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([words[0], *(() if "--help" in words else options(published)), *words[1:]]) == 0
    said = capsys.readouterr().out
    assert said and max(map(len, said.splitlines())) <= 80
    assert "--help" in words or words[0] == "show" or "2026-03-01-r1" in said  # no name is broken over two lines


def test_the_table_of_a_night_fits_into_80_columns(published: Config, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {f"{step}.{key}": 123_456_789.0 for step in ("embed", "score") for key in ("rows", "users", "bytes")}
    metrics |= {f"{step}.{key}": 12_345.6 for step in ("embed", "score") for key in ("seconds", "python_seconds", "write_seconds")}
    measured = {"started_at": 0.0, "embed.cores": 64.0, "score.cores": 64.0, **metrics}
    print_night(replace(published_run(published.paths.warehouse), metrics=measured))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("123,456,789" in line for line in lines) == 2
