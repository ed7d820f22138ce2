#!/bin/bash
# Training in fp8 with the CUDA backend: test/test_fp8.sh TRAIN_GPU TRAIN_CPU [SHARED]
# TRAIN_GPU is the program built with nvcc on a machine with a GPU that has 8-bit products, or the one
# that runs CUDA's source on the CPU (test/cuda_on_cpu).
# TEST_LONG=1: DeiT-Tiny too, which takes the stand-in minutes; TEST_SMALL=1 leaves out what takes half of one.
gpu=$(realpath "$1") cpu=$(realpath "$2") shared=$(realpath -m "${3:-../shared}")
case $gpu in *standin*) standin=1 ;; *) standin= ;; esac
here=$(realpath "$(dirname "$0")") recipes=$(realpath "$(dirname "$0")/../recipes")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$gpu" "$cpu"
subject=(env) # with settings, and either program
export VIT_STARTED=1 VIT_SHARE_GPU=1 VIT_STANDIN_SM=90

# two blocks in fp8 of three: the last one computes class tokens alone
tiny="--data fake --num-classes 4 --image-size 16 --patch-size 8 --width 64 --layers 3 --heads 4
      --mlp 128 --batch-size 8 --lr 0.001 --workers 1 --threads 1 --val-data none --log-every 1
      --no-autotune"
eight="--precision fp8 --fp8-history 2"

train() { # program, run directory, arguments...
    local program=$1 out=$2
    shift 2
    rm -rf "$out"
    $program train --out "$out" "$@" >log 2>&1
    rc=$?
    check "$out: status $rc of $*" [ $rc = 0 ]
}
losses() { # of a run's steps, one a line
    sed -n 's/.*"event":"step","step":\([0-9]*\),.*"loss":\([^,}]*\).*/\2/p' "$1/log.jsonl"
}
near() { # name, run, run, tolerance: the losses differ by less, and not all of them by nothing
    paste <(losses "$2") <(losses "$3") >log
    check "$1: losses within $4" awk -v tol="$4" '
        { d = $1 - $2; d = d < 0 ? -d : d; if (!(d <= tol)) bad = 1; n++; other += d > 0 }
        END { exit bad || n == 0 || other == 0 }' log
}
history() { # of a run: what its last checkpoint has noted
    tr -c '[:print:]' '\n' <"$(last "$1")/train_state.safetensors" | grep -o '"fp8_amax":"[^"]*"' | head -n 1
}
interrupted() { # run, as it would be if it had ended with step 4
    rm -rf "$1"/step_00000008 && echo step_00000004 >"$1/latest"
}

# ---- what it cannot do, and where ----

bad "an older GPU" 1 'precision bf16' VIT_STANDIN_SM=80 "$gpu" $tiny $eight --steps 1 --out none
bad "a CPU" 2 'no --precision fp8' "$cpu" $tiny $eight --steps 1 --out none
bad "a width that is no multiple of 16" 1 'multiples of 16' "$gpu" $tiny $eight --width 40 --steps 1 --out none
bad "nor an MLP" 1 'mlp is 72' "$gpu" $tiny $eight --mlp 72 --steps 1 --out none
bad "a rank's" 1 'rank is 24' "$gpu" $tiny $eight --width 48 --mlp 96 --tp 2 --gpus 2 --steps 1 --out none
bad "a rank's MLP" 1 'mlp of a tensor parallel rank is 40' \
    "$gpu" $tiny $eight --mlp 80 --tp 2 --gpus 2 --steps 1 --out none
bad "no such scaling" 2 'delayed' "$gpu" $tiny $eight --fp8-scaling block

# ---- the same training as in bf16, and what each flag changes ----

train "$gpu" bf16 $tiny --steps 8
train "$gpu" whole $tiny $eight --steps 8
check "the device's line says so" grep -q '^device .* fp8, ' log
near "fp8" whole bf16 0.05
for flags in "--fp8-scaling current" "--fp8-skip ends" "--fp8-wgrad bf16" "--fp8-margin 9" "--fp8-history 5"; do
    run=with$(tr -d ' ' <<<"$flags")
    train "$gpu" "$run" $tiny $eight --steps 8 $flags
    near "$flags is near bf16" "$run" bf16 0.05
    near "and not the same as without" "$run" whole 0.05
done
train "$gpu" kept $tiny $eight --steps 8 --recompute full
same "activations made again" whole kept
train "$gpu" dropped $tiny $eight --steps 4 --dropout 0.1 --drop-path 0.2 --layer-scale --pool gap --cls-tokens 0
check "with dropout, drop path and layer scale" grep -q 'done in' log

# ---- checkpoints keep the history ----

check "a checkpoint has it: $(history whole | head -c 60)" [ "$(history whole | tr -d '":' | wc -w)" = $((1 + 36 * 2)) ]
check "of the two blocks in fp8 every number" [ "$(history whole | tr ' ":' '\n' | grep -c '^[1-9]\|^0\.\|e-')" = $((1 + 24 * 2)) ]
check "a run in bf16 has none" [ -z "$(history bf16)" ]
for flags in "" "--fp8-scaling current --fp8-wgrad bf16" "--fp8-history 6" "--micro-batch 2 --ema 0.9"; do
    train "$gpu" once $tiny $eight --steps 8 $flags
    train "$gpu" twice $tiny $eight --steps 8 --save-every 4 --keep 9 $flags
    interrupted twice
    "$gpu" --resume twice >log 2>&1
    same "resumed, $flags" once twice
done
# a checkpoint that has no history, and one of which there is no use
train "$gpu" later $tiny --steps 8 --save-every 4 --keep 9
interrupted later
"$gpu" --resume later $eight >log 2>&1
check "a run in bf16 goes on in fp8 (status $?)" grep -q 'done in' log
check "whose history begins there" grep -q '"fp8_since":"4"' "$(last later)/train_state.safetensors"
interrupted twice
"$gpu" --resume twice --precision bf16 >log 2>&1
check "and one in fp8 in bf16 (status $?)" grep -q 'done in' log
interrupted twice
sed -i 's/"fp8_amax":"2: /"fp8_amax":"3: /' "$(last twice)/train_state.safetensors"
bad "a damaged history" 1 'fp8_amax' "$gpu" --resume twice $eight

# ---- evaluation ----

train "$gpu" judged $tiny $eight --steps 4 --val-data fake
said=$(sed -n 's/.*"event":"eval".*"top1":\([^,]*\),.*"loss":\([^,]*\),.*/\1 \2/p' judged/log.jsonl)
"$gpu" eval --weights judged --data fake --precision fp8 --threads 1 >log 2>&1
again=$(sed -n 's/^top1 \([0-9.]*\) top5 [0-9.]* loss \([0-9.]*\) images.*/\1 \2/p' log)
check "a checkpoint is judged as its run was: $said, $again" \
    awk -v a="$said" -v b="$again" 'BEGIN { split(a, x); split(b, y); d = x[2] - y[2]; exit !(y[2] && d * d < 1e-8) }'

# ---- several ranks ----

if [ "$standin" ]; then
    train "$gpu" one $tiny $eight --steps 5 --micro-batch 4
    for layout in "" "--zero 1" "--zero 3"; do
        train "$gpu" two $tiny $eight --steps 5 --micro-batch 4 --gpus 2 $layout
        same "2 ranks, 1 micro-batch: the bits of 1 rank, 2 micro-batches $layout" one two
    done
    train "$gpu" stages $tiny $eight --steps 5 --micro-batch 4 --pp 2 --gpus 2
    same "2 stages" one stages
    train "$gpu" parts $tiny $eight --steps 5 --micro-batch 4 --tp 2 --gpus 2
    near "tensor parallel" parts one 0.02
fi

# ---- fifty steps on photographs ----

cifar=$shared/data/cifar10
if [ -n "${TEST_SMALL-}" ]; then
    :
elif [ -e "$cifar" ]; then
    fifty="--data cifar10:$cifar --val-data none --image-size 32 --patch-size 8 --width 64 --layers 3 --heads 2
           --mlp 128 --pool gap --cls-tokens 0 --batch-size 8 --steps 50 --schedule constant --warmup-steps 5
           --workers 1 --threads 1 --log-every 1"
    train "$cpu" fifty-cpu $fifty
    train "$gpu" fifty-fp8 $fifty --no-autotune --precision fp8
    near "50 steps on CIFAR-10, beside fp32 on the CPU" fifty-fp8 fifty-cpu 0.02
    check "all of them" [ "$(losses fifty-fp8 | wc -l)" = 50 ]
else
    skip "no CIFAR-10 in $shared/data"
fi

# ---- real weights ----

weights=$shared/data/weights/deit_tiny_patch16_224.safetensors
if [ -z "${TEST_LONG-}" ]; then
    :
elif [ -e "$weights" ]; then
    # on the stand-in smaller pictures and batches than the recipe's, with as much less of a learning rate
    # (with the recipe's own, two runs of a batch of 4 that differ by roundings alone part by 0.01 to 0.02,
    # bf16 and fp32 as much as bf16 and fp8)
    size=224 batch=32 most=250 rate='' quick=''
    [ "$standin" ] && size=64 batch=4 rate='--lr 0.00125' quick=--no-autotune
    deit="--recipe $recipes/finetune_small.ini --data $shared/data/hymenoptera --val-data none --weights $weights
          --image-size $size --batch-size $batch --steps 50 --log-every 1 --threads 1 $rate $quick"
    mkdir -p pictures
    for class in $(find "$shared/data/imagenet_sample" -mindepth 1 -maxdepth 1 | sort | head -n $most); do
        ln -sfn "$class" "pictures/$(basename "$class")"
    done
    for type in bf16 fp8; do
        train "$gpu" deit-$type $deit --precision $type
        "$gpu" eval --weights "$weights" --data pictures --classes "$shared/data/imagenet_classes.txt" \
            --precision $type --batch-size 8 $quick >log 2>&1
        check "DeiT-Tiny is evaluated in $type" grep -q '^top1 ' log
        sed -n 's/^top1 \([0-9.]*\) .*/\1/p' log >top1.$type
    done
    within() { # name, number, number, by how much they may differ
        check "DeiT-Tiny, $1: $2 in bf16, $3 in fp8" \
            awk -v a="$2" -v b="$3" -v most="$4" 'BEGIN { d = a - b; exit !(a > 0 && b > 0 && d <= most && -d <= most) }'
    }
    mean() { losses "$1" | tail -n 10 | awk '{ s += $1 } END { print s / NR }'; }
    within "mean loss of steps 41 to 50" "$(mean deit-bf16)" "$(mean deit-fp8)" 0.02
    within "top-1 of $most pictures" "$(cat top1.bf16)" "$(cat top1.fp8)" 1
else
    skip "no DeiT-Tiny weights in $shared/data/weights"
fi

finish
