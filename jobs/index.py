"""spark-submit jobs/index.py OPTIONS: the command `recsys-batch index`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("index")
