"""Ranking of a request against a snapshot, from candidates to the top K; no clock but the deadline's, and no network.

ladder              rank, rank_many: the ranker, else the batch's order, else popular items
rank_query          a request as the ranking takes it, and its context as features
rank_result         an answer, and the words for where it is from and for what it lacks
scoring_block       the model's input for queries together, and the best of each by its scores
selection           what a request rules out, and the k best of the rest
listed_scores       scores of the candidates that requests bring, the same whichever come together
exploration         places swapped at random, and how likely each of them was
request_candidates  the list that a request brings: looked up, with retrieval scores, and its order without the ranker
cold_start          candidates from the session for a user without an embedding
ablation            what each group of features adds to a score
latency             p99 of what the ranker took lately
"""
