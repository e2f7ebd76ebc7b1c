"""The request side. Nothing here may load pyspark, torch or mlflow."""
