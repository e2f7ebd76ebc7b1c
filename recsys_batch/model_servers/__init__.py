"""The ranker for the model servers that teams have: a folder for each, that the server starts from.

``files/TARGET`` holds what goes into such a folder: code that runs in the server with its packages, settings and a README, in which
``$name`` stands for a value of the model (``string.Template``). Nothing here is imported from there.
"""

TARGETS = ("onnx", "torchserve", "triton", "tfserving", "mlserver")
"""What is exported for: servers, or the model alone."""
