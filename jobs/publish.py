"""spark-submit jobs/publish.py OPTIONS: the command `recsys-batch publish`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("publish")
