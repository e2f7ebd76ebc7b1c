"""Inner-product search over item vectors: exact, or in the inverted lists of an IVF index. The only package that imports faiss.

index            build_index: layout, centroids, inverted lists, files
index_files      immutable files named by their checksum, and their verification
search           open_retriever: memory-map the files of an index
retrievers       the Retriever protocol, exact search and IVF search with re-ranking
inverted_lists   scan the probed lists of a batch of queries
filtered_search  search_unseen: n items per user that the user has not seen
tuning           choose nprobe and over-fetch by recall on sampled users
vector_storage   vectors as float32 or int8, in shards
kernels          inner products and top-k selection that do not depend on the batch
"""
