"""spark-submit jobs/digest.py OPTIONS: the command `recsys-batch digest`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("digest")
