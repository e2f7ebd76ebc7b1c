"""The server's processes: one that supervises, and the workers that it starts.

supervisor  starts Granian's workers and the gRPC process, and again those that die
worker      one worker process: the application that Granian calls, and the task that follows CURRENT and ROUTES.json
"""
