"""What a night leaves, in a form that two of them can be compared in."""

from collections.abc import Callable

import pytest

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import published_run, read_table

OUTPUTS = ("user_embeddings", "item_embeddings", "candidates", "shortfalls", "popular", "topk")
Tables = dict[str, list[tuple[str, ...]]]


@pytest.fixture
def tables_of() -> Callable[[Config], Tables]:
    """Every output table's rows without the time of generation, in a fixed order."""

    def read(config: Config, name: str) -> list[tuple[str, ...]]:
        rows = read_table(config.paths.warehouse, name)
        names = [column for column in rows.schema.names if column != "generated_at"]
        return sorted(tuple(map(str, values)) for values in zip(*(rows[column].to_pylist() for column in names), strict=True))

    return lambda config: {name: read(config, name) for name in OUTPUTS}


@pytest.fixture
def readers_see_nothing_or_all() -> Callable[[Config], None]:
    """Fails where what is published has not all of its rows."""

    def check(config: Config) -> None:
        try:
            run = published_run(config.paths.warehouse)
        except InputMissing:
            return
        assert read_table(config.paths.warehouse, "topk").num_rows == run.n_rows

    return check
