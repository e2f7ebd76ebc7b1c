"""What training reads: everything, or a sample of users that is the same on every cluster, in whole histories."""

from collections import Counter

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.spark.generate import generate_tables
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.spark.training_tables import TrainingPlan, TrainingTables, identify_inputs, plan_training, read_training_tables
from recsys_batch.spark.user_sampling import count_activity, select_sampled_events

pytestmark = pytest.mark.usefixtures("spark")


def with_training(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=settings)})


@pytest.fixture
def generated(spark: SparkSession, config: Config) -> Config:
    generate_tables(spark, config, n_users=600, n_items=400, n_events=6_000, seed=5)
    return config


def plan_and_read(config: Config) -> tuple[TrainingPlan, TrainingTables]:
    inputs = identify_inputs(config)
    plan = plan_training(config, inputs)
    return plan, read_training_tables(config, inputs, plan.sample)


def positives_by_user(table: pa.Table) -> Counter[int]:
    return Counter(table.filter(pa.compute.greater(table["weight"], 0))["user_id"].to_pylist())


def test_without_a_limit_everything_is_read_and_counted(generated: Config) -> None:
    plan, tables = plan_and_read(generated)
    events = positives_by_user(tables.interactions)
    items = tables.interactions.filter(pa.compute.greater(tables.interactions["weight"], 0))["item_id"]
    assert plan.sample is None and tables.interactions.num_rows == plan.size.n_rows == 6_000
    assert (plan.size.n_users, plan.size.n_events) == (len(events), events.total())
    assert (plan.size.n_items, plan.size.n_catalogue) == (len(items.unique()), 400)
    assert plan.jvm_bytes > 2**30


def test_a_sample_has_whole_histories_and_no_more_events_than_asked_for(generated: Config) -> None:
    everything = positives_by_user(plan_and_read(generated)[1].interactions)
    plan, tables = plan_and_read(with_training(generated, max_events=2_000))
    taken = positives_by_user(tables.interactions)
    assert plan.sample is not None and 1_500 < plan.sample.n_events <= 2_000
    assert (plan.size.n_users, plan.size.n_events) == (len(taken), taken.total()) == (plan.sample.n_users, plan.sample.n_events)
    assert all(everything[user] == n for user, n in taken.items())
    assert (plan.sample.of_users, plan.sample.of_events) == (len(everything), everything.total())
    assert set(tables.items["item_id"].to_pylist()) == set(tables.interactions["item_id"].to_pylist())
    assert plan.size.n_items == tables.items.num_rows
    assert tables.users is not None and set(tables.users["user_id"].to_pylist()) == set(taken)


def test_a_sample_is_the_same_however_rows_are_partitioned_and_another_by_another_seed(spark: SparkSession, generated: Config) -> None:
    positives = WarehouseTables(spark, generated).read("interactions").where(F.col("weight") > 0).select("user_id", "item_id")
    sampled = []
    config = with_training(generated, max_events=2_000)
    for events, seed in ((positives, 17), (positives.repartition(7, "item_id"), 17), (positives, 18)):
        sample = plan_training(with_training(config, seed=seed), identify_inputs(config)).sample
        assert sample is not None and sample.of_events == count_activity(events, seed).n_events
        sampled.append(set(select_sampled_events(events, sample).select("user_id").distinct().toArrow()["user_id"].to_pylist()))
    assert sampled[0] == sampled[1] != sampled[2]


def test_strata_are_powers_of_two(spark: SparkSession) -> None:
    rows = [(f"u{n}", n) for n in (1, 2, 3, 4, 7, 8, 1023, 1024) for _ in range(n)]
    counts = count_activity(spark.createDataFrame(rows, "user_id STRING, n INT"), seed=1)
    by_stratum: Counter[int] = Counter()
    for stratum, events in zip(counts.stratum.tolist(), counts.events.tolist(), strict=True):
        by_stratum[stratum] += events
    assert by_stratum == {0: 1, 1: 5, 2: 11, 3: 8, 9: 1023, 10: 1024}
    assert counts.users.sum() == 8 and counts.bucket.min() >= 0 and counts.bucket.max() < 65_536


def test_text_ids_are_sampled_as_numbers_are(trained: Config) -> None:
    plan, tables = plan_and_read(with_training(trained, max_events=1_000))
    assert plan.sample is not None and 500 < plan.sample.n_events <= 1_000
    assert len(set(tables.interactions["user_id"].to_pylist())) == plan.sample.n_users


def test_a_limit_above_all_events_samples_nothing(generated: Config) -> None:
    assert plan_and_read(with_training(generated, max_events=6_000))[0].sample is None


def test_a_limit_below_every_history_says_so(spark: SparkSession, config: Config) -> None:
    generate_tables(spark, config, n_users=2, n_items=400, n_events=6_000, seed=5)
    limited = with_training(config, max_events=1_000)
    with pytest.raises(UsageError, match="max_events = 1000 takes no user"):
        plan_training(limited, identify_inputs(limited))


def test_that_nothing_is_positive_is_said(generated: Config) -> None:
    strict = replace_min_weight(generated, 99.0)
    with pytest.raises(InputMissing, match="none of 6000 interactions has weight > 99"):
        plan_training(strict, identify_inputs(strict))


def replace_min_weight(config: Config, weight: float) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"min_weight": weight})})


def test_the_key_changes_with_the_limit(generated: Config) -> None:
    inputs = identify_inputs(generated)
    assert identify_inputs(with_training(generated, max_events=2_000)).key != inputs.key == identify_inputs(generated).key
    assert inputs.n_rows == 6_000
