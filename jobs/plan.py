"""spark-submit jobs/plan.py OPTIONS: the command `recsys-batch plan`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("plan")
