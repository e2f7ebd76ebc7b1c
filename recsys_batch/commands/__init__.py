"""The commands of ``recsys-batch``, by the people who type them; heavy imports happen inside each command.

ingest        ingest, generate
models        train, register
night         nightly, its steps, rollback, status
operations    backfill, maintain
inspection    evaluate, changes, show
stream        stream
report        report
digest        digest
online        export-snapshot, serve
fill_redis    users' records into Redis, from Spark's executors
options       options that commands share
json_output   results as JSON
terminal      tables and progress on a terminal
"""
