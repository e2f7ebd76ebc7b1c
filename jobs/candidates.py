"""spark-submit jobs/candidates.py OPTIONS: the command `recsys-batch candidates`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("candidates")
