"""The server's processes: one that supervises, and those that it starts.

supervisor       checks, has the addresses, starts the processes
startup_checks   what would keep a server from starting
tls_files        its certificate and key, tried beforehand
listen_address   the address of a host name, had by one server alone
child_process    workers, gRPC processes and the follower, started again where they die
restart_backoff  how long is waited before that
worker           one worker process: the HTTP application, and the tasks that follow CURRENT and ROUTES.json
"""
