"""The ranker for the model servers that teams have: a folder for each, that the server starts from.

``files/TARGET`` holds what goes into such a folder: code that runs in the server with its packages, settings and a README, in which
``$name`` stands for a value of the model (``string.Template``). Nothing here is imported from there.

ranker_model     the ranker of a bundle, under the name and version that a server has it by
export_folder    writes a folder
"""

TARGETS = ("onnx", "torchserve", "triton", "tfserving", "mlserver")
"""What is exported for: servers, or the model alone."""
