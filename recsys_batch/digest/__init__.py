"""A few items per user for an e-mail sender, none sent twice, of a whole published run. Reads the tables without a JVM.

builder          makes a digest: choose, log, hand out
digest_users     reads the run's users range by range
slot_choosers    a range's slots: chosen now, or as the log has them
slot_selection   the first items that may be sent, filled up with popular ones
slot_blocks      slots with titles, and reasons: the item of a user's history that explains a slot
range_events     interactions sorted into ranges of users
sent_log         the Delta table of what was sent to whom
output           the Parquet file, or JSON lines and their schema
record_schema    a record in Arrow and in JSON Schema
"""
