"""spark-submit jobs/audit.py OPTIONS: the command `recsys-batch audit`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("audit")
