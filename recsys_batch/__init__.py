"""Nightly batch scoring on Spark with a small online ranker: see README.md."""

__version__ = "0.1.0"
