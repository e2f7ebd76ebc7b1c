"""spark-submit jobs/ingest.py OPTIONS: the command `recsys-batch ingest`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("ingest")
