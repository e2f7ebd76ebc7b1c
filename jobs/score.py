"""spark-submit jobs/score.py OPTIONS: the command `recsys-batch score`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("score")
