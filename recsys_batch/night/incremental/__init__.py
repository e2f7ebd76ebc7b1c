"""Rows that an incremental run takes over from the published one, and users that it computes again.

- base_run: the run to go on from, the users who changed since, or why the run has to be a full one.
"""
