"""spark-submit jobs/export-snapshot.py OPTIONS: the command `recsys-batch export-snapshot`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("export-snapshot")
