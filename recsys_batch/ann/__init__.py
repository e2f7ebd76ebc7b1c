"""Nearest-neighbour indexes and their search (the only package that imports faiss)."""
