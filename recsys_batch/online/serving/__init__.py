"""Operations of a worker for a request of any protocol, and the snapshots that it answers from.

ranking_service    the operations: rank, published top-K, user and item details, shadow scoring
loaded_snapshot    a snapshot in use, and where its users' records are read
snapshot_manager   the snapshots in use, each loaded once and warmed up: current, canary, shadow
warm_up            requests that a snapshot answers before it is put in place
traffic_split      ROUTES.json: which users are the canary's, which requests the shadow scores
activation         have all workers go over to a snapshot, or none; roll back
worker_state       what the workers of a server tell each other
micro_batcher      rank calls of one event-loop turn in one run of the model
admission          a bounded number of requests that wait
unfinished_reads   requests that are still being read, the oldest of which give way
freshness          how old a snapshot may be
inspection         a user, an item, a sample of users in words for people
exposure_recorder  what was shown and what came back, on its way to the log
"""
