"""TensorFlow Serving's REST API: its clients ask for the models of the Open Inference Protocol, and need only another address.

- json_tensor: tensors as nested JSON values, by that server's rules
- predict_api: status, metadata and predict, as routes under /v1/models
"""
