"""spark-submit jobs/register.py OPTIONS: the command `recsys-batch register`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("register")
