#!/bin/bash
# What the README promises, run as a user would: test/test_learn.sh BINARY [SHARED]
# Minutes rather than seconds; TEST_SMALL=1 skips it (sanitizers would make it an hour),
# TEST_LONG=1 trains to the end.
root=$(cd "$(dirname "$0")/.." && pwd)
binary=$(realpath "$1")
shared=$(realpath -m "${2:-../shared}")
# shellcheck source=test/common.sh
. "$root/test/common.sh"
need "$binary"

best() { # run, floor: the best top-1 of its evaluations reaches the floor
    awk -F'"top1":' -v floor="$2" '/"event":"eval"/ { split($2, v, ","); if (v[1] > top) top = v[1] }
        END { printf "  best top-1 %.2f, wanted %s\n", top, floor; exit !(top >= floor) }' "$1/log.jsonl"
}
# program, arguments...: trains until an evaluation of run $run reaches top-1 $floor, then asks it to
# stop; if none does, or with TEST_LONG=1, to its end.
until_reached() {
    "$@" >log 2>&1 &
    local pid=$! status
    while kill -0 $pid 2>/dev/null; do
        sleep 1
        [ -z "${TEST_LONG-}" ] && best "$(echo $run)" "$floor" >/dev/null 2>&1 && kill -TERM $pid 2>/dev/null && break
    done
    wait $pid
    status=$?
    [ $status = 0 ] || [ $status = 143 ]
}
falls() { # run: the mean training loss of the last quarter is below that of the first
    awk -F'"loss":' '/"event":"step"/ { split($2, v, ","); loss[++n] = v[1] }
        END { q = int(n / 4); for (i = 1; i <= q; i++) { a += loss[i]; b += loss[n + 1 - i] }
              exit !(q > 0 && b < 0.9 * a) }' "$1/log.jsonl"
}

if [ -n "${TEST_SMALL-}" ]; then
    skip "learning: too slow here"
    finish
fi

# No arguments: draws the pictures, trains, evaluates, leaves a run.
start=$(date +%s)
run='runs/*' floor=90
until_reached "$binary"
check "the default run ends well" [ $? = 0 ]
run=$(ls -d runs/*)
echo "  the default run took $(($(date +%s) - start)) s"
check "it learns to 90%" best "$run" 90
check "its loss falls" falls "$run"
check "it leaves config, log, classes and checkpoints" \
    test -s "$run/config.ini" -a -s "$run/classes.txt" -a -s "$run/$(cat "$run/best")/model.safetensors"

weights=$shared/data/weights/deit_tiny_patch16_224.safetensors
if [ -e "$weights" ] && [ -d "$shared/data/hymenoptera" ]; then
    "$binary" --data "$shared/data/hymenoptera" --weights "$weights" --out insects >log 2>&1
    check "fine-tuning DeiT-Tiny ends well" [ $? = 0 ]
    check "it reaches 95%" best insects 95
    run=half floor=95
    until_reached "$binary" --data "$shared/data/hymenoptera" --weights "$weights" --precision bf16 --out half
    check "fine-tuning in bf16 ends well" [ $? = 0 ]
    check "it reaches 95% too" best half 95
    "$binary" --recipe "$root/recipes/finetune_small.ini" --data "$shared/data/hymenoptera" \
        --weights "$weights" --out recipe --epochs 0.1 --val-data none >log 2>&1
    for key in opt momentum lr schedule clip weight-decay label-smoothing batch-size; do
        check "the recipe has the same $key" \
            [ "$(grep "^$key = " recipe/config.ini)" = "$(grep "^$key = " insects/config.ini)" ]
    done
    check "and the recipe's own length is six epochs too" \
        sh -c "grep -q '^epochs = 6' '$root/recipes/finetune_small.ini' && grep -q '^epochs = 6' insects/config.ini"
else
    skip "no weights or no hymenoptera in $shared/data"
fi

if [ -d "$shared/data/cifar10" ]; then
    "$binary" --data "cifar10:$shared/data/cifar10" --epochs 3 --out cifar >log 2>&1
    check "CIFAR-10 ends well" [ $? = 0 ]
    check "it is far above chance" best cifar 25
    check "its loss falls" falls cifar
else
    skip "no cifar10 in $shared/data"
fi

finish
