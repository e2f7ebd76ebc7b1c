"""Delta tables without a JVM: files of a table slice written from Arrow, committed at once, read by ranges of user_id.

slice_writer   Parquet files of one partition, as a task writes them
delta_log      commits of slices, and the data files that the log lists
user_ranges    rows of a range of users from files in order of user_id
user_rows      rows of few users, and rows in memory read as files are
appended_files what a table got since a version, by its log
live_lists     a run's lists in topk_live: which hold, and their compaction
live_records   files of a stream's micro-batches that servers read
list_columns   Arrow list columns as flat values and offsets
raw_rows       the values of a raw row that may be a user's id
tombstones     erased users, by keyed hashes of their ids
run_manifest   the runs table: states of runs, and which one is published
"""
