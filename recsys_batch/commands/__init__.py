"""The commands of ``recsys-batch``, by the people who type them; heavy imports happen inside each command.

ingest        ingest, generate
models        train, register, export-model
night         nightly, its steps, rollback, status
operations    backfill, maintain
erase         erase
inspection    evaluate, changes, show
stream        stream
plan          plan
report        report
digest        digest
online        export-snapshot, serve
options       options that commands share
source_options  how source files are written: of ingest and evaluate
output        tables and progress on a terminal, results as JSON
"""
