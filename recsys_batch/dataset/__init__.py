"""Data of items and users for nights and requests, as numpy and Arrow: catalogue, histories, popularity, gathered events.

catalogue         everything about a night's items, memory-mapped and shared by the workers of a node
seen_policy       which of a user's events keep an item out of that user's lists
user_events       users, their events and registered vectors by ranges of user_id
histories         each user's newest positive items
future_split      limits of splits that hold out the future
user_sample       which users a training takes, by stratum of activity
popularity        users per item and segment, and the popular lists that follow
exposure_schema   columns of the files that the online side logs and ingest reads
log_rows          rows of the online side's log, and their MessagePack
log_columns       the same rows as Arrow columns
log_segments      the files of that log: frames of rows, compressed and checksummed
synthetic         made-up users, items and interactions of any size
"""
