"""spark-submit jobs/status.py OPTIONS: the command `recsys-batch status`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("status")
