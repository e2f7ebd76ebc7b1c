#!/usr/bin/env bash
# mlserver 1.7.1: NumpyCodec sends an array of shape [n] as [n, 1], and decoding does not bring it back.
#
# One would expect a codec to be its own inverse. Scores of three rows, shape (3,), leave as [3, 1] and are (3, 1) where they arrive, on the
# server as on the client, although the protocol has [3] for that. Nothing fails: a difference or a product with the (3,) that one has at hand
# is then (3, 3) by numpy's broadcasting, and its mean is another number than that of three rows. Two dimensions come back as they were.
# Whoever compares with what was sent has to flatten, or give the shape of the output himself.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'mlserver==1.7.1'
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from mlserver.codecs import NumpyCodec

scores = np.array([0.5, 0.25, 0.125], np.float32)
output = NumpyCodec.encode_output("score", scores)
back = NumpyCodec.decode_output(output)
twice = NumpyCodec.decode_output(NumpyCodec.encode_output("score", scores.reshape(3, 1)))
difference, flat = np.abs(back - scores), np.abs(back.ravel() - scores)
print(f"mlserver {version('mlserver')}: {scores.shape} is sent as {list(output.shape)} and read as {back.shape}; (3, 1) as {twice.shape}")
print(f"the difference from what was sent has shape {difference.shape} and mean {difference.mean():.4f}, flattened {flat.mean():.4f}")
is_so = list(output.shape) == [3, 1] and back.shape == (3, 1) == twice.shape and difference.shape == (3, 3) and difference.mean() > 0
sys.exit(0 if is_so else "this has changed")
PYTHON
