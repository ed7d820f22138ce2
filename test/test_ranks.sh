#!/bin/bash
# Training by several processes on CPUs, which talk MPI: test/test_ranks.sh TRAIN_CPU [SHARED]
# Ranks must have the bits of one process that computes their parts as micro-batches.
here=$(realpath "$(dirname "$0")") program=$(realpath "$1")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$program"
# leaks are MPI's own; libraries that make mistakes are loaded before the sanitizer
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0:verify_asan_link_order=0

tiny="--data fake --num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2
      --mlp 64 --batch-size 8 --lr 0.001 --workers 1 --threads 1 --val-data none --log-every 1"
dropped="--dropout 0.1 --attention-dropout 0.1 --drop-path 0.2 --label-smoothing 0.1 --clip 0.5
         --mixup 0.5 --cutmix 0.5 --mix-per sample --mix-group 2 --ema 0.9"

train() { # run directory, arguments...
    local out=$1
    shift
    rm -rf "$out"
    timeout 60 "$program" train --out "$out" "$@" >log 2>&1
    rc=$?
    check "$out: status $rc of $*" [ $rc = 0 ]
}
go_on() { # run, copy of it, command...
    local from=$1 to=$2
    shift 2
    cp -r "$from" "$to"
    timeout 60 "$@" --resume "$to" >log 2>&1
    rc=$?
    check "$to: status $rc of $*" [ $rc = 0 ]
    check "$to: it went on" grep -q '^resumed   at step 3' log
}
bad() { # name, status, pattern, command...
    local name=$1 status=$2 pattern=$3
    shift 3
    timeout 60 env "$@" >log 2>&1
    rc=$?
    # MPICH's own mpirun kills all when one has ended, and adds up what all have ended with
    [ "$mpich$1" = 1mpirun ] && [ $rc != 0 ] && status=$rc
    refused "$name" "$status" "$pattern"
}
background() { # run directory, arguments...: starts it, waits for its first step
    local out=$1
    shift
    rm -rf "$out"
    : >"log.$out"
    "$program" train --out "$out" "$@" --steps 100000000 --log-every 1 >"log.$out" 2>&1 &
    pid=$!
    for _ in $(seq 100); do grep -q '^step' "log.$out" && break; sleep 0.1; done
    ranks=$(descendants $pid)
    cp "log.$out" log
    check "$out: it runs" [ "$ranks" ]
}
gone() { # whether all ranks have gone within 10 seconds; if not, they go now
    for _ in $(seq 100); do
        # shellcheck disable=SC2086
        kill -0 $ranks 2>/dev/null || return 0
        sleep 0.1
    done
    # shellcheck disable=SC2086
    kill -KILL $ranks $pid
    return 1
}

# ---- without MPI ----

if ! ldd "$program" | grep -q 'libmpi'; then
    bad "built without MPI" 1 'without MPI' "$program" $tiny --ranks 2 --steps 1
    bad "and started by another's mpirun" 1 'without MPI' OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 \
        "$program" $tiny --ranks 2 --steps 1
    skip "this program was built without MPI"
    finish
fi
bad "no mpirun" 127 'cannot start mpirun' PATH=/nowhere "$program" $tiny --ranks 2 --steps 1
if ! command -v mpirun >/dev/null; then
    skip "no mpirun"
    finish
fi
mpich=
ldd "$program" | grep -q libmpich && mpich=1

# ---- the bits of one process ----

for ranks in 2 4; do
    args="$tiny $dropped --steps 4 --micro-batch $((8 / ranks))"
    train one$ranks $args
    train ranks$ranks $args --ranks $ranks
    same "$ranks ranks, 1 micro-batch: the bits of 1 rank, $ranks micro-batches" one$ranks ranks$ranks
    check "and the same losses, norms, rates" sh -c "for run in one$ranks ranks$ranks; do
        grep '\"event\":\"step\"' \$run/log.jsonl | sed 's/,\"ms\".*//' | grep -o '\"step\".*' >\$run.steps; done
        [ -s one$ranks.steps ] && cmp -s one$ranks.steps ranks$ranks.steps"
done
for opt in adam sgd lamb; do
    train one-$opt $tiny --steps 3 --micro-batch 4 --opt $opt --loss sigmoid --pool gap --cls-tokens 0
    train ranks-$opt $tiny --steps 3 --ranks 2 --opt $opt --loss sigmoid --pool gap --cls-tokens 0
    same "$opt" one-$opt ranks-$opt
done
train micros $tiny --steps 2 --ranks 2 --micro-batch 1 # sums of another order
check "micro-batches of ranks" grep -q 'done in' log

# ---- mpirun by hand ----

# shellcheck disable=SC2086
timeout 60 mpirun -n 2 "$program" $tiny $dropped --steps 4 --out by-hand >log 2>&1
check "mpirun: status $?" grep -q '^done in' log
same "mpirun and --ranks" ranks2 by-hand
check "one rank speaks, in lines" sh -c "[ \$(grep -c '^step 4/4 ' log) = 1 ] && ! grep -q '\\[K' log"
check "the note of a restart comes once" [ "$(grep -c '^note: OpenBLAS' log)" -le 1 ]
timeout 60 mpirun -n 2 "$program" $tiny --lr 0 --steps 1 --out still >log 2>&1
check "and what all warn of" [ "$(grep -c '^warning: --lr 0' log)" = 1 ]
cores=$(nproc)
share=$((cores / 2 > 0 ? cores / 2 : 1))
timeout 60 "$program" $tiny --threads 0 --steps 1 --ranks 2 --out shared >log 2>&1
check "ranks share the cores" grep -qE "^device .* $share threads?," log
timeout 60 "$program" $tiny --threads 3 --steps 1 --ranks 2 --out threads >log 2>&1
check "--threads says more" grep -q '^device .* 3 threads' log

# ---- resuming with other numbers of ranks ----

train half $tiny $dropped --steps 3 --ranks 2
go_on half on2 "$program" --steps 6
check "on as many as before" grep -q '^ranks     2 ' log
go_on half on1 "$program" --steps 6 --ranks 1 --micro-batch 4
same "resumed on 2 and on 1" on2 on1
go_on half on4 mpirun -n 4 "$program" --steps 6
check "on as many as mpirun has started" grep -q '^ranks     4 ' log
go_on half on1by2 "$program" --steps 6 --ranks 1 --micro-batch 2
same "resumed on 4 and on 1" on4 on1by2

# ---- evaluation ----

"$program" eval --weights one2 --data fake --threads 1 >log.one 2>&1
for ranks in 2 4; do
    timeout 60 "$program" eval --weights one2 --data fake --ranks $ranks >log 2>&1
    check "$ranks ranks share an evaluation: $(tail -n 1 log)" sh -c \
        'tail -n 1 log.one >a; tail -n 1 log >b; grep -q "^top1 " b && cmp -s a b'
done
train uneven $tiny --val-data fake --batch-size 24 --steps 2 --ranks 4
check "all is evaluated" grep -q '"event":"eval".*"images":256' uneven/log.jsonl
if [ -z "${TEST_SMALL-}" ]; then
    timeout 60 "$program" eval --weights one2 --data fake --ranks 8 >log 2>&1
    check "8 ranks" sh -c 'tail -n 1 log >b; cmp -s a b'
fi

# Every count of every layout, and of a damaged picture whose place another takes: of another class,
# which a stage that reads no pictures must be told of.
mkdir -p pictures/a pictures/b
picture() { { printf 'P6 16 16 255\n' && head -c 768 /dev/urandom; } >"$1"; }
for i in 1 2 3 4 5 6 7 8 9; do picture pictures/a/$i.ppm && picture pictures/b/$i.ppm; done
printf 'P6 16 16 255\n' >pictures/a/9.ppm
train two $tiny --num-classes 2 --data pictures --steps 2 --ranks 1
for layout in "--ranks 1" "--ranks 3" "--ranks 2 --pp 2" "--ranks 2 --tp 2" "--ranks 4 --tp 2 --pp 2"; do
    rm -rf counts
    # shellcheck disable=SC2086
    timeout 60 "$program" eval --weights two --data pictures --batch-size 4 --threads 1 --out counts $layout \
        >log 2>&1
    [ "$layout" = "--ranks 1" ] && cp -r counts counts.one
    check "evaluation with $layout: classes" cmp counts.one/eval.csv counts/eval.csv
    check "evaluation with $layout: confusion" cmp counts.one/confusion.csv counts/confusion.csv
done
check "the damaged one counts as the one in its place" \
    [ "$(cut -d, -f1-3 counts/eval.csv | tail -n 2 | tr '\n' ' ')" = "0,a,8 1,b,10 " ]

# ---- ranks that share the model ----
# What each layout computes is test_layouts' business; here the program saves and goes on.

wide="$tiny --heads 4 --layers 4 $dropped"
for micro in 4 2; do train one-wide$micro $wide --steps 4 --micro-batch $micro; done
for layout in "--ranks 2 --zero 1" "--ranks 2 --zero 2" "--ranks 2 --zero 3" \
    "--ranks 2 --zero 3 --recompute full --recompute-group 2"; do
    train layout $wide --steps 4 $layout
    same "$layout" one-wide4 layout
done
for layout in "--ranks 2 --pp 2" "--ranks 4 --pp 4 --layers-per-stage 1,1,1,1" \
    "--ranks 2 --pp 2 --layers-per-stage 1,3 --recompute selective"; do
    train layout $wide --steps 4 --micro-batch 2 $layout
    same "$layout" one-wide2 layout
done
train layout $wide --steps 4 --ranks 8 --tp 2 --pp 2 --zero 3
check "every kind at once: its line" grep -q '^ranks     8 .*2 stages, 2 tensor parallel, 2 data parallel (zero 3)' log
# shellcheck disable=SC2016
check "no line of the log has a key twice" awk '
    {
        split("", seen)
        while (match($0, /"[a-z_0-9]+":/)) {
            if (seen[substr($0, RSTART, RLENGTH)]++)
                exit 1
            $0 = substr($0, RSTART + RLENGTH)
        }
    }' layout/log.jsonl
check "a step's bytes are in the log" grep -q '"comm_bytes":[1-9].*"comm_wait":[01]' layout/log.jsonl
train half $wide --steps 2 --ranks 4 --tp 2 --zero 3
for layout in "--ranks 1" "--ranks 2 --pp 2" "--ranks 2 --zero 1" "--ranks 4 --tp 4"; do
    rm -rf on
    cp -r half on
    # shellcheck disable=SC2086
    timeout 60 "$program" --resume on --steps 4 $layout >log 2>&1
    check "tp 2, zero 3 goes on as $layout: status $?" sh -c "grep -q '^resumed   at step 2' log && grep -q '^done in' log"
    timeout 60 "$program" eval --weights on --data fake --threads 1 >log 2>&1
    check "and is evaluated by one process" grep -q '^top1 ' log
done
rm -rf on
cp -r half on
timeout 60 "$program" --resume on --steps 4 --ranks 1 >log 2>&1
check "a layout that does not fit is left, aloud" grep -q '^note: the run.s --tp 2 --pp 1 does not fit 1 rank' log
bad "heads" 2 'must divide both: 1, 2$' "$program" $tiny --ranks 4 --tp 4 --steps 1
bad "processes" 2 'give --tp 2 --pp 1' "$program" $tiny --ranks 2 --tp 2 --pp 2 --steps 1
check "processes: one error" [ "$(grep -c '^error: ' log)" = 1 ]
bad "what all ranks find" 2 '--batch-size 15 or 18$' "$program" $tiny --ranks 3 --batch-size 16 --steps 1
check "what all ranks find: one error" [ "$(grep -c '^error: ' log)" = 1 ]
bad "layers" 2 'the model has 2 layers' "$program" $tiny --ranks 3 --pp 3 --steps 1
bad "layers per stage" 2 ': 1,1$' "$program" $tiny --ranks 2 --pp 2 --layers-per-stage 1,2 --steps 1
bad "what is kept" 2 'norm1_y qkv' "$program" $tiny --recompute full --recompute-keep mad --steps 1
"$program" $tiny --zero 3 --steps 1 --out nothing >log 2>&1
check "what has no effect is said" grep -q '^note: --zero has no effect with one' log

# No rank ever holds the whole model: the peak of the process is what the plan says, and what any
# program takes, which is that of a model of no size.
peak_of() { # width: prints "peak plan", bytes
    rm -rf peak
    timeout 120 "$program" train --out peak --data fake --num-classes 10 --image-size 28 --model 10B/14 \
        --width "$1" --heads 8 --mlp $((4 * $1)) --batch-size 4 --workers 1 --threads 1 --val-data none \
        --steps 2 --ranks 4 --zero 3 >log 2>&1 || return 1
    echo "$(grep -o '"memory":[0-9]*' peak/log.jsonl | tail -n 1 | tr -dc 0-9)" \
        "$(grep '^memory' log | grep -oE '[0-9.]+ [kMG]?B' |
            awk '{f["B"] = 1; f["kB"] = 1e3; f["MB"] = 1e6; f["GB"] = 1e9; n += $1 * f[$2]} END {print n}')"
}
if [ -z "${TEST_SMALL-}" ]; then
    read -r base base_plan <<<"$(peak_of 32)"
    read -r peak plan <<<"$(peak_of 384)"
    timeout 120 "$program" --resume peak --steps 3 >log 2>&1
    resumed=$(grep -o '"memory":[0-9]*' peak/log.jsonl | tail -n 1 | tr -dc 0-9)
    rm -rf peak
    for which in "$peak" "$resumed"; do
        check "a rank's peak is the plan's within 5%: $which - $base, $plan - $base_plan" awk -v a="$which" \
            -v b="$base" -v c="$plan" -v d="$base_plan" \
            'BEGIN {x = (a - b) / (c - d); exit !(c > 1e8 && x > 0.95 && x < 1.05)}'
    done
fi

# ---- bench, prediction ----

# shellcheck disable=SC2086
timeout 60 "$program" bench $tiny --ranks 2 --pp 2 --steps 3 >log 2>&1
check "bench with stages (status $?): inference of a whole batch" grep -q '^inference .* per step of 8 ' log

printf 'P6 2 2 255\n123456789012' >grey.ppm
train predicted $tiny --steps 1
timeout 60 "$program" predict predicted grey.ppm grey.ppm --topk 1 --ranks 2 >out 2>log
check "predictions of two ranks are on stdout, once (status $?)" [ "$(wc -l <out)$(grep -c '^grey' out)" = 42 ]

# ---- signals, ends ----

background stopped $tiny --save-every 100000000 --ranks 2
kill -TERM $pid
check "SIGTERM ends all ranks" gone
wait $pid
rc=$?
cp log.stopped log
check "after a step (status $rc)" sh -c "[ $rc = 143 ] && grep -q '^stopped after step' log"
check "which save once" [ "$(grep -c '"event":"save"' stopped/log.jsonl)$(ls -d stopped/step_* | wc -l)" = 11 ]

for victim in 0 1; do
    background killed $tiny --save-every 50 --ranks 3 --batch-size 12
    for _ in $(seq 100); do [ -e killed/latest ] && break; sleep 0.1; done
    for p in $ranks; do
        grep -qzxE "(OMPI_COMM_WORLD|PMI)_RANK=$victim" "/proc/$p/environ" && kill -KILL "$p" && break
    done
    check "a rank is killed, all end" gone
    wait $pid
    rc=$?
    cp log.killed log
    named="rank $victim .*ended"
    [ "$mpich" ] && named= # whose mpirun kills all before they can say it
    check "rank $victim is named (status $rc)" sh -c "[ $rc != 0 ] && grep -q '^error: $named' log && grep -q '^hint: ' log"
    "$program" --resume killed --ranks 1 --steps 1 >log 2>&1
    check "the last checkpoint can be read (status $?)" grep -q 'nothing left to do' log
done
background orphans $tiny --ranks 2
kill -KILL $pid
wait $pid 2>/dev/null
cp log.orphans log
check "no rank outlives the launcher" gone

# Who is slower than the others is in the log: rank 1, whose matrix products take a millisecond more.
cat >slow.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef void Product(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
Product cblas_sgemm;
void cblas_sgemm(int o, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *pmi = getenv("PMI_RANK");
    rank = rank ? rank : pmi;
    if (rank && strcmp(rank, "1") == 0)
        usleep(1000);
    ((Product *)dlsym(RTLD_NEXT, "cblas_sgemm"))(o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
END
if ${CC:-cc} -shared -fPIC -o slow.so slow.c -ldl 2>log; then
    LD_PRELOAD=$tmp/slow.so train slow $tiny --ranks 3 --batch-size 12 --steps 20
    sed -nE 's/.*"ms":([^,]*),.*"slowest":([^,]*),"slowest_by":([^}]*)}/\1 \2 \3/p' slow/log.jsonl |
        awk '{ms[$2] += $1 * $3} END {print ms[0], ms[1], ms[2]; exit !(ms[1] > 50 && ms[1] > 3 * (ms[0] + ms[2]))}' >log
    check "the slowest rank is in the log" [ "${PIPESTATUS[1]}" = 0 ]
else
    skip "no compiler for a library that is slow"
fi

# One rank alone fails: it meets more damage than is allowed.
mkdir -p hurt/a hurt/b
for i in $(seq 60); do
    for class in a b; do
        if [ "$i" -le 12 ]; then echo "no picture" >hurt/$class/$i.ppm
        else printf 'P3 1 1 255 %d 0 0' "$i" >hurt/$class/$i.ppm; fi
    done
done
hurt="$tiny --data hurt --val-data none --epochs 3 --num-classes 2 --ranks 2"
bad "ranks share what damage is allowed" 1 '(19|2[0-4]) of 120 images are damaged' \
    "$program" train --out damaged $hurt --max-damaged 0.15
bad "ranks that do not share a batch" 2 'divide' RANK=0 WORLD_SIZE=1 "$program" $tiny --ranks 3 --steps 1
bad "another number than mpirun's" 2 'mpi(run|exec) has started 2' mpirun -n 2 "$program" $tiny --ranks 3 --steps 1
bad "mpirun within mpirun" 2 'mpi(run|exec) has started 1' mpirun -n 1 "$program" $tiny --ranks 2 --steps 1
# shellcheck disable=SC2016
bad "another's launcher" 1 'MPI calls it 0 of 1' MASTER_ADDR=127.0.0.1 VIT_PORT=29733 WORLD_SIZE=2 sh -c '
    RANK=1 LOCAL_RANK=1 "$0" "$@" >/dev/null 2>&1 &
    RANK=0 LOCAL_RANK=0 exec "$0" "$@"' "$program" $tiny --steps 1
cp "$program" other && echo >>other
# shellcheck disable=SC2086
bad "two builds" 1 'refused rank 1.*: it is another build of this program' \
    mpirun -n 1 "$program" $tiny --steps 1 : -n 1 ./other $tiny --steps 1
bad "what one alone finds" 1 '^error: rank 1 \(.*\): not-there: no such directory' \
    mpirun -n 1 "$program" $tiny --steps 1 : -n 1 "$program" $tiny --data not-there --steps 1
bad "GPUs" 2 'ranks N' "$program" $tiny --gpus 2 --steps 1

finish
