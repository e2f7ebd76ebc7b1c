"""Ranking of candidates in pure numpy, the same at night and online: features, scores of a ranker, rules, top-k.

features         features of a (user, item) pair and of a request's context
onnx_ranker      a ranker as an ONNX file
numpy_ranker     the reference ranker from its weights, for requests
compiled_ranker  the same in one pass of compiled code, where that was built
business_rules   boosts, blocklist, freshness and the cap per category
vector_lengths   lengths of vectors, and vectors of length 1, whatever their size
top_k            the k best of a row, with one order for ties everywhere
"""
