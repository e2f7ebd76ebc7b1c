"""Loops that survive their errors, and processes that take one core and end with their server; used by processes of every room above.

- loop_monitor: loops that survive their errors, and say when they last looked
- blas_threads: one thread for numpy's products
- parent_watch: a process that ends with the one that started it
- process_marks: which kinds of processes have started once
"""
