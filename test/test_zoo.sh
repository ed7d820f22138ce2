#!/bin/bash
# Networks of other libraries beside this program: test/test_zoo.sh BUILD VIT. PYTHON chooses one that has
# torch, timm, transformers, torchvision, onnx and onnxruntime; without such a one all of it is skipped.
here=$(dirname "$0") log=$(mktemp)
trap 'rm -f "$log"' EXIT
${PYTHON:-python3} "$here/zoo.py" --zoo "$1/zoo" --vit "$(realpath "$2")" >"$log" 2>&1
rc=$?
if [ $rc = 77 ] || ! command -v "${PYTHON:-python3}" >/dev/null; then
    grep '^skipped' "$log"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
cat "$log"
exit $rc
