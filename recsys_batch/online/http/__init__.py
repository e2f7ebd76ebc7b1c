"""The HTTP front end of a worker: connections, the application, its routes and their document; no ranking happens here.

- listener: the socket of a worker, and its end
- connection: HTTP/1.1 on one connection: requests and answers in order, each within times and bounds
- connection_bounds: what the connections of a worker share: how many, and how long each may take
- headers: header fields and the target of a request
- response_head: status line and header fields of an answer
- app: the application: admission, tokens, errors as statuses
- error_statuses: errors of handlers as statuses with a sentence
- router: request, response, and the table of routes
- endpoints: every endpoint of /v1, health, metrics and the document, declared once
- openapi: the OpenAPI document of the declared routes
- static_page: the explorer page, served from memory
"""
