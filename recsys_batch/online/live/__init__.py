"""The process beside a server that brings its workers the lists which the stream refreshed; of a server it alone reads the warehouse.

- follower: the process: tails topk_live, and keeps an overlay per run
- overlay_stores: where they are kept, on this host or in Redis
- batch_records: files of a micro-batch as records of an overlay
"""
