"""A ranker as an ONNX file, which ``register --ranker`` checks and the online side runs. No torch."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from recsys_batch.errors import BundleError

INPUTS = ("user_embedding", "item_embedding", "features")
OUTPUT = "score"


class OnnxRanker:
    """Scores candidates with an ONNX model, on one thread of ONNX Runtime.

    The model takes user_embedding float32 [B, d], item_embedding float32 [B, C, d] and features float32 [B, C, F] and answers score
    float32 [B, C]; B and C are free. Raises BundleError where it is not an ONNX model, or has other inputs or outputs than those.
    """

    def __init__(self, path: str | Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{path} is not an ONNX model that ONNX Runtime loads: {str(error).splitlines()[0]}") from None
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        if inputs != set(INPUTS) or OUTPUT not in outputs:
            raise BundleError(
                f"{path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                f"a ranker has inputs {', '.join(INPUTS)} and output {OUTPUT}"
            )

    def score(self, user_embeddings: np.ndarray, item_embeddings: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Score candidates: float32 [B, C] from float32 [B, d], [B, C, d], [B, C, F]."""
        feed = dict(zip(INPUTS, (user_embeddings, item_embeddings, features), strict=True))
        scores: np.ndarray = self._session.run([OUTPUT], feed)[0]
        return scores
