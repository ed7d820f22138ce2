#!/bin/bash
# ./vit plan against what the training program says it takes: test/test_plan.sh VIT TRAIN_CPU [SHARED].
# Each small configuration (SHARED's fixtures, or two of our own) trains two steps by two ranks under
# a layout, in turn; its memory line and the bytes that it sends must be those that were forecast.
# With TEST_LONG=1 each does so under every layout, of four ranks too, and so do the smaller presets;
# test_plan.c allocates all of them.
tool=$(realpath "$1")
train=$(realpath "$2")
shared=$(realpath -m "${3:-../shared}")
recipe=$(realpath "$(dirname "$0")/../recipes/azure_highres.ini")
# shellcheck source=test/common.sh
. "$(dirname "$recipe")/../test/common.sh"
need "$tool" "$train"

subject=("$tool" plan)
value() { grep -oE "\"$1\": \"?[^,\"}]*" json | head -n 1 | sed 's/.*: "\?//'; }
near() { awk -v a="$1" -v b="$2" -v g="$3" 'BEGIN {d = a - b; exit !((d < 0 ? -d : d) <= g * b)}'; }

# ---- words ----

bad "no model" 2 'no model is named'
bad "unknown GPU" 2 'h100 a100-80' --model B/16 --gpu h101
bad "unknown link" 2 'ib ethernet' --model B/16 --link wifi
bad "a layout that cannot be" 2 'must divide both: 1, 2' --model B/16 --world 10 --tp 5
bad "a batch that does not divide" 2 'does not divide' --model B/16 --world 8 --zero 1 --batch-size 100
bad "what does not fit" 1 'what fits: ' --model G/14 --world 8 --gpu a100-40 --zero 0 --micro-batch 128 \
    --batch-size 1024
bad "what fits nowhere" 1 '[0-9]+ GPUs and' --model 10B/14 --world 2 --gpu l40s --batch-size 64
bad "unknown flag" 2 'did you mean --micro-batch' --model B/16 --mirco-batch 3
"$tool" plan --recipe "$recipe" --world 8 --gpu a100-80 >log 2>&1
check "a recipe" grep -q '90 epochs of 1281167 images' log
check "it says that it is an estimate" grep -q 'nothing has been measured on this GPU' log
check "three proposals" grep -q '^3\. ' log
silent=(--model B/16 --world 8 --link ethernet --gbit 100)
good "one machine" "${silent[@]}"
check "says what has no effect" grep -q '^note: --link, --gbit have no effect on one machine$' log
good "two machines" "${silent[@]}" --per-machine 4
check "need no such note" sh -c "! grep -q 'no effect' log"
good "one GPU" --model B/16 --per-machine 4 --json --kernels
check "has others" sh -c "grep -q -- '--per-machine has no effect with one' log && grep -q -- '--kernels has no effect' log"
"$tool" plan --json --model B/16 --world 16 --gpu h200 2>log | python3 -m json.tool >/dev/null 2>&1 ||
    { command -v python3 >/dev/null && check "JSON" false; }

# ---- memory and messages ----

"$train" --version 2>/dev/null | grep -q 'with.*MPI' && mpi=1
layouts=("--zero 0" "--zero 1" "--zero 3 --recompute full" "--pp 2" "--tp 2" "--zero 2 --ema 0.9"
    "--zero 3 --no-reshard-after-forward" "--recompute selective --opt sgd")
of_four=("--zero 3 --ema 0.9" "--pp 2 --zero 1" "--tp 2 --zero 3 --recompute full" "--tp 2 --pp 2"
    "--pp 2 --zero 2 --recompute selective" "--tp 2 --zero 2 --opt sgd")

against() { # name, ranks, flags...
    local name=$1 ranks=$2 words class said
    shift 2
    local flags=(--batch-size 8 --micro-batch 2 "$@")
    "$tool" plan --json --gpu xeon-core --world "$ranks" "${flags[@]}" >json 2>log ||
        { check "$name: plan" false; return; }
    rm -rf run
    "$train" --data fake:64 --val-data none --steps 2 --log-every 1 --threads 1 --ranks "$ranks" --out run \
        "${flags[@]}" >log 2>&1 || { check "$name: trains" false; return; }
    words=$(grep '^memory ' log)
    [ "$(value stage)" = 0 ] && for class in weights gradients optimiser activations inputs; do
        said=$(sed -nE "s/.* ([0-9.]+) ?([kMG]?)B $class.*/\1 \2/p" <<<"$words" |
            awk '{print $1 * ($2 == "k" ? 1e3 : $2 == "M" ? 1e6 : $2 == "G" ? 1e9 : 1)}')
        check "$name: $class: $said, forecast $(value $class)" near "${said:-0}" "$(value $class)" 0.05
    done
    said=$(sed -nE 's/.*"comm_bytes":([0-9.e+]+).*/\1/p' run/log.jsonl | tail -n 1)
    words=$(sed -nE 's/.*"sent": \{([^}]*)\}.*/\1/p' json | tr ',' '\n' | awk -F: '{s += $2} END {print s}')
    check "$name: sends ${said:-nothing}, forecast $words" near "${said:-0}" "$words" 0.001
}
config() { # a fixture: its metadata as flags
    local keys="image_h:image-height image_w:image-width patch:patch-size width:width layers:layers
        heads:heads mlp:mlp classes:num-classes pool:pool cls_tokens:cls-tokens act:act loss:loss
        patch_bias:patch-bias representation:representation layer_scale:layer-scale norm_pre:norm-pre
        optimizer:opt" pair text
    text=$(head -c 20000 "$1" | tr -d '\0' | grep -aoE '"__metadata__": *\{[^}]*\}' | head -n 1)
    for pair in $keys; do
        sed -nE "s/.*\"${pair%%:*}\": *\"([^\"]*)\".*/--${pair#*:}=\1/p" <<<"$text"
    done
}
everywhere() { # name, heads, flags...: under every layout that the heads can be shared out by
    local name=$1 heads=$2 layout more
    shift 2
    for layout in "${layouts[@]/#/2 }" "${of_four[@]/#/4 }"; do
        [[ $layout == *--tp* ]] && ((heads % 2)) && continue
        read -ra more <<<"$layout"
        against "$name, ranks $layout" "${more[0]}" "$@" "${more[@]:1}"
    done
}
if [ -z "${mpi-}" ]; then
    skip "built without MPI: no ranks to compare with"
else
    k=0
    for f in "$shared"/fixtures/*.safetensors; do
        case $f in *preprocess* | *deit_tiny* | *'*'*) continue ;; esac
        mapfile -t flags < <(config "$f")
        heads=$(printf '%s\n' "${flags[@]}" | sed -n 's/--heads=//p')
        name=$(basename "$f" .safetensors)
        if [ "${TEST_LONG-}" ]; then
            everywhere "$name" "$heads" "${flags[@]}"
        else
            layout=${layouts[k % ${#layouts[@]}]}
            ((heads % 2)) && [ "$layout" = "--tp 2" ] && layout="--pp 2"
            read -ra more <<<"$layout"
            against "$name, $layout" 2 "${flags[@]}" "${more[@]}"
        fi
        k=$((k + 1))
    done
    [ $k = 0 ] && skip "no fixtures in $shared: two models of our own"
    against "Ti/16, --zero 1" 2 --model Ti/16 --layers 3 --image-size 64 --zero 1
    against "Ti/16, --tp 2" 2 --model Ti/16 --layers 3 --heads 4 --image-size 64 --tp 2
    if [ "${TEST_LONG-}" ]; then
        for preset in Ti/16:3 S/16:6 B/32:12 B/16:12; do
            everywhere "${preset%:*}" "${preset#*:}" --model "${preset%:*}" --batch-size 4 --micro-batch 1
        done
    fi
fi
finish
