"""Ingest source files into the warehouse tables. Callers use ``pipeline.run_ingest`` and ``pipeline.read_interactions``.

pipeline           run_ingest, read_interactions: parse, deduplicate, hold out, write
sources            IngestRequest, open_sources: the sources of a request, kind by kind
opened_source      OpenedSource: files as tasks of executors, or a table that Spark reads
exposure_source    exposure logs and feedback of the online server
segment_source     OpenedSegments: the segment files of that server's log
source_files       list files on any file system; Spark's errors about them as one sentence
validation         verdicts on typed rows that need other rows
holdout            which interactions are held out for evaluation
rejections         rejected rows with their source's text, and sources of which too many are
notes              sentences about an ingest for who runs it
merge              new rows against the rows of existing tables
summary            IngestSummary: counts of an ingest
"""
