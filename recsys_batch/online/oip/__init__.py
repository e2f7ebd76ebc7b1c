"""The Open Inference Protocol (KServe v2), over HTTP and gRPC: what model servers speak and the official tritonclient expects.

models and batching know nothing of a wire; tensors is the binary form; http and grpc_server are the two wires.
"""
