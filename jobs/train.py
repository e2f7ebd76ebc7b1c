"""spark-submit jobs/train.py OPTIONS: the command `recsys-batch train`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("train")
