"""`python -m recsys_batch`: the command line."""

from recsys_batch.cli import main

if __name__ == "__main__":
    main()
