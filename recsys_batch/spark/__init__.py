"""What runs on Spark (with ``night``, the only package that sees pyspark and delta)."""
