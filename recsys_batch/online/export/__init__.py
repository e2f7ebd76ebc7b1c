"""A published run turned into a snapshot, read by deltalake and Arrow; the only room of ``online`` that reads tables.

snapshot_export   export_snapshot: write, make current, delete old ones
published_run     a published run as the contents of a snapshot, with some users to be looked at
record_builder    its users as records, range by range
synthetic_snapshot  one of made-up data, without a night
"""
