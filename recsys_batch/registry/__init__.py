"""Models as versioned bundles: written, verified, registered and promoted to champion.

bundle            the folder of JSON, safetensors and ONNX with checksums that is a model
mlflow_registry   versions, the champion alias and metrics of nights (the only file that imports mlflow)
promotion         the gate between a newly trained version and the alias
"""
