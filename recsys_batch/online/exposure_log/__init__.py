"""The log of what was shown and of what users did with it: segment files that ingest reads, written by a thread of each worker.

- segment_writer: files of frames, rotated by rows, bytes and time, bounded in number and size
- buffered_log: rows that wait for a file, encoded, counted, written by the thread
"""
