"""Run of a night, from its first manifest row to what readers see: the steps in order, the audit, publish, rollback, maintenance.

- runner: run all steps of a date, or one of them; record failures.
- estimate: what the candidates step would do and take, before anything runs.
- maintenance: remove old runs, their artefacts and files that nothing names.
- publish: make a run the one that readers see, or go back to an earlier one.
- audit: read a run back and measure it. gates: the limits that the measured values have to keep to.
- steps: embed, index, candidates, score. incremental: what a run may take over from the published one, or why it may not.
- seen_events: events that keep items out of lists, and those that cease to.
- open_run: resume the unfinished run of a date, or begin one. scoring_engine: torch or ONNX Runtime, by what nodes have.
- run_context: the session, tables, artefacts and manifest of a run in progress. run_store: manifest rows of a warehouse.
- task_sizing: how many tasks a pass is cut into. run_locks: one run of a date, and one change of what readers see, at a time.
"""
