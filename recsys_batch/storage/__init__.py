"""Files wherever they lie: local paths and object stores behind the same few functions. Knows nothing of tables or models.

stores        kinds of stores (s3a://, hdfs://): how each library reaches them, and what their refusals mean
filesystems   locations (a path, file:// or in a store): read, write, list, remove
artifacts     content-addressed folders that a run shares with its executors, and the run's pointers to them
node_cache    one verified copy per machine of what an object store holds
file_lock     one process at a time
atomic        files and folders that appear whole, and when they are synced to the disk
checksums     SHA-256 of files
tensor_files  arrays by name, as safetensors: the only writer of that format
"""
