"""What comes from outside is data: nothing is unpickled or evaluated, no secret is in a config or a message."""

import re
from pathlib import Path

import pytest

from recsys_batch.config import load_config
from recsys_batch.errors import ConfigError

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("recsys_batch", "jobs", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN = re.compile(
    r"import (pickle|dill|cloudpickle|joblib|shelve|marshal)\b|from (pickle|dill|cloudpickle|joblib|shelve|marshal) "
    r"|torch\.load\(|allow_pickle=True|yaml\.load\(|\beval\(|\bexec\(|shell=True"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_evaluates_or_calls_a_shell(path: Path) -> None:
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if FORBIDDEN.search(line)]
    assert not found


def test_the_search_finds_what_it_looks_for() -> None:
    for line in ("import pickle", "from joblib import load", "w = torch.load(p)", "np.load(p, allow_pickle=True)", "eval(text)"):
        assert FORBIDDEN.search(line), line
    assert not FORBIDDEN.search("model.evaluate(text)")


def test_a_password_in_the_config_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[mlflow]\ntracking_uri = "postgresql://me:hunter2@host/db"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="RECSYS_BATCH_TRACKING_URI") as refused:
        load_config(tmp_path / "c.toml")
    assert "hunter2" not in str(refused.value)
    assert load_config(None, ["mlflow.tracking_uri=http://host:5000"]).mlflow.tracking_uri == "http://host:5000"
