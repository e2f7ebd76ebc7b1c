"""spark-submit jobs/export-model.py OPTIONS: the command `recsys-batch export-model`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("export-model")
