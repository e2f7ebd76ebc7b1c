"""spark-submit jobs/backfill.py OPTIONS: the command `recsys-batch backfill`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("backfill")
