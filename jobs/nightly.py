"""spark-submit jobs/nightly.py OPTIONS: the command `recsys-batch nightly`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("nightly")
