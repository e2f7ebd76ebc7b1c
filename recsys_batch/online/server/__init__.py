"""The server's processes: one that supervises, and the workers that it starts.

supervisor       checks, has the addresses, starts the processes
startup_checks   what would keep a server from starting
tls_files        its certificate and key, tried beforehand
listen_address   the address of a host name, had by one server alone
worker_pool      Granian's workers, started again where they die
child_process    the gRPC processes and the follower, likewise
restart_backoff  how long is waited before that
worker           one worker process: the application that Granian calls, and the tasks that follow CURRENT and ROUTES.json
"""
