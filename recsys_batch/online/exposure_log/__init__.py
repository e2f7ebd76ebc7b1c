"""The log of what was shown and of what users did with it: Parquet files that ingest reads, written by a process beside each worker.

- log_rows: an exposure (an answer that was sent), feedback (an event of a user), and their Arrow columns
- rotating_parquet: whole files only, rotated by rows and time, bounded in number and size
- log_writer: a kind of rows, encoded in batches and counted
- writer_process: the worker's end of the pipe, and the process that writes
"""
