#!/bin/bash
# Threads on the same memory without a lock between, in the program itself: test/test_races.sh TRAIN_CPU,
# which was built with -fsanitize=thread (make races). Several ranks under each kind of layout, data
# loaders, checkpoints, and ranks that are stopped or killed; every report counts as a failure.
here=$(realpath "$(dirname "$0")") program=$(realpath "$1")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$program"
# MPI is not instrumented, but copies by memcpy, which is: a buffer that is used while it is on its way is
# seen. What it does with its own locks and threads is its own.
printf '%s\n' deadlock:mca_ race:libopen-pal race:libpmix race:libevent thread:libpmix >known
export TSAN_OPTIONS="log_path=$tmp/report suppressions=$tmp/known"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 VIT_STARTED=1

tiny="--num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --mlp 64 --batch-size 8
      --lr 0.001 --threads 1 --log-every 1 --watchdog 20"
fake="$tiny --data fake --val-data fake:32 --workers 2"

no_reports() { # name
    local reports
    reports=$(compgen -G "$tmp/report.*")
    # shellcheck disable=SC2086
    [ "$reports" ] && cat $reports >>log && rm -f $reports
    check "$1: no race" [ -z "$reports" ]
}
clean() { # name, status, arguments...
    local name=$1 status=$2 rc
    shift 2
    rm -rf run
    timeout 300 "$program" train --out run "$@" >log 2>&1
    rc=$?
    check "$name: status $rc" [ $rc = "$status" ]
    no_reports "$name"
}

mkdir -p pictures/a pictures/b
for i in $(seq 24); do
    printf 'P3 1 1 255 %d 0 0' "$i" >"pictures/a/$i.ppm"
    printf 'P3 1 1 255 0 %d 0' "$i" >"pictures/b/$i.ppm"
done
echo "no picture" >pictures/b/9.ppm
clean "pictures" 0 $tiny --num-classes 2 --data pictures --workers 3 --epochs 3 --save-every 2 --mixup 0.5 \
    --max-damaged 0.2

if ! ldd "$program" | grep -q 'libmpi' || ! command -v mpirun >/dev/null; then
    skip "no MPI, no ranks"
    finish
fi
for layout in "2" "2 --zero 2" "2 --zero 3 --reduce-dtype bf16" "2 --tp 2" "2 --pp 2 --micro-batch 2" \
    "4 --tp 2 --zero 1" "4 --pp 2 --zero 3 --micro-batch 2"; do
    # shellcheck disable=SC2086
    clean "ranks $layout" 0 $fake --steps 6 --save-every 3 --ema 0.9 --clip 0.5 --ranks $layout
done
# shellcheck disable=SC2086
clean "pictures of ranks" 0 $tiny --num-classes 2 --data pictures --workers 2 --epochs 2 --max-damaged 0.2 --ranks 2

# Ends: a signal, a rank that is killed, one that hangs.
started() { # waits for the first checkpoint
    rm -rf run
    # shellcheck disable=SC2086
    "$program" train --out run $fake --ranks 2 --save-every 5 --steps 1000000 --watchdog 4 >log 2>&1 &
    pid=$!
    wait_for 100 test -e run/latest
    ranks=$(descendants $pid)
    check "it runs" [ "$ranks" ]
}
started
kill -TERM $pid
wait $pid
check "a signal: status $?" grep -q '^stopped after step' log
no_reports "a signal"
for signal in KILL STOP; do
    started
    kill -$signal "${ranks##*$'\n'}"
    wait $pid
    # shellcheck disable=SC2086
    kill -KILL $ranks 2>/dev/null
    check "SIG$signal: all have ended" grep -q '^error: ' log
    no_reports "SIG$signal"
done
finish
