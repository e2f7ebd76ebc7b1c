"""spark-submit jobs/generate.py OPTIONS: the command `recsys-batch generate`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("generate")
