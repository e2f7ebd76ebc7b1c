"""The HTTP front end of a worker: an RSGI application, its routes and their document; no ranking happens here.

- app: the RSGI application: admission, tokens, errors as statuses
- error_statuses: errors of handlers as statuses with a sentence
- body_reader: bodies of requests, each within a time, and unfinished ones within a bound
- router: request, response, and the table of routes
- endpoints: every endpoint of /v1, health, metrics and the document, declared once
- openapi: the OpenAPI document of the declared routes
- static_page: the explorer page, served from memory
"""
