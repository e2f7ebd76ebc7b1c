"""The table contract is complete, commented, and the same in Arrow and in Spark's words."""

import pyarrow as pa
import pytest

from recsys_batch.schemas import TABLES, IdTypes, TableSpec, spark_ddl, spark_type

BOTH = [IdTypes("BIGINT", "STRING"), IdTypes("STRING", "BIGINT")]

CONTRACT = {
    "interactions": "user_id item_id event_ts event_type weight event_date",
    "items": "item_id title categories is_available first_seen_ts attributes",
    "users": "user_id segment attributes",
    "exposures": "request_id user_id item_id position score batch_score candidate_rank propensity ranker_position batch_position "
    "candidate_score source degraded snapshot_id model_version shown_at shown_date context_ts device session_item_ids attributes lists "
    "candidates",
    "feedback": "request_id user_id item_id event_ts event_type weight event_date",
    "user_embeddings": "run_id user_id embedding n_events",
    "item_embeddings": "run_id item_id embedding n_events",
    "candidates": "run_id user_id items",
    "topk": "run_id run_date user_id rank item_id score candidate_rank source model_version generated_at",
    "topk_live": "run_id run_date user_id rank item_id score candidate_rank source model_version generated_at batch_id events_through",
    "popular": "run_id segment rank item_id score",
    "runs": "run_id run_date attempt status published_at table_versions input_versions model_version code_version config_hash "
    "n_users n_rows metrics mlflow_run_id schema_version",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_columns_are_those_that_others_call(name: str) -> None:
    assert [column.name for column in TABLES[name].columns] == CONTRACT[name].split()


@pytest.mark.parametrize("spec", TABLES.values(), ids=list(TABLES))
def test_every_table_and_column_has_a_comment(spec: TableSpec) -> None:
    assert spec.comment
    assert all(len(column.comment) > 5 for column in spec.columns)


@pytest.mark.parametrize("ids", BOTH)
def test_ids_have_the_sources_types_everywhere(ids: IdTypes) -> None:
    for spec in TABLES.values():
        schema = spec.arrow_schema(ids)
        for name, expected in (("user_id", ids.user_arrow), ("item_id", ids.item_arrow)):
            assert name not in schema.names or schema.field(name).type == expected
    assert TABLES["candidates"].arrow_schema(ids).field("items").type.value_type.field("item_id").type == ids.item_arrow


def test_ddl_names_nested_types() -> None:
    ddl = spark_ddl(TABLES["candidates"].arrow_schema(IdTypes("BIGINT", "STRING")))
    assert ddl == "`run_id` STRING, `user_id` BIGINT, `items` ARRAY<STRUCT<item_id:STRING,score:FLOAT>>"


def test_a_type_outside_the_contract_is_an_error() -> None:
    with pytest.raises(TypeError, match="halffloat"):
        spark_type(pa.float16())
