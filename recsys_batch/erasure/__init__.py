"""Erasure of users: every file, version, snapshot and record that has rows of them written again without, and a tombstone set.

eraser           erase_users: all stages in order, and the report of what was where and is left
erased_users     the ids, and how they are found in rows, raw rows and logs
data_files       Parquet files with rows of users: found, and written again without
table_history    a Delta table and its whole log without users, every version readable as before
log_rewriter     entries of its log: paths, sizes, statistics, notes
run_artefacts    gathered events, changed users, registered vectors, live records
run_counts       popularity and known users that runs have counted
snapshots        snapshots and live overlays
stream_caches    events that streams of this host keep
logged_reports   reports in MLflow that show a user
redis_records    records in Redis or Valkey
exposure_files   log files of the online side
"""
