"""Configured rules over items, evaluated once per night: which segments may get an item, and the rules of the business."""

import datetime as dt
import re
from typing import Any, cast

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.config import Config
from recsys_batch.errors import ConfigError
from recsys_batch.ranking.business_rules import ItemRules
from recsys_batch.tables.list_columns import flatten_lists

_NOT_OF_ONE_ROW = re.compile("Subquery|^Exists$|ListQuery|Reflection|UDF|Window|Generator|Aggregate|^Explode|^PosExplode|^Rand|^Uuid")
"""Names of Spark's expressions that read other tables, call other code, look at other rows, or differ from night to night."""


def make_rule_columns(items: DataFrame, config: Config, run_date: dt.date) -> list[Column]:
    """Build the columns over items that ``eligibility_masks`` and ``business_rules`` read; a condition that is null counts as false.

    Raises ConfigError where a condition is not boolean SQL over columns of items.
    """
    rules = config.rules
    columns = [
        _condition(items, f"retrieval.eligibility.{segment}", sql).alias(f"eligible {number}")
        for number, (segment, sql) in enumerate(config.retrieval.eligibility.items())
    ]
    boost = F.lit(0.0)
    for sql, value in rules.boosts.items():
        boost = boost + F.when(_condition(items, "rules.boosts", sql), F.lit(value)).otherwise(F.lit(0.0))
    blocked = _condition(items, "rules.blocklist", rules.blocklist) if rules.blocklist else F.lit(False)
    # Who does not say when an item came cannot say that it is new.
    first_allowed = F.lit(dt.datetime.combine(run_date, dt.time(), dt.UTC) - dt.timedelta(days=rules.max_age_days or 0))
    stale = F.coalesce(F.col("first_seen_ts") < first_allowed, F.lit(True)) if rules.max_age_days else F.lit(False)
    return [*columns, boost.cast("float").alias("boost"), blocked.alias("blocked"), stale.alias("stale")]


def eligibility_masks(table: pa.Table, config: Config) -> dict[str, np.ndarray]:
    """Read segment -> bool [n], the items that it may get, from rows that have the columns of ``make_rule_columns``."""
    return {segment: _to_mask(table[f"eligible {number}"]) for number, segment in enumerate(config.retrieval.eligibility)}


def business_rules(table: pa.Table, config: Config) -> ItemRules:
    """Read the rules in force from rows that have categories and the columns of ``make_rule_columns``."""
    rules = config.rules
    codes = offsets = None
    if rules.max_per_category is not None:
        names, offsets = flatten_lists(table["categories"].combine_chunks())
        encoded = names.dictionary_encode()
        if encoded.null_count:
            raise ConfigError("rules.max_per_category needs names in categories, and an item has one that is null: mend the items table")
        codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int32)
    return ItemRules(
        boost=np.asarray(table["boost"].to_numpy(), dtype=np.float32) if rules.boosts else None,
        blocked=_to_mask(table["blocked"]) if rules.blocklist else None,
        stale=_to_mask(table["stale"]) if rules.max_age_days else None,
        category_codes=codes,
        category_offsets=offsets,
        max_per_category=rules.max_per_category,
    )


def _condition(items: DataFrame, key: str, sql: str) -> Column:
    """Analyse a condition over items without running it; null counts as false."""
    try:
        selected = items.select(F.expr(sql).alias("rule"))
        kind = selected.schema["rule"].dataType.simpleString()
    except (AnalysisException, ParseException) as error:
        raise ConfigError(f"{key} = {sql!r} cannot be evaluated over items: {str(error).splitlines()[0]}") from None
    analysed = cast("Any", selected)._jdf.queryExecution().analyzed().toJSON()
    forbidden = sorted({name for name in re.findall(r'"class":"[\w.]*\.(\w+)"', analysed) if _NOT_OF_ONE_ROW.search(name)})
    if forbidden:
        raise ConfigError(f"{key} = {sql!r} reaches beyond the columns of items ({', '.join(forbidden)}): only plain expressions are taken")
    if kind != "boolean":
        raise ConfigError(f"{key} = {sql!r} gives {kind}, it must give a boolean")
    return F.coalesce(F.expr(sql), F.lit(False))


def _to_mask(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(bool)
