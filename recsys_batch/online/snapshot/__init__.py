"""A snapshot on disk: one run's user records, items and model, written whole, verified and opened together.

contents        what a snapshot is made of: facts, popular items per segment, users to look at
layout          names of its files, and which of them it needs
manifest        manifest.json: what it is, and the checksum of every file
writer          write a snapshot's folder, whole or not at all
reader          open one: Snapshot, lookup of a user
checks          its parts fit each other, and codes name items that it has
repository      the folder of snapshots, CURRENT and PREVIOUS
verify_process  verify beside a server that answers
string_column   values of a column of text, one by one
user_key        a user's key in a store
user_fingerprints  who is no stranger, though a store has lost the record
user_record     a user's lists as bytes
lmdb_store      records in a file of the snapshot
redis_store     records in Redis or Valkey beside it
live_overlay    records that the stream refreshed, over the snapshot's
redis_overlay   the same in Redis or Valkey, written by one follower of all hosts
item_table      item ids, embeddings, titles, categories
vector_search   items near a vector
"""
