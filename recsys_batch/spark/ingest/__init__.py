"""Ingest source files into the warehouse tables. Callers use ``pipeline.run_ingest`` and ``pipeline.read_interactions``.

pipeline           run_ingest, read_interactions: validate, deduplicate, hold out, write
sources            IngestRequest, read_source: open a source of any format under our column names
csv_source         CSV files
movielens_source   the layouts of MovieLens
exposure_source    exposure logs and feedback of the online server
raw_source         RawSource, which every format's reader returns, and the mapping of column names
source_files       list files and read their heads on any Hadoop file system; Spark's errors about them as one sentence
parsing            raw values to ids, numbers, timestamps, flags, lists
validation         raw rows to typed rows with a rejection reason
erased_users       rows of erased users, which come into no table
merge              new rows against the rows of existing tables
summary            IngestSummary: counts of an ingest
"""
