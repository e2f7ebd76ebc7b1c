"""The Spark session, the Delta tables read and written through it, ingest, and the code that runs on executors.

With ``night`` and ``stream``, the only package that sees pyspark and delta.

- training_tables: what training reads, and its size. user_sampling: users with whole histories, by activity.
- generate: synthetic tables of any size.
- ingest: sources of events, items and users into the warehouse's tables.
- register: imported embedding tables as a bundle. item_catalogue: the item side of the embed step. item_rules: configured rules over items.
- run_artifacts: artefacts of a run, and the executor tasks made of them.
- executors: functions over record batches that run on executors.
- erased_keys: keys of rows that name erased users.
- tables: reader and writer of the Delta tables. views: views in a catalog of what readers see.
- concurrent_jobs: independent parts of a step at the same time.
- session: how a session is made. java: finds the Java that it runs on. versions: what differs between releases of Spark and Delta.
"""
