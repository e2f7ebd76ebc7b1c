"""spark-submit jobs/rollback.py OPTIONS: the command `recsys-batch rollback`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("rollback")
