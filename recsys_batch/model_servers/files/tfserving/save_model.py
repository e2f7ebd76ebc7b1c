"""Write a SavedModel of the ranker: python save_model.py WEIGHTS.npz FOLDER, with TensorFlow installed and nothing else.

Signature serving_default: user_embedding float32 [B, d], item_embedding [B, C, d], features [B, C, F] -> score [B, C].
"""

import sys

import numpy as np
import tensorflow as tf


class RankerModule(tf.Module):
    """Scores candidates: the scaled retrieval score, feature 0, plus a network over user, item, their product and the features."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.weights = {name: tf.constant(array) for name, array in weights.items()}

    def __call__(self, user_embedding: tf.Tensor, item_embedding: tf.Tensor, features: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = self.weights
        per_user = tf.expand_dims(user_embedding @ weights["user"] + weights["bias"], 1)
        per_item = item_embedding @ (tf.expand_dims(user_embedding, 2) * weights["product"] + weights["item"])
        hidden = per_item + tf.tensordot(features, weights["features"], 1) + per_user
        residual = tf.tensordot(tf.nn.relu(hidden), weights["output"], 1)
        return {"score": (features[..., :1] + residual)[..., 0]}


def main() -> None:
    weights, folder = sys.argv[1:]
    ranker = RankerModule(dict(np.load(weights)))
    d, n_features = ranker.weights["user"].shape[0], ranker.weights["features"].shape[0]
    shapes = {"user_embedding": [None, d], "item_embedding": [None, None, d], "features": [None, None, n_features]}
    signature = tf.function(ranker, input_signature=[tf.TensorSpec(shape, tf.float32, name) for name, shape in shapes.items()])
    ranker.scored = signature
    tf.saved_model.save(ranker, folder, signatures={"serving_default": signature.get_concrete_function()})


if __name__ == "__main__":
    main()
