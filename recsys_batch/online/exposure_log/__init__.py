"""The log of what was shown and of what users did with it: Parquet files that ingest reads, written by a process beside each worker.

- exposure: an answer that was sent, and its Arrow columns
- feedback: an event of a user, and its Arrow columns
- arrow_columns: columns of many rows at once
- rotating_parquet: whole files only, rotated by rows and time, bounded in number and size
- log_writer: a kind of rows, encoded in batches and counted
- writer_process: the worker's end of the pipe, and the process that writes
"""
