"""spark-submit jobs/report.py OPTIONS: the command `recsys-batch report`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("report")
