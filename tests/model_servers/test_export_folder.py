"""What export-model writes for each server, and what it refuses. Servers run it in test_real_servers.py."""

import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.scoring_calls import ScoringCall, largest_difference
from recsys_batch.cli import group, run
from recsys_batch.config import Config
from recsys_batch.errors import BundleError, UsageError
from recsys_batch.model_servers import TARGETS, export_folder
from recsys_batch.model_servers.export_folder import ServerBatching, export_model
from recsys_batch.model_servers.ranker_model import ExportableRanker, ranker_of_bundle
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.ranking.onnx_ranker import INPUTS, OnnxRanker
from recsys_batch.registry.bundle import Bundle, load_bundle, write_bundle
from recsys_batch.storage.artifacts import artifact_root, bundle_folder

WITHOUT_TENSORFLOW = [target for target in TARGETS if target != "tfserving"]
FILES = Path(export_folder.__file__).parent / "files"


@pytest.fixture
def bundle(published: Config, published_snapshot: Snapshot) -> Bundle:
    return load_bundle(bundle_folder(artifact_root(published.paths.warehouse), published_snapshot.snapshot_id))


def test_every_target_has_its_files_and_no_other_has() -> None:
    assert sorted(path.name for path in FILES.iterdir()) == sorted(TARGETS)
    assert set(export_folder._WRITERS) == set(WITHOUT_TENSORFLOW)


@pytest.mark.parametrize("target", WITHOUT_TENSORFLOW)
def test_a_folder_has_the_model_of_the_run_a_readme_and_an_example(
    export: Callable[..., Path], published_snapshot: Snapshot, target: str
) -> None:
    folder = export(target)
    readme = (folder / "README.md").read_text()
    version = published_snapshot.model_version
    assert readme.startswith(f"# ranker, version {version}, ") and re.search(r"\$\{?(name|version|dim|batch)", readme) is None
    if target == "torchserve":
        archive = zipfile.ZipFile(folder / "model-store" / f"ranker-{version}.mar")
        model, names = archive.read("ranker.onnx"), set(archive.namelist())
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
        assert (manifest["modelName"], manifest["modelVersion"]) == ("ranker", version)
        assert {manifest["handler"], manifest["serializedFile"], manifest["configFile"]} < names
        assert b"batchSize: 1\nmaxBatchDelay: 1\n" in archive.read("model-config.yaml")
    else:
        (model, *others) = [path.read_bytes() for path in folder.rglob("*.onnx")]
        assert len(others) == (target == "triton") and all(other == model for other in others)
    assert model == (published_snapshot.folder / "ranker.onnx").read_bytes()
    request, expected = (json.loads((folder / f"example_{what}.json").read_text()) for what in ("request", "response"))
    arrays = (
        {one["name"]: np.reshape(one["data"], one["shape"]) for one in request["inputs"]}
        if "inputs" in request
        else {name: np.array(value) for name, value in request.items()}
    )
    ranker = OnnxRanker(published_snapshot.folder / "ranker.onnx")
    assert np.array_equal(ranker.score(*(arrays[name].astype(np.float32) for name in INPUTS)), np.float32(expected["score"]))


def test_batching_and_version_are_as_asked(export: Callable[..., Path]) -> None:
    more = ("--batch-size", "16", "--batch-delay-ms", "3", "--model-version", "12", "--set", "online.engine_model=re-rank")
    config = (export("triton", *more) / "model-repository" / "re-rank" / "config.pbtxt").read_text()
    assert 'name: "re-rank"' in config and "preferred_batch_size: [ 16 ]" in config and "delay_microseconds: 3000" in config
    assert (export("mlserver", *more) / "re-rank" / "12" / "model-settings.json").exists()


def test_a_delay_that_torchserve_takes_for_another_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    model = ranker_of_bundle(bundle, "ranker", "1")
    with pytest.raises(UsageError, match="its default, 100 ms"):
        export_model(model, "torchserve", tmp_path / "out", ServerBatching(8, 0))
    assert not list(tmp_path.iterdir())
    export_model(model, "torchserve", tmp_path / "out", ServerBatching(1, 0))


def test_a_bundle_is_exported_without_a_warehouse(bundle: Bundle, tmp_path: Path) -> None:
    command = ["export-model", "--target", "onnx", "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--json"]
    command += ["--model-version", "4"]
    answer = CliRunner().invoke(group, command)
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert (told["model"], told["model_version"]) == ("ranker", "4")
    assert told["files"] == ["README.md", "example_request.json", "example_response.json", "ranker.onnx"]


def test_nothing_is_written_over(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export-model", "--target", "onnx", "--bundle", str(bundle.path), "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    assert run(command) == 0
    assert run(command) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("version", ["0", "01", "1.5", "made-up", "\u0663", ""])
def test_a_version_that_no_server_takes_is_refused(bundle: Bundle, version: str) -> None:
    with pytest.raises(UsageError, match="whole number above 0"):
        ranker_of_bundle(bundle, "ranker", version)


@pytest.mark.parametrize("name", ["a/b", "", "..", "a b"])
def test_a_name_that_is_no_folder_is_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(UsageError, match="engine_model"):
        ranker_of_bundle(bundle, name, "1")


def test_a_bundle_without_a_ranker_says_so(bundle: Bundle, tmp_path: Path) -> None:
    bare = write_bundle(tmp_path, {**bundle.manifest, "kind": "embeddings"})
    with pytest.raises(BundleError, match="no ranker to export"):
        ranker_of_bundle(bare, "ranker", "1")


def test_a_saved_model_needs_tensorflow_and_the_reference_ranker(bundle: Bundle, tmp_path: Path) -> None:
    model = ranker_of_bundle(bundle, "ranker", "1")
    brought = ExportableRanker(model.name, model.version, model.onnx_path, {}, model.dim, model.n_features)
    for one, python, words in ((model, None, "--tensorflow-python"), (brought, "python", "server that runs ONNX")):
        with pytest.raises(UsageError, match=words):
            export_model(one, "tfserving", tmp_path / "out", ServerBatching(), python)


@pytest.mark.parametrize(("python", "words"), [("/nowhere/python", "No such file"), (sys.executable, "tensorflow")])
def test_an_interpreter_that_cannot_write_it_leaves_nothing(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], python: str, words: str
) -> None:
    command = ["export-model", "--target", "tfserving", "--bundle", str(bundle.path), "--out", str(tmp_path / "out")]
    assert run([*command, "--tensorflow-python", python]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


class Context:
    """TorchServe's, of a batch: headers of requests, and what the handler says about its answers."""

    def __init__(self, folder: Path) -> None:
        self.manifest = {"model": {"modelName": "ranker", "modelVersion": "7", "serializedFile": "ranker.onnx"}}
        self.system_properties = {"model_dir": str(folder)}
        self.request_headers: dict[int, dict[str, str]] = {}
        self.statuses: dict[int, int] = {}
        self.headers: dict[int, dict[str, str]] = {}

    def get_request_header(self, number: int, name: str) -> str | None:
        return self.request_headers.get(number, {}).get(name)

    def set_response_status(self, code: int, phrase: str, number: int) -> None:
        self.statuses[number] = code

    def set_response_header(self, number: int, name: str, value: str) -> None:
        self.headers.setdefault(number, {})[name] = value

    def set_response_content_type(self, number: int, value: str) -> None:
        self.headers.setdefault(number, {})["content-type"] = value


def test_torchserves_handler_answers_each_request_of_a_batch_in_its_own_form(
    published_snapshot: Snapshot, calls: list[ScoringCall]
) -> None:
    from recsys_batch.online.engine.wire_formats import TorchServe

    spec = importlib.util.spec_from_file_location("handler", FILES / "torchserve" / "handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler, context = module.RankerHandler(), Context(published_snapshot.folder)
    handler.initialize(context)
    columns = [dict(zip(INPUTS, (array.tolist() for array in call[:3]), strict=True)) for call in calls[:3]]
    tensors = [{"name": name, "shape": array.shape, "data": array.ravel()} for name, array in zip(INPUTS, calls[3][:3], strict=True)]
    request = TorchServe().encode("ranker", "7", calls[-1][:3])
    context.request_headers[5] = request.headers
    wrong, unlike = {**columns[0], "features": [[[0.0]]]}, {**columns[0], "features": columns[0]["features"] * 2}
    bodies = [*columns, {"inputs": tensors}, wrong, request.body, b"{no json", None, unlike]
    answers = handler.handle([{"body": body} for body in bodies], context)
    for answer, call in zip(answers[:3], calls[:3], strict=True):
        assert largest_difference(np.array(answer["score"]), call.expected) < 1e-5 and answer["model_version"] == "7"
    (output,) = answers[3]["outputs"]
    assert largest_difference(np.reshape(output["data"], output["shape"]), calls[3].expected) < 1e-5
    assert largest_difference(TorchServe().decode(context.headers[5], answers[5]), calls[-1].expected) < 1e-5
    assert context.statuses == {4: 400, 6: 400, 8: 400} and "features has shape (1, 1, 1), expected" in answers[4]["message"]
    assert "are not [B, d], [B, C, d], [B, C, F]" in answers[8]["message"]
    dim = published_snapshot.items.catalogue.embeddings.shape[1]
    assert answers[7]["inputs"][1] == {"name": "item_embedding", "datatype": "FP32", "shape": [-1, -1, dim]}
