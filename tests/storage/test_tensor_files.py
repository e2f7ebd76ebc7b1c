"""Arrays come back from a safetensors file as they were, however they lie in memory; nothing else in the project writes such files."""

import ast
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from recsys_batch.storage.tensor_files import write_tensors

ROOT = Path(__file__).parents[2]
MATRIX = np.arange(24, dtype=np.float32).reshape(4, 6)
ARRAYS = {
    "transposed": MATRIX.T,
    "every_other": MATRIX[:, ::2],
    "reversed": MATRIX[::-1],
    "column": MATRIX[:, 1],
    "fortran": np.asfortranarray(MATRIX),
    "broadcast": np.broadcast_to(MATRIX[0], (3, 6)),
    "axes_swapped": MATRIX.reshape(2, 2, 6).swapaxes(1, 2),
    "mask": (MATRIX > 7).T,
    "codes": np.arange(6, dtype=np.int64)[::2],
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 5), np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_as_it_was_however_it_lies_in_memory(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / "a.safetensors", {name: ARRAYS[name]})
    (loaded,) = load_file(tmp_path / "a.safetensors").values()
    np.testing.assert_array_equal(loaded, ARRAYS[name])
    assert (loaded.dtype, loaded.shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)


def imports_a_save_function(path: Path) -> bool:
    """Whether a file imports a save function of safetensors, or calls one by its module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {"safetensors"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
            if any(alias.name in ("*", "serialize", "serialize_file") or alias.name.startswith("save") for alias in node.names):
                return True
            modules |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            modules |= {alias.asname for alias in node.names if alias.name.startswith("safetensors") and alias.asname}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith(("save", "serialize")))
    return any({name.id for name in ast.walk(call) if isinstance(name, ast.Name)} & modules for call in calls)


@pytest.mark.parametrize(
    "code",
    [
        "from safetensors.numpy import load_file, save_file",
        "from safetensors.torch import save",
        "import safetensors.numpy\nsafetensors.numpy.save_file({}, 'x')",
        "from safetensors import numpy as st\nst.save_file({}, 'x')",
        "import safetensors.numpy as st\nst.save({})",
        "from safetensors import serialize_file",
    ],
)
def test_a_save_function_is_seen_however_it_is_imported(tmp_path: Path, code: str) -> None:
    (tmp_path / "writer.py").write_text(code)
    assert imports_a_save_function(tmp_path / "writer.py")


def test_no_other_file_of_the_project_calls_a_save_function_of_safetensors() -> None:
    folders = ("recsys_batch", "jobs", "tools", "benchmarks", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources = [path for path in sources if "safetensors" in path.read_text(encoding="utf-8")]
    writers = [path.relative_to(ROOT).as_posix() for path in sources if imports_a_save_function(path)]
    assert writers == ["recsys_batch/storage/tensor_files.py"]
