"""Quality of published lists, and their differences from other lists, from the tables alone: numpy and Arrow, no JVM.

metrics              recall, NDCG, hit rate, MRR, coverage, novelty and popularity share of top-K lists
evaluate             a published run against later interactions, beside popularity and the run before
bootstrap            intervals of means over users, and of paired differences
seen_pairs           what users had before a run, and its lists could not hold
exposure_evaluation  what was shown online against later interactions
exposure_metrics     which showings are hits, and metrics of answers and places
off_policy           value of an order that was not shown, by SNIPS on explored places
drift                overlap and score drift of two runs on sampled users
run_diff             what changed for one user or one item between two runs, and why
user_view            one user's history and recommendations, with titles
"""
