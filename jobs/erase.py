"""spark-submit jobs/erase.py OPTIONS: the command `recsys-batch erase`."""

from recsys_batch.cli import job

if __name__ == "__main__":
    job("erase")
