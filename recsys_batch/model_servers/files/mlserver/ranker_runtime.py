"""MLServer's runtime of the ranker: ONNX Runtime on the model that ``parameters.uri`` names."""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri

INPUTS, OUTPUT = ("user_embedding", "item_embedding", "features"), "score"


class RankerRuntime(MLModel):
    """Scores candidates: user_embedding FP32 [B, d], item_embedding [B, C, d], features [B, C, F] -> score [B, C]."""

    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(await get_model_uri(self._settings), options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        arrays = {one.name: NumpyCodec.decode_input(one).astype(np.float32, copy=False) for one in payload.inputs}
        if arrays.keys() != set(INPUTS):
            raise InferenceError(f"inputs are {sorted(arrays)}, expected {', '.join(INPUTS)}")
        try:
            scores = self._session.run([OUTPUT], arrays)[0]
        except Exception as error:  # whatever ONNX Runtime finds wrong with the shapes
            raise InferenceError(str(error)) from None
        outputs = [NumpyCodec.encode_output(OUTPUT, scores)]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
