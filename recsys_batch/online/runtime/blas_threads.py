"""Threads of numpy's linear algebra in a process that answers requests: one, as every core has a worker."""

from threadpoolctl import threadpool_limits


def limit_blas_threads() -> None:
    """Limit the BLAS that numpy has loaded to one thread: with more, workers wait for each other at products of microseconds."""
    threadpool_limits(1, user_api="blas")
