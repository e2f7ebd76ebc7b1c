"""The Open Inference Protocol (KServe v2) over HTTP and gRPC: what model servers speak and the official tritonclient expects.

- model_api: models as named tensors in, named tensors out; no wire
- snapshot_models: the models of the snapshot in use, ranker and recommend
- snapshot_repository: snapshots listed, loaded and unloaded as versions of the models
- dynamic_batcher: rows of requests that wait at the same time go through a model together
- tensor_codec: tensors as bytes and as JSON values
- bare_json: JSON with NaN and Infinity, within a bound
- infer_json: bodies of inference over HTTP, decoded and encoded
- infer_protobuf: messages of inference over gRPC, decoded and encoded
- content_encoding: compressed bodies, unpacked within bounds
- offload: a thread for long conversions
- rest: the protocol over HTTP, as routes under /v2
- repository_rest: that repository over HTTP, for admins
- grpc_calls: calls over gRPC: tokens, bounds on what is being read, errors as statuses
- grpc_handlers: the methods of the protocol's service over gRPC
- grpc_standard_services: health and reflection, as any gRPC server has them
- grpc_server: the protocol over gRPC, in processes of its own
- grpc_predict_v2_pb2: messages, generated from grpc_predict_v2.proto
"""
