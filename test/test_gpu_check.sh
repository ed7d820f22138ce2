#!/bin/bash
# scripts/gpu_check.sh without a GPU: its programs are stand-ins of a few lines, so that what is
# tested is the script: what it counts, that a run which was cut off goes on, its tables.
here=$(cd "$(dirname "$0")" && pwd)
script=$here/../scripts/gpu_check.sh
# shellcheck source=test/common.sh
. "$here/common.sh"
mkdir -p tree/scripts tree/build/gpu tree/test/golden bin out
cp "$script" tree/scripts/
: >tree/test/golden/one.safetensors
export CALLS=$tmp/calls NO_BUILD=1 SHARED=$tmp/none PYTHON=false PATH=$tmp/bin:$PATH

program() { # file: from stdin, writing down that it was called; NOT names one that fails
    {
        echo '#!/bin/bash'
        # shellcheck disable=SC2016
        echo 'echo "${0##*/} $*" >>"$CALLS"; [[ -n ${NOT-} && "$0 $*" == *$NOT* ]] && { echo "error: no"; exit 1; }'
        cat
    } >"$1"
    chmod +x "$1"
}
program bin/nvidia-smi <<'END'
case "$*" in
*=name\ --*) echo "NVIDIA H200" ;;
-L) echo "GPU 0: NVIDIA H200" ;;
*lms*) echo "1980, 600, 60, 99" && exec sleep 600 ;;
*compute_cap*) echo "${CAPABILITY:-1}" ;;
*) echo 1 ;;
esac
END
program tree/build/gpu/test_ops <<<'echo "12 passed, 0 failed, 0 skipped"'
program tree/build/gpu/test_golden <<<'echo "34 passed, 0 failed, 0 skipped"'
${CC:-cc} -x c -o tree/build/gpu/test_fp8 - <<<'int main(void) { return 0; }'
program tree/build/gpu/bench_kernels <<<'echo "The sum would be 5000 images/s; the floors alone 7000. No more."'
program tree/vit <<<'echo "{\"activations\": 1000, \"total\": 2000, \"images_per_s\": 4000, \"mfu\": 1}"'
program tree/train_gpu <<'END'
if [ "$1" = bench ]; then
    [ -n "${FAULT-}" ] && [ -z "${VIT_GEMM-}" ] && echo "error: CUDA: $FAULT" && exit 1
    printf 'training    5000.0 images/s\ninference   9000.0 images/s\n'
    exit
fi
while [ $# -gt 0 ]; do
    case $1 in --out | --resume) out=$2 ;; --steps) steps=$2 ;; esac
    shift
done
echo "plan: 1.0 kB weights, 0.001 MB activations"
[ "${RANK:-0}" = 0 ] || exit 0
mkdir -p "$out/last" && echo last >"$out/latest"
echo bits >"$out/last/model.safetensors" && echo bits >"$out/last/train_state.safetensors"
for ((s = 1; s <= steps && s <= 20; s++)); do
    echo "step $s/$steps"
    echo "{\"event\":\"step\",\"step\":$s,\"loss\":2.5}"
done >"$out/log.jsonl"
cat "$out/log.jsonl"
if [ "$steps" -gt 1000 ]; then # until another rank dies
    while kill -0 "$(cat "${out%/*}/pid1")"; do sleep 0.1; done
    echo "error: rank 1 has ended"
    exit 1
fi
END
cp tree/train_gpu tree/train_cpu

go() { # part, arguments...
    : >calls
    (cd tree && scripts/gpu_check.sh "$@" "$tmp/out") >log 2>&1
    rc=$?
}
row() { grep -qE "^\| $1 \| $2 \|" log; }
no() { ! "$@"; }
calls() { [ "$(grep -c "^$1" calls)" = "$2" ]; }

NOT='test_golden*bf16' go correct
check "a failed check: status $rc" [ $rc = 1 ]
check "a failed check: row" row "goldens, bf16" fail
check "others pass" row "goldens, fp16" pass
check "resumed runs pass" row "10 steps, resumed for 10, fp16" pass
check "ranks" row "2 NCCL ranks, --pp 2" pass
check "counts" grep -qE '^[0-9]+ passed, 1 failed' log
check "ops four times" calls test_ops 4

objcopy --add-symbol tmpxft_1=0x1 tree/build/gpu/test_fp8 # nvcc's names: the same program
go correct
check "again: status $rc" [ $rc = 0 ]
check "again: says that it goes on" grep -q 'going on$' log
check "again: only what failed" calls test_golden 1
check "again: no op" calls test_ops 0
check "again: no run" calls train_gpu 0
check "again: all are counted" grep -qE '^[0-9]+ passed, 0 failed' log
check "again: a row says so" grep -q '^| ops, fp32 | pass | .*(before) |' log

echo '# another build' >>tree/train_gpu
go correct
check "other programs: from the start" calls test_ops 4
check "other programs: says nothing of going on" no grep -q 'going on$' log
AGAIN=1 go correct
check "AGAIN: from the start" calls test_ops 4

# cut off in the middle of measuring: batches that were measured stay so
NOT='bench*1024' ROUNDS=2 go bench B/16:256,512,1024
check "bench: the other batches count" grep -q '^| B/16 | 5000 (' log
ROUNDS=2 go bench B/16:256,512,1024
check "bench again: one batch is missing" grep -q '^train_gpu bench .*--batch-size 1024' calls
check "bench again: those of before are there" no grep -q '^train_gpu bench .*--batch-size 256' calls
check "bench again: operations once" calls bench_kernels 0
check "bench: in one table" grep -q '^| B/16 | [0-9]* | 4000 | 5000 | 1.25 | 7000 | 0.71 | - |  |$' log

# a kernel of our own that faults: the rest is measured without them; not where memory is short
CAPABILITY=9.0 FAULT="an illegal address" AGAIN=1 ROUNDS=1 go bench B/16:256,512
check "bench, a fault: the batches count" grep -q '^| B/16 | 5000 (' log
check "bench, a fault: once" calls "train_gpu bench" 3
check "bench, a fault: says so" grep -q '^From B/16 batch 256 on without .* an illegal address' log
CAPABILITY=9.0 FAULT="out of memory" AGAIN=1 ROUNDS=1 go bench B/16:256,512
check "bench, no memory: status $rc" [ $rc = 1 ]
check "bench, no memory: not again" calls "train_gpu bench" 2

go correct B/16
check "a model where none belongs" grep -q "^error: correct takes no model" log
go incorrect
refused "an unknown part" 2 "no part .incorrect"
finish
