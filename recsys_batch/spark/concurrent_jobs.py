"""Run independent parts of a step at the same time: while Spark plans or waits for one, the cores have another. Called by the night."""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import Any

from pyspark.sql import SparkSession
from pyspark.util import inheritable_thread_target


def run_concurrently(spark: SparkSession, *works: Callable[[], Any]) -> list[Any]:
    """Call functions at the same time, each in a thread of its own, and return their results in order.

    The first one's error is raised when all have ended; whoever is called may be called again then. An interrupt cancels their Spark jobs.
    """
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(inheritable_thread_target(spark)(partial(copy_context().run, work))) for work in works]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            spark.sparkContext.cancelAllJobs()
            raise
    return [future.result() for future in futures]
