"""Source files as people have them, read as Arrow rows: no Spark here, so that executors and tests call the same functions.

presets        load_preset: SourceFormat of a published data set
source_format  SourceFormat: how files are written, and which of their columns are ours
listing        list_source_files: the files of a path
column_mapping which columns of a source are ours
file_tasks     FileTask: a file, or a part of one, that a task reads
lines          lines of a text file, of any encoding and compression
csv_rows       lines of CSV to columns
json_rows      lines of JSON to columns
parquet_rows   row groups of Parquet to columns
reading        read_rows, survey_task: a task in whichever format its source has
raw_rows       RawRows: a batch of source rows, in whichever format they were
values         raw columns to ids, numbers, flags, lists
timestamps     raw columns to times by one clock per column
typed_rows     raw rows to rows of interactions, items and users, each with the reason why it cannot be used
verdicts       verdicts on typed rows that need the other rows of their key
survey         what a source holds, found in one pass before any row is parsed
movielens      the layouts of MovieLens
"""
