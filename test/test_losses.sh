#!/bin/bash
# The loss of ten steps here and in PyTorch, from the same weights on the same batches: test/test_losses.sh
# PROGRAM VIT. PYTHON chooses an interpreter that has torch and numpy, and timm for LAMB.
binary=$(realpath "$1") tool=$(realpath "$2") root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}")
# shellcheck source=test/common.sh
. "$root/test/common.sh"
need "$binary" "$tool"

if ! "$python" -c 'import torch, numpy' 2>/dev/null; then
    skip "no Python with torch and numpy: losses beside PyTorch's"
    finish
fi
STEPS=10 SVG=$tmp/losses.svg PROGRAM=$binary VIT=$tool PYTHON=$python THREADS=1 "$root/bench/run_losses" >log 2>&1
check "PyTorch's losses, within 1e-3" [ $? = 0 ]
for opt in adamw sgd lamb; do
    if [ $opt = lamb ] && grep -q '^LAMB is left out' log; then
        skip "no timm: LAMB"
    else
        check "ten steps of $opt" grep -q "^| $opt | 10 |" log
    fi
done
check "they are drawn" grep -q '^</svg>\|</svg>$' losses.svg
finish
