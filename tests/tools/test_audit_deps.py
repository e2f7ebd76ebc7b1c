import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("audit_deps", Path(__file__).parents[2] / "tools" / "audit_deps.py")
assert spec is not None and spec.loader is not None
audit_deps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit_deps)

CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([CLEAN], 0, "1 packages without a known vulnerability"),
        ([CLEAN, SKIPPED], 0, "1 it does not know"),
        ([CLEAN, BAD], 3, "b 2: PYSEC-1\nb 2: PYSEC-2\n2 known vulnerabilities"),
        ([SKIPPED, SKIPPED], 4, "knows none of 2 packages"),
        ([], 4, "there are no packages"),
    ],
)
def test_the_verdict_is_of_what_was_looked_at(packages: list[dict[str, Any]], code: int, words: str) -> None:
    found, sentence = audit_deps.verdict(json.dumps({"dependencies": packages}), "")
    assert found == code and words in sentence


@pytest.mark.parametrize("answer", ["", "not json", "[]", "{}"])
def test_a_service_that_does_not_answer_is_no_pass(answer: str) -> None:
    code, sentence = audit_deps.verdict(answer, "trace\nconnection refused")
    assert code == 4 and "connection refused" in sentence
