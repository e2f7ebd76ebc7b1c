"""spark-submit jobs/maintain.py OPTIONS: the command `recsys-batch maintain`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("maintain")
