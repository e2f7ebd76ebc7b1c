#!/usr/bin/env bash
# onnxruntime 1.32.0: MatMul of one row gives other bits than the same row among others, where the matrix is an input and not a constant.
#
# Whoever ranks a list with a model whose matrix is made at run time (a user's weights, attention) and then one candidate of it alone gets another
# score: a product of one row has a kernel of its own, which adds up in another order. Two rows and more agree, wherever the row stands, and so does
# a single row where the matrix is an initializer, which is packed at load. So a test with constant weights does not find it. Fill a single row
# up to two.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'onnxruntime==1.32.0' 'onnx==1.23.2' 'numpy==2.4.6'
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
X, W = (rng.standard_normal(shape).astype(np.float32) for shape in ((200, 64), (64, 64)))


def rows_that_agree(is_constant):
    """The numbers n of rows whose product is, bit for bit, the first n rows of the product of 200."""
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 64])]
    if not is_constant:
        inputs.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [64, 64]))
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", 64])
    weights = [numpy_helper.from_array(W, "W")] if is_constant else []
    graph = helper.make_graph([helper.make_node("MatMul", ["X", "W"], ["Y"])], "product", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {} if is_constant else {"W": W}
    whole = session.run(None, {"X": X, **feed})[0]
    return [n for n in range(1, 201) if np.array_equal(session.run(None, {"X": X[:n], **feed})[0], whole[:n])]


constant, given = rows_that_agree(True), rows_that_agree(False)
print(f"onnxruntime {ort.__version__}")
print(f"matrix in the model: {len(constant)} of 200 numbers of rows agree with the product of 200 rows, {constant[:3]} ...")
print(f"matrix as an input:  {len(given)} of 200 agree, {given[:3]} ...")
sys.exit(0 if constant == list(range(1, 201)) and given == list(range(2, 201)) else "this has changed")
PYTHON
