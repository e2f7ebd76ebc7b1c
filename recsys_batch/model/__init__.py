"""The reference model (the only package that imports torch)."""
