"""spark-submit jobs/stream.py OPTIONS: the command `recsys-batch stream`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("stream")
