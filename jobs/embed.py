"""spark-submit jobs/embed.py OPTIONS: the command `recsys-batch embed`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("embed")
