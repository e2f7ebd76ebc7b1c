"""Code that runs on executors: plain functions over record batches, which tests call without a session.

- functions: the shapes of these functions. part_writer: writes what one makes as files of a slice. profiling: a profile of every task.
- embed, retrieve, score, verify: the work of the night's steps and of the audit on a range of users.
- rankers: the model that score runs. assign_lists: items to the lists of an index. range_sum: work per range that writes no table.
- carry_forward, changed_events: an incremental run's unchanged rows, and the events of users who changed.
- daemon: Spark's daemon of Python workers.
"""
