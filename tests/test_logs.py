"""Lines carry the fields that hold where they are logged."""

import json
import logging
from collections.abc import Iterator

import pytest

from recsys_batch.logs import configure, log_context


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = before, level


def lines(form: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configure(form)
    configure(form)
    logger = logging.getLogger("recsys_batch.test")
    logger.setLevel(logging.INFO)
    logger.info("outside")
    with log_context(run_id="r1"):
        with log_context(step="embed"):
            logger.warning("both: %s", "päth\nnext line")
        logger.info("one")
    logger.info("after")
    return capsys.readouterr().err.splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = [line.partition(" ")[2] for line in lines("text", capsys)]
    assert found == ["INFO outside", "WARNING both: päth run_id=r1 step=embed", "line", "INFO one run_id=r1", "INFO after"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = [json.loads(line) for line in lines("json", capsys)]
    assert [(row["level"], row["message"], row.get("run_id"), row.get("step")) for row in found] == [
        ("INFO", "outside", None, None),
        ("WARNING", "both: päth\nnext line", "r1", "embed"),
        ("INFO", "one", "r1", None),
        ("INFO", "after", None, None),
    ]
    assert all(row["time"].endswith("+00:00") for row in found)
