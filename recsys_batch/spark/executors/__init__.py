"""Code that runs on executors: plain functions over record batches, which tests call without a session.

- functions: the shapes of these functions, their ranges and profiles. part_writer: writes what one makes as files of a slice.
- embed, retrieve, score, verify: the work of the night's steps and of the audit on a range of users.
- engines: torch or ONNX Runtime for the reference ranker, and what a node has.
- carry_forward, changed_events: an incremental run's unchanged rows, and the events of users who changed.
- new_items: items that an index lacks, merged into lists of candidates.
- refresh: users of the stream, by the same functions. assign_lists: items to the lists of an index.
- source_tasks: source files to surveys, typed rows or JSON, for ingest.
- segment_tasks: segment files of the server's log to rows, for ingest.
- daemon: Spark's daemon of Python workers.
"""
