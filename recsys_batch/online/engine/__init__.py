"""The ranker on another team's model server: what is asked of it, and when it is left alone.

- remote_ranking: rank requests by its scores. remote_ranker: its scores, within a deadline.
- wire_formats: what each kind of server is sent, and what it answers.
- circuit_breaker: a server that fails is left alone for a while. retry_budget: how many calls may be tried again.
"""
