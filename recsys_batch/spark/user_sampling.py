"""Sample users with whole histories on the cluster: a hash of user_id and the seed decides, in each stratum of activity."""

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recsys_batch.dataset.user_sample import N_BUCKETS, ActivityCounts, TrainingSample


def count_activity(positives: DataFrame, seed: int) -> ActivityCounts:
    """Count users and events by stratum and hash bucket; ``positives`` has a row per event with user_id."""
    counted = _count_by_user(positives, seed).groupBy("stratum", "bucket").agg(F.count("*").alias("users"), F.sum("n").alias("events"))
    rows = counted.toArrow()
    return ActivityCounts(*(np.asarray(rows[name], dtype=np.int64) for name in ("stratum", "bucket", "users", "events")))


def select_sampled_events(positives: DataFrame, sample: TrainingSample) -> DataFrame:
    """Select the rows of the sample's users, all of each, in the columns of ``positives``."""
    highest = max(sample.thresholds.values(), default=0)
    # Most rows go here, before anything is shuffled.
    likely = positives.where(_bucket(sample.seed) < highest)
    threshold = F.lit(0)
    for stratum, limit in sample.thresholds.items():
        threshold = F.when(F.col("stratum") == stratum, limit).otherwise(threshold)
    users = _count_by_user(likely, sample.seed).where(F.col("bucket") < threshold).select("user_id")
    return likely.join(users, "user_id", "left_semi")


def _count_by_user(positives: DataFrame, seed: int) -> DataFrame:
    """Count each user's events: user_id, n, stratum, bucket."""
    counts = positives.groupBy("user_id").agg(F.count("*").alias("n"))
    stratum = F.length(F.bin("n")) - 1  # floor(log2 n) without a logarithm: binary digits, less one
    return counts.withColumn("stratum", stratum).withColumn("bucket", _bucket(seed))


def _bucket(seed: int) -> Column:
    return F.pmod(F.xxhash64(F.lit(seed), F.col("user_id")), F.lit(N_BUCKETS)).cast("int")
