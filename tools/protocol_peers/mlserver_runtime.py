"""The models of tools/protocol_table.py in MLServer, by its own codecs; which one, says its name."""

import answers
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Model(MLModel):
    """Answers by NumpyCodec, and by StringCodec where texts come."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {tensor.name: tensor for tensor in payload.inputs}
        if self.name == "ranker":
            outputs = [NumpyCodec.encode_output("score", answers.score(NumpyCodec.decode_input(inputs["features"])))]
        else:
            users = inputs["user_id"]
            if users.datatype == "BYTES":
                user_ids = np.array([text.encode() for text in StringCodec.decode_input(users)], dtype=object)
            else:
                user_ids = NumpyCodec.decode_input(users)
            k = int(NumpyCodec.decode_input(inputs["k"])[0]) if "k" in inputs else answers.DEFAULT_K
            items, scores = answers.recommend(user_ids, k)
            texts = StringCodec.encode_output("item_id", [item.decode() for item in items.ravel().tolist()])
            shaped = ResponseOutput(name="item_id", datatype="BYTES", shape=list(items.shape), data=texts.data)
            outputs = [shaped, NumpyCodec.encode_output("score", scores)]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=outputs)
