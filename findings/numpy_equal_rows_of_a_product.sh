#!/usr/bin/env bash
# numpy 2.4.6 (OpenBLAS 0.3.31): equal rows of a matrix give unequal rows of its product with another matrix.
#
# Whoever scores rows (candidates, users) by one product X @ W takes it that a row's result rests on the row. In its last bits it rests on the
# row's place: OpenBLAS's kernel for AVX2 takes rows in groups of six, and the groups add up in two orders by turns. Of n equal rows in float32
# only n = 1, 2, 3, 4 and 8 come out equal; padding to a multiple of 8, 12 or 16 does not help. einsum takes each row by itself. So ties
# between equal rows break by place, and a row scored again in other company is not equal to itself.
#
# OPENBLAS_CORETYPE=Haswell is what OpenBLAS chooses itself on processors with AVX2 alone. Prints what it saw, and fails when that changes.
set -euo pipefail
grep -qw avx2 /proc/cpuinfo || { echo "this needs a processor with AVX2"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'numpy==2.4.6'
OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np


def has_equal_rows(n, multiply):
    rng = np.random.default_rng(0)
    W, row = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (1, 64)))
    product = multiply(np.repeat(row, n, axis=0), W)
    return bool((product == product[0]).all())


matmul = [n for n in range(1, 201) if has_equal_rows(n, np.matmul)]
einsum = [n for n in range(1, 201) if has_equal_rows(n, lambda X, W: np.einsum("nd,dh->nh", X, W))]
rng = np.random.default_rng(0)
W, row = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64), (1, 64)))
product = np.repeat(row, 36, axis=0) @ W
changes = (np.flatnonzero((product[1:] != product[:-1]).any(axis=1)) + 1).tolist()
print(f"numpy {np.__version__}")
print(f"of n equal rows in a product, all come out equal for n = {matmul}")
print(f"of 36 equal rows, the result changes at rows {changes}, by {np.abs(product - product[0]).max():.1e} at most")
print(f"by einsum they come out equal for {len(einsum)} of 200 n")
sys.exit(0 if matmul == [1, 2, 3, 4, 8] and changes == [6, 12, 18, 24, 30] and len(einsum) == 200 else "this has changed")
PYTHON
