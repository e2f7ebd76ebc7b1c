"""spark-submit jobs/evaluate.py OPTIONS: the command `recsys-batch evaluate`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("evaluate")
