"""The wire format of /v1: bodies as typed structures, decoded to queries and encoded from results, by whichever front end.

- messages: the structures, and their bounds
- decode: bytes of a request to a query or to events
- encode: a ranking to an answer, an answer to bytes
"""
