#!/bin/bash
# Training with the CUDA backend: test/test_cuda.sh TRAIN_GPU TRAIN_CPU [SHARED [NVCC_TRAIN_GPU]]
# TRAIN_GPU is the program built with nvcc, or the one that runs CUDA's source on the CPU
# (test/cuda_on_cpu): the same checks hold. A run of the CPU program is what it is compared with.
# NVCC_TRAIN_GPU: beside the stand-in the other one, where it is built: it must do without a GPU.
# TEST_SMALL=1 leaves out what is slow under sanitizers.
gpu=$(realpath "$1") cpu=$(realpath "$2") shared=$(realpath -m "${3:-../shared}")
nvcc=$(realpath -m "${4:-none}")
case $gpu in *standin*) standin=1 ;; *) standin= ;; esac
here=$(realpath "$(dirname "$0")") recipes=$(realpath "$(dirname "$0")/../recipes")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$gpu" "$cpu"
subject=(env) # with settings, and either program
export VIT_STARTED=1 VIT_SHARE_GPU=1

tiny="--data fake --num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2
      --mlp 64 --batch-size 8 --lr 0.001 --workers 1 --threads 1 --val-data none --log-every 1
      --no-autotune"
mixed="--mixup 0.5 --cutmix 0.5 --mix-per sample --erase 0.5 --color-twist 0.3,0.3,0.3,20"
dropped="--dropout 0.1 --attention-dropout 0.1 --drop-path 0.2 $mixed"

train() { # program, run directory, arguments...; or `timeout`, run directory, seconds, program, ...
    local program=$1 out=$2
    shift 2
    rm -rf "$out"
    [ "$program" = timeout ] && program="timeout $1 $2" && shift 2
    $program train --out "$out" "$@" >log 2>&1
    rc=$?
    check "$out: status $rc of $*" [ $rc = 0 ]
}
losses() { # of a run's steps, one a line; of a step that was run twice, the second
    sed -n 's/.*"event":"step","step":\([0-9]*\),.*"loss":\([^,}]*\).*/\1 \2/p' "$1/log.jsonl" |
        awk '{ loss[$1] = $2; n = $1 } END { for (i = 1; i <= n; i++) print loss[i] }'
}
near() { # name, run, run, relative tolerance: the same losses, and more than none
    paste <(losses "$2") <(losses "$3") | awk -v tol="$4" '
        { d = $1 - $2; d = d < 0 ? -d : d; if (!(d <= tol * $2)) bad = 1; n++ }
        END { exit bad || n == 0 }'
    rc=$?
    paste <(losses "$2") <(losses "$3") >log
    check "$1: losses within $4" [ $rc = 0 ]
}
field() { # run, key: of the last step
    sed -n "s/.*\"event\":\"step\".*\"$2\":\([^,}]*\).*/\1/p" "$1/log.jsonl" | tail -n 1
}

# ---- no GPU: only the program that nvcc has built knows what that is ----

real=$gpu
[ $standin ] && real=$nvcc
if [ -x "$real" ]; then
    for ranks in 1 2; do
        rm -rf none
        timeout 60 env CUDA_VISIBLE_DEVICES= "$real" train $tiny --gpus $ranks --steps 1 --out none >log 2>&1
        rc=$?
        refused "no GPU for $ranks" 1 '(no NVIDIA driver|no CUDA-capable device).*'
        check "is said once" [ "$(grep -c '^error: ' log) $(grep -c '^hint: ' log)" = "1 1" ]
        check "and leaves nothing" test ! -e none
    done
else
    skip "no program built by nvcc: what it says without a GPU"
fi

# ---- the same training as on the CPU ----

train "$cpu" cpu $tiny --steps 6
train "$gpu" fp32 $tiny --steps 6 --precision fp32
near "fp32" fp32 cpu 1e-5
train "$gpu" tf32 $tiny --steps 6 --precision tf32
near "tf32" tf32 cpu 5e-3
train "$gpu" bf16 $tiny --steps 6
near "bf16, which is the default" bf16 cpu 2e-2
check "bf16 is in config.ini" grep -q '^precision = bf16' bf16/config.ini
train "$cpu" cpu-dropped $tiny --steps 4 $dropped
train "$gpu" dropped $tiny --steps 4 $dropped --precision fp32
near "the same masks" dropped cpu-dropped 1e-5
train "$gpu" rounded $tiny --steps 4 $dropped --stochastic-rounding
near "stochastic rounding" rounded cpu-dropped 2e-2
for opt in adam sgd lamb; do
    train "$cpu" cpu-$opt $tiny --steps 3 --opt $opt --ema 0.9
    train "$gpu" $opt $tiny --steps 3 --opt $opt --ema 0.9 --precision fp32
    near "$opt" $opt cpu-$opt 1e-5
done
train "$cpu" cpu-gap $tiny --steps 3 --pool gap --cls-tokens 0 --act gelu_tanh --loss sigmoid
train "$gpu" gap $tiny --steps 3 --pool gap --cls-tokens 0 --act gelu_tanh --loss sigmoid
near "no class token, tanh GELU, sigmoid loss, bf16" gap cpu-gap 2e-2

# ---- micro-batches, resuming, from one backend to the other ----

train "$gpu" micro $tiny --steps 6 --precision fp32 --micro-batch 2
near "micro-batches" micro cpu 1e-5
train "$gpu" whole $tiny --steps 6 $dropped
train "$gpu" half $tiny --steps 6 --save-every 3 --keep 9 $dropped
rm -rf half/step_00000006 && echo step_00000003 >half/latest
"$gpu" --resume half >log 2>&1
same "resumed" whole half
train "$gpu" sr-whole $tiny --steps 6 --stochastic-rounding --ema 0.9
train "$gpu" sr-half $tiny --steps 6 --stochastic-rounding --ema 0.9 --save-every 3 --keep 9
rm -rf sr-half/step_00000006 && echo step_00000003 >sr-half/latest
"$gpu" --resume sr-half >log 2>&1
same "resumed with stochastic rounding" sr-whole sr-half
train "$gpu" there $tiny --steps 6 --save-every 3 --keep 9 --precision fp32
train "$cpu" back $tiny --steps 6 --save-every 3 --keep 9
for run in there back; do
    rm -rf $run/step_00000006 && echo step_00000003 >$run/latest
done
"$cpu" --resume there >log 2>&1
check "the CPU goes on with a run of the GPU (status $?)" grep -q 'resumed   at step 3' log
near "a run continued on the CPU" there cpu 1e-4
"$gpu" --resume back >log 2>&1
check "and the GPU with one of the CPU (status $?)" grep -q 'resumed   at step 3' log
near "a run continued on the GPU" back cpu 1e-4

# ---- algorithms: measured once, recorded, reused ----

train "$gpu" tuned $tiny --steps 4 --autotune --save-every 2 --keep 9
check "algorithms are recorded" sh -c 'grep -q "cuBLASLt" tuned/algorithms.txt && [ $(wc -l <tuned/algorithms.txt) -gt 5 ]'
check "and cached" sh -c 'ls cache/vit.c/*.txt >/dev/null'
cp -r tuned tuned2
for run in tuned tuned2; do
    rm -rf $run/step_00000004 && echo step_00000002 >$run/latest
    rm -rf cache # what was measured for the run must come from the run
    "$gpu" --resume $run >log 2>&1
    check "resume with algorithms (status $?)" grep -q 'resumed' log
done
same "two continuations" tuned tuned2
echo garbage >>cache/vit.c/*.txt
printf '2x2x2\tzz\n%s\t00\n' "$(head -c 200 /dev/urandom | base64 -w0)" >>tuned/algorithms.txt
"$gpu" --resume tuned --steps 5 >log 2>&1
check "damaged lists of algorithms are no matter (status $?)" grep -q 'done in' log
sed -i '1s/.*/another card/' tuned/algorithms.txt
"$gpu" --resume tuned --steps 6 >log 2>&1
check "another GPU's list is refused with a warning" grep -q 'warning: .*another GPU' log

# ---- fp16 ----

train "$gpu" fp16 $tiny --steps 6 --precision fp16
near "fp16, dynamic scaling" fp16 cpu 2e-2
train "$gpu" nemo $tiny --steps 24 --precision fp16 --loss-scale 4294967296 --hysteresis 2
check "from 2^32 it comes down and trains: scale $(field nemo loss_scale), skipped $(field nemo skipped)" \
    awk -v s="$(field nemo loss_scale)" -v k="$(field nemo skipped)" 'BEGIN { exit !(s < 4294967296 && k > 1 && k < 23) }'
train "$gpu" auto $tiny --steps 12 --precision fp16 --loss-scaling auto --loss-scale 1024
check "automatic scaling moves: $(field auto loss_scale)" [ "$(field auto loss_scale)" != 1024 ]
train "$gpu" half16 $tiny --steps 24 --precision fp16 --loss-scale 4294967296 --save-every 20 --keep 9
rm -rf half16/step_00000024 && echo step_00000020 >half16/latest
"$gpu" --resume half16 >log 2>&1
same "the loss scale and its counters resume" nemo half16

# ---- evaluation and prediction ----

"$cpu" eval --weights fp32 --data fake >log.cpu 2>&1
"$gpu" eval --weights fp32 --data fake >log 2>&1
check "eval says the same: $(tail -n 1 log)" sh -c 'tail -n 1 log.cpu >a; tail -n 1 log >b; grep -q "^top1 " b && cmp -s a b'
"$gpu" eval --weights fp32 --data fake --precision bf16 >log 2>&1
check "eval in bf16" grep -q '^top1 .* images 256$' log
image=$(find "$shared/data/imagenet_sample" -iname '*.jp*g' 2>/dev/null | head -n 1)
if [ -n "$image" ]; then
    "$gpu" predict --weights fp32 "$image" >log 2>&1
    check "predict" grep -qE '^ +[0-9.]+%  ' log
    echo nothing >text.jpg
    bad "predict a text" 1 'text.jpg' "$gpu" predict --weights fp32 text.jpg
else
    skip "no images in $shared/data"
fi

# ---- what can go wrong with a GPU ----

bad "an unknown precision" 2 'precision' "$gpu" $tiny --precision fp12
bad "ranks without GPUs" 2 'gpus' "$gpu" $tiny --ranks 2
bad "more ranks than images" 2 'divide' RANK=0 WORLD_SIZE=1 "$gpu" $tiny --gpus 3 --steps 1
if [ "$standin" ]; then
    bad "no GPU" 1 'no GPU is visible' VIT_STANDIN_NO_DEVICE=1 "$gpu" $tiny --steps 1
    bad "GPUs that are not there" 1 'rank [123] .*: there is no GPU [123] here' -u VIT_SHARE_GPU "$gpu" $tiny --gpus 4
    check "is said once: $(grep -c '^error: ' log)" [ "$(grep -c '^error: ' log)" = 1 ]
    bad "an old driver" 1 'driver' VIT_STANDIN_OLD_DRIVER=1 "$gpu" $tiny --steps 1
    bad "an old GPU" 1 'compute capability 7.5' VIT_STANDIN_SM=75 "$gpu" $tiny --steps 1
    bad "built for other GPUs" 1 'built for other GPUs' VIT_STANDIN_NO_KERNEL=1 "$gpu" $tiny --steps 1
    # The device's use is asked of a library that the driver brings: here, of one that knows only
    # the stand-in's bus address.
    cat >nvml.c <<'END'
int strcmp(const char *, const char *);
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device)
{
    *device = nvmlInit_v2;
    return strcmp(bus, "00000000:01:00.0") != 0;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *u)
{
    u[0] = 37, u[1] = 11;
    return device != nvmlInit_v2;
}
END
    train "$gpu" unasked $tiny --steps 2 --precision fp32
    if ! ldconfig -p | grep -q libnvidia-ml; then
        check "no driver, no GPU use" sh -c "! grep -q '\"gpu\"' unasked/log.jsonl"
    fi
    if ${CC:-cc} -shared -fPIC -o libnvidia-ml.so.1 nvml.c; then
        train "env LD_LIBRARY_PATH=$tmp${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} $gpu" asked $tiny \
            --steps 2 --precision fp32
        check "GPU use is logged" [ "$(grep -c '"gpu":0.37[,}]' asked/log.jsonl)" = 2 ]
        check "and printed" grep -q 'gpu 37%' log
    else
        skip "no C compiler for a library of our own"
    fi
    big="$tiny --width 64 --image-size 64 --batch-size 64 --steps 1"
    bad "out of memory" 1 'micro-batch [0-9]+ is the largest' VIT_STANDIN_MEMORY=24000000 "$gpu" $big --micro-batch 64
    fits=$(sed -n 's/.*--micro-batch \([0-9]*\) is the largest.*/\1/p' log)
    VIT_STANDIN_MEMORY=24000000 "$gpu" $big --micro-batch "${fits:-0}" --out fits >log 2>&1
    check "the micro-batch that is said to fit does (status $?): $fits" grep -q 'done in' log
    VIT_STANDIN_MEMORY=24000000 "$gpu" $big --micro-batch auto --out auto-micro >log 2>&1
    check "--micro-batch auto finds one" grep -qE '(16|8|4|2|1) images? at a time' log
    VIT_STANDIN_MEMORY=24000000 "$gpu" $big --mixup 1 --mix-group 4 --micro-batch auto --out auto-mixed >log 2>&1
    check "and whole groups of images to mix" grep -qE '(16|8|4) images at a time' log
    bad "nothing fits" 1 'no memory' VIT_STANDIN_MEMORY=17800000 "$gpu" $big --width 256 --heads 4
fi

# ---- several ranks ----

if [ "$standin" ]; then
    for ranks in 2 4; do
        same="$tiny --steps 4 --precision fp32 --micro-batch $((8 / ranks)) --dropout 0.1 $mixed --mix-group 2"
        train "$gpu" one$ranks $same
        train "$gpu" ranks$ranks $same --gpus $ranks
        same "$ranks ranks, 1 micro-batch: the bits of 1 rank, $ranks micro-batches" one$ranks ranks$ranks
        near "the same losses" one$ranks ranks$ranks 0
    done
    # an uneven validation set: a rank has batches of sizes that the other never sees
    for tuning in --autotune --no-autotune; do
        train timeout uneven 120 "$gpu" $tiny $tuning --val-data fake --batch-size 24 --steps 2 --gpus 2
        check "all is evaluated" grep -q '"event":"eval".*"images":256' uneven/log.jsonl
    done
    # caches of which only one rank's knows the products
    mkdir -p cache-of-0 && cp -r cache/* cache-of-0 2>/dev/null
    for rank in 0 1; do
        XDG_CACHE_HOME=$tmp/cache-of-$rank RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank \
            MASTER_ADDR=127.0.0.1 VIT_PORT=29731 timeout 120 "$gpu" $tiny --autotune --batch-size 24 \
            --steps 3 --out caches >log.$rank 2>&1 &
        pids[rank]=$!
    done
    wait "${pids[0]}"
    rc=$?
    wait "${pids[1]}"
    rc=$((rc + $?))
    cat log.0 log.1 >log
    check "ranks with different caches (status $rc)" [ $rc = 0 ]
    # 24 of 120 pictures are damaged, 18 may be: no rank meets as many, all together do
    rm -rf hurt && mkdir -p hurt/a hurt/b
    for i in $(seq 60); do
        for class in a b; do
            if [ "$i" -le 12 ]; then echo "no picture" >hurt/$class/$i.ppm
            else printf 'P3 1 1 255 %d 0 0' "$i" >hurt/$class/$i.ppm; fi
        done
    done
    hurt="$tiny --data hurt --val-data none --epochs 3 --log-every 1 --num-classes 2 --gpus 2"
    bad "ranks share what damage is allowed" 1 '(19|2[0-4]) of 120 images are damaged' \
        "$gpu" train --out stopped-damaged $hurt --max-damaged 0.15
    train "$gpu" damaged $hurt --max-damaged 0.2
    train "$gpu" ranks-fp16 $tiny --steps 8 --precision fp16 --loss-scaling auto --gpus 2 --autotune
    check "how long its collectives are waited for is in the log" \
        grep -q '"step":8,.*"comm_bytes":[1-9].*"comm_wait":0\.' ranks-fp16/log.jsonl
    check "steps send as many bytes each" \
        [ "$(grep -o '"comm_bytes":[^,]*' ranks-fp16/log.jsonl | sort -u | wc -l)" = 1 ]
    "$gpu" eval --weights one2 --data fake --precision fp32 >log.one 2>&1
    "$gpu" eval --weights one2 --data fake --precision fp32 --gpus 2 >log 2>&1
    check "two ranks share an evaluation: $(tail -n 1 log)" sh -c 'tail -n 1 log.one >a; tail -n 1 log >b; grep -q "^top1 " b && cmp -s a b'
    "$gpu" $tiny --steps 100000 --save-every 5 --keep 2 --gpus 2 --out killed >log 2>&1 &
    pid=$!
    for _ in $(seq 300); do [ -e killed/latest ] && break; sleep 0.1; done
    victim=$(pgrep -P $pid | tail -n 1)
    kill -KILL "$victim"
    wait $pid
    rc=$?
    check "a rank that is killed ends the run (status $rc)" sh -c "[ $rc != 0 ] && grep -q '^error: ' log"
    check "and leaves the last checkpoint" [ -e "$(last killed)/model.safetensors" ]
    "$gpu" --resume killed --gpus 1 --steps 1 >log 2>&1
    check "which can be read (status $?)" grep -q 'nothing left to do' log
    "$gpu" $tiny --steps 100000 --save-every 1000 --gpus 2 --out stopped >log 2>&1 &
    pid=$!
    for _ in $(seq 300); do grep -q '^step' log && break; sleep 0.1; done
    kill -TERM $pid
    wait $pid
    rc=$?
    check "a signal stops all ranks after a step, with a checkpoint (status $rc)" \
        sh -c "[ $rc = 143 ] && grep -q '^stopped after step' log && [ -e stopped/latest ]"
fi

# ---- real weights ----

weights=$shared/data/weights/deit_tiny_patch16_224.safetensors
if [ -n "${TEST_SMALL-}" ]; then
    :
elif [ -e "$weights" ]; then
    deit="--recipe $recipes/finetune_small.ini --data $shared/data/hymenoptera --val-data none
          --weights $weights --batch-size 2 --steps 3 --log-every 1 --workers 1 --no-autotune"
    train "$cpu" deit-cpu $deit
    train "$gpu" deit-fp32 $deit --precision fp32
    near "DeiT-Tiny, fp32" deit-fp32 deit-cpu 1e-4
    train "$gpu" deit-bf16 $deit
    near "DeiT-Tiny, bf16" deit-bf16 deit-cpu 2e-2
else
    skip "no DeiT-Tiny weights in $shared/data/weights"
fi

finish
