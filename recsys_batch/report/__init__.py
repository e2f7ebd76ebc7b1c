"""What a night computed, as one page to look at. Reads the tables without a JVM."""
