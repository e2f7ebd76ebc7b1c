"""The request side: snapshots of published runs, and the server that re-ranks their lists per request.

Nothing here loads pyspark, torch or mlflow. From what is on disk up to the wire:

    records, keys      one user's lists as bytes
    stores             where they are: LMDB in the snapshot, or Redis
    contents, export   what a snapshot is made of; a published run as such
    writing, manifest  a snapshot's folder, written whole or not at all; its checksums
    items, popular, nearest, snapshot    a snapshot opened
    ranking            one request against one snapshot: the ladder
    live, routes, switching              which snapshot answers, and how that changes
    requests, service, app, server       the wire
"""
