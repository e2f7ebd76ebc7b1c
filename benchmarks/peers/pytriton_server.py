"""Triton by pytriton, which calls both instances from this one process: ONNX Runtime on our very ranker.onnx, until SIGTERM."""

import sys

import numpy as np
import onnxruntime as ort
from lookup import K, Lookup
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def infer_of(snapshot: str, lookup: Lookup) -> object:
    """A callable of its own per instance; the lookup is shared, as LMDB opens a file once per process."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(f"{snapshot}/ranker.onnx", options, providers=["CPUExecutionProvider"])

    @batch
    def infer(user_id: np.ndarray) -> dict[str, np.ndarray]:
        users, codes, items, features = zip(*(lookup.get(int(user)) for user in user_id[:, 0]), strict=True)
        feed = {"user_embedding": np.stack(users), "item_embedding": np.stack(items), "features": np.stack(features)}
        scores = session.run(["score"], feed)[0]
        best = [lookup.best(row, mine) for row, mine in zip(scores, codes, strict=True)]
        return {"items": np.stack([one[0] for one in best]), "scores": np.stack([one[1] for one in best])}

    return infer


def main() -> None:
    snapshot, port = sys.argv[1], int(sys.argv[2])
    lookup = Lookup(snapshot)
    config = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="rerank",
            infer_func=[infer_of(snapshot, lookup), infer_of(snapshot, lookup)],
            inputs=[Tensor(name="user_id", dtype=np.int64, shape=(1,))],
            outputs=[Tensor(name="items", dtype=np.int64, shape=(K,)), Tensor(name="scores", dtype=np.float32, shape=(K,))],
            config=ModelConfig(max_batch_size=16, batcher=DynamicBatcher(max_queue_delay_microseconds=100)),
        )
        triton.serve()


if __name__ == "__main__":
    main()
