#!/bin/bash
# Check and measure train_gpu on this machine's GPU.
#
#   scripts/gpu_check.sh correct [OUT_DIR]
#       build; every op and the goldens in each type; the same bits again and after a resume; from
#       the CPU to the GPU and back; several ranks
#   scripts/gpu_check.sh sanitize [OUT_DIR]
#       compute-sanitizer's four tools over the ops
#   scripts/gpu_check.sh bench [MODEL[:BATCH,BATCH...] ...] [OUT_DIR]
#       images/s of training and inference beside PyTorch's, in alternating rounds; where the time
#       of a training step goes, beside what the hardware allows; one table of what was predicted,
#       measured, allowed and reached by PyTorch. Default: B/16
#   scripts/gpu_check.sh fp8 [MODEL[:BATCH] ...] [OUT_DIR]
#       compute capability 9.0: products of 8-bit numbers and models made of them against PyTorch's
#       values; the same bits again and after a resume; images/s beside bf16's, by way of scaling.
#       Default: B/16, L/16
#   scripts/gpu_check.sh data [OUT_DIR]
#       images/s of decoding and augmentation beside other loaders (bench/run_data), and what a run
#       on the GPU waits for
#
# Each part ends within LIMIT seconds (540). OUT_DIR (bench/results) gets <gpu>-<date>.md, to which
# every part adds a section, and the logs behind it. A part that was cut off goes on when it is run
# again: what passed or was measured with the same programs and driver is kept in <gpu>-<part>.done
# and not done twice (AGAIN=1: from the start). The machine is taken as it is: no clock, limit or mode
# is changed. Variables: PYTHON (one with PyTorch), MODE (of torch.compile, default `default`),
# ROUNDS (3), STEPS (20, of ours in a round), SHARED (fixtures), GPU (architectures, as in the
# Makefile; default: this one), NO_BUILD=1 (take what is there).
set -u
cd "$(dirname "$0")/.." || exit 1
began=$SECONDS
limit=${LIMIT:-540}
shared=${SHARED:-../shared}
python=${PYTHON:-python3}
rounds=${ROUNDS:-3}
steps=${STEPS:-20}

die() { # what, hint
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

part=${1-}
case $part in
correct | sanitize | bench | fp8 | data) shift ;;
-h | --help) sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0" && exit 0 ;;
*)
    echo "error: no part '$part'" >&2
    echo "hint: scripts/gpu_check.sh correct|sanitize|bench|fp8|data ... (--help says more)" >&2
    exit 2
    ;;
esac
out=bench/results models=()
for word in "$@"; do
    if [[ $word =~ ^(Ti|S|B|L|H|g|G)/[0-9]+(:[0-9]+(,[0-9]+)*)?$ ]]; then
        [ "$part" = bench ] || [ "$part" = fp8 ] ||
            die "$part takes no model ('$word')" "scripts/gpu_check.sh $part [OUT_DIR]"
        models+=("$word")
    else
        out=$word
    fi
done
[ ${#models[@]} = 0 ] && [ "$part" = fp8 ] && models=(B/16 L/16)
[ ${#models[@]} = 0 ] && models=(B/16)

# ---- the machine ----

smi() { # fields: of the first GPU, separated by commas
    nvidia-smi -i 0 --query-gpu="$1" --format=csv,noheader,nounits 2>/dev/null
}
command -v nvidia-smi >/dev/null ||
    die "no NVIDIA driver here (nvidia-smi is missing)" "run it on a machine with a CUDA GPU"
name=$(smi name | head -n 1)
[ -n "$name" ] || die "nvidia-smi finds no GPU" "run nvidia-smi by hand and see what it says"
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
if [ -z "${NO_BUILD-}" ] && ! command -v nvcc >/dev/null; then
    die "no nvcc here" "install the CUDA toolkit, or say where it is: CUDA_HOME=DIR"
fi
mkdir -p "$out" || die "cannot make $out" "name a directory that you may write to"
tmp=$(mktemp -d) || exit 1
watcher=
cleanup() {
    [ -n "$watcher" ] && kill "$watcher" 2>/dev/null
    rm -rf "$tmp"
}
trap cleanup EXIT
gpu=$(tr 'A-Z ' 'a-z-' <<<"${name#NVIDIA }" | tr -cd 'a-z0-9-')
page=$out/$gpu-$(date +%F).md
log=$out/$part.log
{ : >"$log"; } 2>/dev/null || die "cannot write $log" "name a directory that you may write to"

left() { # seconds until the limit, at least 1
    local n=$((limit - SECONDS + began))
    echo $((n > 1 ? n : 1))
}
within() { # seconds, command...: stopped after that or at the limit; 124 then
    local n=$1
    shift
    ((n > $(left))) && n=$(left)
    timeout --kill-after=10 "$n" "$@"
}
put() { # a line for the page and for whoever is watching
    printf '%s\n' "$*" | tee -a "$page"
}

library() { # name: version of the one that train_gpu is linked with
    local file
    file=$(ldd ./train_gpu 2>/dev/null | awk -v l="$1" 'index($1, l) == 1 {print $3; exit}')
    [ -n "$file" ] && basename "$(realpath "$file")" | sed 's/.*\.so\.//'
}

build() { # targets...
    if [ -n "${NO_BUILD-}" ]; then
        return
    fi
    local arch
    arch=$(smi compute_cap | tr -d .)
    [ "$arch" = 90 ] && arch=90a # with Hopper's own instructions
    if ! make -j"$(nproc)" GPU="${GPU:-$arch}" "$@" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "the build failed; the whole of it is in $log" "make deps installs what is missing; without a network: scripts/pack --help"
    fi
}

# What an earlier run of this part has done with the same programs and driver: a line each, fields
# separated by tabs. The first says which programs those were.
done_file=$out/$gpu-$part.done
goes_on=
programs() { # what is in them but the names of temporary files, which nvcc leaves there
    local file
    for file in ./train_gpu build/gpu/test_* build/gpu/bench_kernels; do
        if objcopy -S -R .note.gnu.build-id "$file" "$tmp/bare" 2>/dev/null; then
            cat "$tmp/bare"
        else
            cat "$file" 2>/dev/null
        fi
    done
}
go_on() {
    local stamp
    stamp="programs $(programs | cksum | tr ' ' -), driver $(smi driver_version | head -n 1)"
    if [ -z "${AGAIN-}" ] && [ "$(head -n 1 "$done_file" 2>/dev/null)" = "$stamp" ]; then
        goes_on=1
    else
        echo "$stamp" >"$done_file"
    fi
}
keep() { # fields...
    local IFS=$'\t'
    echo "$*" >>"$done_file"
}
kept() { # first fields...: what stood behind them, a line each
    local IFS=$'\t'
    tail -n +2 "$done_file" | awk -v p="$*"$'\t' 'index($0, p) == 1 {print substr($0, length(p) + 1)}'
}
before() { # names of checks: whether all of them have passed already; says so then
    local name note
    for name in "$@"; do
        [ -n "$(kept pass "$name")" ] || return 1
    done
    for name in "$@"; do
        note=$(kept pass "$name" | tail -n 1)
        passed=$((passed + 1))
        put "| $name | pass | $note (before) |"
    done
}

page_head() {
    go_on
    if [ ! -e "$page" ]; then
        put "# $name, $(date +%F)"
        put
        put "| | |"
        put "|---|---|"
        put "| GPU | $(nvidia-smi -L | wc -l) x $name, $(smi memory.total) MiB," \
            "compute capability $(smi compute_cap) |"
        put "| driver | $(smi driver_version) |"
        put "| CUDA | $(nvcc --version 2>/dev/null | sed -n 's/.*release .*, V//p') |"
        put "| cuBLASLt | $(library libcublasLt) |"
        put "| NCCL | $(library libnccl) |"
        put "| clocks, MHz | SM $(smi clocks.sm) now, $(smi clocks.max.sm) at most;" \
            "memory $(smi clocks.mem) |"
        put "| power | limit $(smi power.limit) W |"
        put "| CPU | $(nproc) x $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)," \
            "Linux $(uname -r) |"
    fi
    local commit
    commit=$(git rev-parse --short HEAD 2>/dev/null)
    [ -n "$commit" ] && [ -n "$(git status --porcelain 2>/dev/null)" ] &&
        commit="$commit and changes"
    put
    put "## $part, $(date -u +%H:%M) UTC${commit:+, commit $commit}${goes_on:+, going on}"
    put
}

# ---- checks ----

passed=0 failed=0 skipped=0
result() { # pass|fail|skip, name, note
    case $1 in
    pass) passed=$((passed + 1)) && keep pass "$2" "${3:--}" ;;
    fail) failed=$((failed + 1)) ;;
    skip) skipped=$((skipped + 1)) ;;
    esac
    put "| $2 | $1 | ${3-} |"
}
run() { # seconds, command...: everything to the log, its end to $tmp/last; the status
    local n=$1 rc
    shift
    echo "+ $*" >>"$log"
    within "$n" "$@" >"$tmp/now" 2>&1
    rc=$?
    cat "$tmp/now" >>"$log"
    tail -n 1 "$tmp/now" | tr '|' '/' | cut -c 1-160 >"$tmp/last"
    return $rc
}
check() { # name, seconds, command...
    local name=$1 n=$2 from=$SECONDS rc
    shift 2
    before "$name" && return
    run "$n" "$@"
    rc=$?
    if [ $rc = 0 ]; then
        result pass "$name" "$(cat "$tmp/last") ($((SECONDS - from)) s)"
    elif [ $rc = 124 ] || [ $rc = 137 ]; then
        result fail "$name" "not over after $((SECONDS - from)) s"
    else
        result fail "$name" "status $rc: $(grep -m 1 -E '^(error|FAIL)' "$tmp/now" | tr '|' '/' |
            cut -c 1-160) $(cat "$tmp/last")"
    fi
    return $rc
}
last() { # the newest checkpoint of a run
    echo "$1/$(cat "$1/latest" 2>/dev/null)"
}
same() { # name, run, run: bit for bit
    local a b
    a=$(last "$2")
    b=$(last "$3")
    if cmp "$a/model.safetensors" "$b/model.safetensors" >>"$log" 2>&1 &&
        cmp "$a/train_state.safetensors" "$b/train_state.safetensors" >>"$log" 2>&1; then
        result pass "$1" "weights and optimiser state, bit for bit"
    else
        result fail "$1" "the checkpoints differ"
    fi
}
# The largest relative difference between two runs' losses from a step on; "none" without any.
loss_difference() { # run, run, first step
    awk -v first="$3" '
        /"event":"step"/ {
            step = $0; sub(/.*"step":/, "", step); step += 0
            loss = $0; sub(/.*"loss":/, "", loss); loss += 0
            if (FILENAME == ARGV[1]) a[step] = loss; else b[step] = loss
        }
        END {
            for (s in a)
                if (s + 0 >= first && s in b) {
                    d = a[s] - b[s]; d = (d < 0 ? -d : d) / (a[s] ? a[s] : 1e-30)
                    n++
                    if (d > worst) worst = d
                }
            if (n) printf "%.1e\n", worst; else print "none"
        }' "$1/log.jsonl" "$2/log.jsonl" 2>/dev/null || echo none
}
close_losses() { # name, run, run, first step, gate
    local d waited
    d=$(loss_difference "$2" "$3" "$4")
    waited=$(sed -nE 's/.*"comm_wait":([^,}]+).*/; comm_wait \1/p' "$3/log.jsonl" | tail -n 1)
    if [ "$d" != none ] && awk -v d="$d" -v g="$5" 'BEGIN {exit !(d + 0 <= g + 0)}'; then
        result pass "$1" "losses within $d (gate $5)$waited"
    else
        result fail "$1" "losses differ by $d (gate $5)"
    fi
}

# Small enough for seconds, with every random element that a resume must find again.
small=(--data fake --num-classes 10 --val-data none --image-size 32 --patch-size 8 --width 64
    --layers 2 --heads 2 --mlp 128 --batch-size 24 --schedule constant --warmup-steps 5 --lr 0.001
    --log-every 1 --threads 2)
noise=(--dropout 0.1 --attention-dropout 0.1 --drop-path 0.1 --ema 0.9 --mixup 0.4 --cutmix 1
    --mix-per sample --erase 0.3 --color-twist "0.4,0.4,0.4,10")

# Several processes on one GPU: NCCL does not support it, but takes ranks that seem to be on hosts
# of their own, over sockets (VIT_SHARE_GPU, with seconds to wait). Statuses to $tmp/statuses.
ranks_on_one_gpu() { # ranks, seconds, port, arguments...
    local n=$1 limit_s=$2 port=$3 r pids=()
    shift 3
    : >"$tmp/statuses"
    for ((r = 0; r < n; r++)); do
        echo "+ rank $r of $n: ./train_gpu $*" >>"$log"
        (
            # shellcheck disable=SC2016
            within "$limit_s" env RANK=$r WORLD_SIZE="$n" LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 \
                VIT_PORT="$port" VIT_SHARE_GPU="$limit_s" NCCL_DEBUG=WARN \
                bash -c 'echo $$ >"$0"; exec ./train_gpu "$@"' "$tmp/pid$r" "$@" >"$tmp/rank$r" 2>&1
            echo "$r $?" >>"$tmp/statuses"
        ) &
        pids+=($!)
    done
    wait "${pids[@]}"
    for ((r = 0; r < n; r++)); do
        sed "s/^/rank $r: /" "$tmp/rank$r" >>"$log"
    done
    [ "$(grep -c ' 0$' "$tmp/statuses")" = "$n" ]
}
why_not() { # what the ranks say about it
    grep -h -m 1 -iE 'duplicate gpu|nccl (warn|error)|^error' "$tmp"/rank? | head -n 1 |
        tr '|' '/' | cut -c 1-160
    grep -qE ' (124|137)$' "$tmp/statuses" && echo " (it hung)"
}
one_rank_dies() { # the other must end by itself, and say why
    local victim from status
    rm -f "$tmp"/rank? "$tmp"/pid?
    ranks_on_one_gpu 2 60 29471 "${small[@]}" --steps 1000000 --precision fp32 --out "$tmp/dies" &
    local both=$!
    for ((from = SECONDS; SECONDS - from < 40; )); do
        grep -q '^step 2/' "$tmp/rank0" 2>/dev/null && break
        sleep 0.5
    done
    victim=$(cat "$tmp/pid1")
    kill -KILL "$victim"
    from=$SECONDS
    wait $both
    status=$(sed -n 's/^0 //p' "$tmp/statuses")
    # NCCL may notice before the hosts' own watchers do
    if [ "$status" = 1 ] && grep -qE '^error: (rank 1|NCCL)' "$tmp/rank0"; then
        result pass "one of two ranks is killed" \
            "the other ended $((SECONDS - from)) s later: $(grep -m 1 '^error' "$tmp/rank0")"
    else
        result fail "one of two ranks is killed" "rank 0: status $status, $(tail -n 1 "$tmp/rank0")"
    fi
}

# Two ranks that share one model, in every way, and what they save.
shared_models() {
    local layout out=$tmp/shared
    for layout in "--zero 1" "--zero 3" "--tp 2" "--pp 2" "--zero 3 --recompute full"; do
        before "2 NCCL ranks, $layout" && continue
        one_rank || return
        rm -rf "$out"
        # shellcheck disable=SC2086
        if ranks_on_one_gpu 2 90 29465 "${small[@]}" --steps 20 --precision fp32 $layout \
            --out "$out"; then
            close_losses "2 NCCL ranks, $layout" "$tmp/one" "$out" 1 1e-4
        else
            result fail "2 NCCL ranks, $layout" "$(why_not)"
        fi
    done
}
one_rank() { # the run that others are held against, once
    [ -e "$tmp/one/latest" ] ||
        run 60 ./train_gpu "${small[@]}" --steps 20 --precision fp32 --out "$tmp/one" ||
        { result fail "one rank" "$(cat "$tmp/last")" && false; }
}
several_ranks() {
    local n works=
    for n in 2 3; do
        before "$n NCCL ranks on one GPU" && works=1 && continue
        one_rank || return
        if ranks_on_one_gpu $n 90 $((29460 + n)) "${small[@]}" --steps 20 --precision fp32 \
            --out "$tmp/ranks$n"; then
            works=1
            close_losses "$n NCCL ranks on one GPU" "$tmp/one" "$tmp/ranks$n" 1 1e-4
        else
            result skip "$n NCCL ranks on one GPU" \
                "DOES NOT WORK here (NCCL promises nothing): $(why_not)"
            break
        fi
    done
    [ -n "$works" ] && shared_models
    [ -n "$works" ] && ! before "one of two ranks is killed" && one_rank_dies
    n=$(nvidia-smi -L | wc -l)
    if [ "$n" -lt 2 ]; then
        result skip "several GPUs" "there is one here"
        return
    fi
    n=$((n < 4 ? n : 4))
    n=$((24 % n ? 2 : n))
    before "$n GPUs" && return
    one_rank || return
    if run 120 ./train_gpu "${small[@]}" --steps 20 --precision fp32 --gpus $n \
        --out "$tmp/gpus"; then
        close_losses "$n GPUs" "$tmp/one" "$tmp/gpus" 1 1e-4
    else
        result fail "$n GPUs" "$(cat "$tmp/last")"
    fi
}

# The planner's name of this GPU; nothing where it has none.
plan_name() {
    case $name in
    *H200*) echo h200 ;; *H100*) echo h100 ;; *B200*) echo b200 ;; *A100*40*) echo a100-40 ;;
    *A100*) echo a100-80 ;; *V100*) echo v100 ;; *L40S*) echo l40s ;;
    esac
}

# What ./vit plan says of memory beside what train_gpu says and what the GPU shows.
planned_memory() {
    local gpu said plan shown
    before "memory as planned" && return
    gpu=$(plan_name)
    if [ -z "$gpu" ]; then
        result skip "memory as planned" "./vit plan does not know a $name"
        return
    fi
    plan=$(./vit plan --json --gpu "$gpu" --model B/16 --num-classes 1000 --batch-size 64 --micro-batch 64 |
        grep -oE '"(activations|total)": [0-9]*' | head -n 2 | tr -dc '0-9\n' | tr '\n' ' ')
    run 90 ./train_gpu --data fake --val-data none --model B/16 --num-classes 1000 --batch-size 64 \
        --micro-batch 64 --steps 20 --out "$tmp/memory" &
    local pid=$! most=0
    while kill -0 $pid 2>/dev/null; do
        shown=$(smi memory.used | head -n 1)
        ((${shown:-0} > most)) && most=$shown
        sleep 0.2
    done
    said=$(tr '\n' ' ' <"$tmp/now" | sed -nE 's/.* ([0-9.]+) ([MG])B activations.*/\1 \2/p')
    if awk -v p="$plan" -v s="$said" 'BEGIN {split(p, a, " "); split(s, b, " ")
        v = b[1] * (b[2] == "G" ? 1e9 : 1e6); d = v - a[1]; exit !(v > 0 && (d < 0 ? -d : d) <= 0.05 * v)}'; then
        result pass "memory as planned" \
            "activations ${said}B, planned ${plan%% *}; $most MiB in use, planned in all ${plan#* } bytes"
    else
        result fail "memory as planned" "activations ${said:-?}B, planned ${plan%% *}"
    fi
}

# A run goes on where another kind of device left it.
other_device() {
    if run 60 ./train_cpu "${small[@]}" --steps 20 --out "$tmp/cpu" &&
        run 60 ./train_cpu "${small[@]}" --steps 10 --out "$tmp/cpu-gpu" &&
        run 60 ./train_gpu --resume "$tmp/cpu-gpu" --steps 20 --precision fp32; then
        close_losses "10 steps on the CPU, 10 on the GPU" "$tmp/cpu" "$tmp/cpu-gpu" 11 1e-4
    else
        result fail "10 steps on the CPU, 10 on the GPU" "$(cat "$tmp/last")"
    fi
    if run 60 ./train_gpu "${small[@]}" --steps 10 --precision fp32 --out "$tmp/gpu-cpu" &&
        run 60 ./train_cpu --resume "$tmp/gpu-cpu" --steps 20; then
        close_losses "10 steps on the GPU, 10 on the CPU" "$tmp/cpu" "$tmp/gpu-cpu" 1 1e-4
    else
        result fail "10 steps on the GPU, 10 on the CPU" "$(cat "$tmp/last")"
    fi
}

part_correct() {
    local type f files=()
    build train_cpu vit train_gpu gpu-tests
    page_head
    put "| check | result | |"
    put "|---|---|---|"
    result pass build "$((SECONDS - began)) s"
    for f in test/golden/*.safetensors "$shared"/fixtures/*.safetensors; do
        [ -e "$f" ] && [ "${f##*/}" != preprocess.safetensors ] && files+=("$f")
    done
    for type in fp32 tf32 bf16 fp16; do
        check "ops, $type" 100 env TEST_FULL=1 build/gpu/test_ops --backend cuda --type $type
        check "goldens, $type" 60 build/gpu/test_golden --backend cuda --type $type "${files[@]}"
    done
    if [ "$(smi compute_cap | head -n 1)" = 9.0 ]; then # products of our own, wherever they can be
        for type in bf16 fp16; do
            for way in 0 1 2 3; do
                check "ops by own products ($way), $type" 60 env TEST_FULL=1 VIT_GEMM=sm90:$way \
                    build/gpu/test_ops --backend cuda --type $type
            done
            check "goldens by own products, $type" 60 env VIT_GEMM=sm90 \
                build/gpu/test_golden --backend cuda --type $type "${files[@]}"
        done
    fi
    for type in fp32 tf32 bf16 fp16; do
        before "20 steps again, $type" "10 steps, resumed for 10, $type" && continue
        local a=$tmp/$type-a b=$tmp/$type-b c=$tmp/$type-c
        local train=(run 60 ./train_gpu "${small[@]}" "${noise[@]}" --precision "$type")
        if ! { "${train[@]}" --steps 20 --out "$a" && "${train[@]}" --steps 20 --out "$b" &&
            "${train[@]}" --steps 10 --out "$c" &&
            run 60 ./train_gpu --resume "$c" --steps 20; }; then
            result fail "runs, $type" "$(cat "$tmp/last")"
            continue
        fi
        same "20 steps again, $type" "$a" "$b"
        same "10 steps, resumed for 10, $type" "$a" "$c"
    done
    before "10 steps on the CPU, 10 on the GPU" "10 steps on the GPU, 10 on the CPU" || other_device
    several_ranks
    planned_memory
}

# ---- compute-sanitizer ----

part_sanitize() {
    command -v compute-sanitizer >/dev/null ||
        die "no compute-sanitizer here" "it comes with the CUDA toolkit, in its bin folder"
    build gpu-tests
    page_head
    put "| tool | result | |"
    put "|---|---|---|"
    local tool type program own kinds=(bf16 fp32) n=0 share rc found
    [ "$(smi compute_cap | head -n 1)" = 9.0 ] &&
        kinds=("bf16, own products" "fp8, own products" bf16 fp32)
    # Each gets an equal share of what is left; a check that is stopped is no pass.
    for type in "${kinds[@]}"; do
        program=test_ops own=
        [[ $type == fp8* ]] && program=test_fp8
        [[ $type == *own* ]] && own=sm90
        for tool in memcheck racecheck synccheck initcheck; do
            share=$(($(left) / (4 * ${#kinds[@]} - n)))
            n=$((n + 1))
            before "$tool, $type" && continue
            run "$share" env TEST_FULL=0 VIT_GEMM=$own \
                compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 20 \
                build/gpu/$program --backend cuda --type "${type%%,*}"
            rc=$?
            found=$(grep -E '(ERROR|RACECHECK) SUMMARY' "$tmp/now" | tail -n 1 | sed 's/=* *//')
            if [ $rc = 0 ]; then
                result pass "$tool, $type" "$found"
            elif [ $rc = 124 ] || [ $rc = 137 ]; then
                if grep -qE '^=+ (Error|Invalid|Uninit|Barrier|Race|Program hit)' "$tmp/now"; then
                    result fail "$tool, $type" "errors, and not over after $share s: see ${log##*/}"
                else
                    result skip "$tool, $type" "not over after $share s; no error until then"
                fi
            else
                result fail "$tool, $type" "${found:-status $rc} $(cat "$tmp/last")"
            fi
        done
    done
}

# ---- speed ----

# Batches, the likeliest first: time may be short for the others.
declare -A usual=([Ti]="2048 1024" [S]="2048 1024 512" [B]="1024 512 256" [L]="512 256 128"
    [H]="256 128 64" [g]="192 96 48" [G]="128 64 32")

median() { # of the numbers on stdin; nothing without any
    sort -g | awk '{v[NR] = $1} END {if (NR) print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'
}
field() { # JSON line, name: a number or a word
    sed -nE 's/.*"'"$2"'": *"?([^",}]*)"?[,}].*/\1/p' <<<"$1"
}

# Lines "batch training inference" to $tmp/ours. A kernel of our own for Hopper that hangs or faults
# costs one run, and not all the others.
ours() { # model, batch
    local train infer rc why
    run 120 ./train_gpu bench --model "$1" --batch-size "$2" --precision bf16 --steps "$steps"
    rc=$?
    if [ $rc != 0 ]; then
        why=$(grep -m 1 '^error' "$tmp/now" || cat "$tmp/last")
        echo "  ours, $1 batch $2: failed: $why" >&2
        [[ $rc = 124 || $rc = 137 || $why = "error: CUDA: "* ]] || return
        [[ $why != *"out of memory"* && -z ${VIT_GEMM-} ]] || return
        [ "$(smi compute_cap | head -n 1)" = 9.0 ] || return
        export VIT_GEMM=cublaslt
        notes+=("From $1 batch $2 on without our own products (VIT_GEMM=cublaslt): with them, status $rc, $why")
        ours "$1" "$2"
        return
    fi
    train=$(sed -nE 's/^training +([0-9.]+) images.*/\1/p' "$tmp/now")
    infer=$(sed -nE 's/^inference +([0-9.]+) images.*/\1/p' "$tmp/now")
    echo "  ours, $1 batch $2: train ${train:-?} infer ${infer:-?} images/s" >&2
    echo "$2 ${train:-0} ${infer:-0}" >>"$tmp/ours"
    keep ours "$1" "$2 ${train:-0} ${infer:-0}"
}
# JSON lines to $tmp/theirs. No batch is begun in the second half of the time.
theirs() { # model, seconds, batches...
    [ -n "$torch" ] || return
    if run "$2" "$python" bench/pytorch_gpu.py "$1" "${@:3}" --mode "$mode" --rounds 3 \
        --seconds $(($2 / 2)); then
        grep '^{' "$tmp/now" | tail -n 1 >>"$tmp/theirs"
        keep theirs "$1" "$(tail -n 1 "$tmp/theirs")"
        echo "  PyTorch: $(tail -n 1 "$tmp/theirs")" >&2
    else
        echo "  PyTorch, $1: failed: $(cat "$tmp/last")" >&2
    fi
}
best() { # column 2 (training) or 3 (inference): "batch median rounds" of the best batch of ours
    local batch
    cut -d ' ' -f 1 "$tmp/ours" 2>/dev/null | sort -nu | while read -r batch; do
        awk -v b="$batch" -v c="$1" '$1 == b {print $c}' "$tmp/ours" | median |
            awk -v b="$batch" -v n="$(grep -c "^$batch " "$tmp/ours")" '{print b, $1, n}'
    done | sort -g -k 2 | tail -n 1
}

bench_model() { # MODEL[:BATCHES], seconds for it
    local model=${1%%:*} until=$((SECONDS + $2)) r b tb ib line batches their_best=()
    read -ra batches <<<"${usual[${1%%/*}]}"
    [[ $1 == *:* ]] && IFS=, read -ra batches <<<"${1#*:}"
    kept ours "$model" >"$tmp/ours"
    kept theirs "$model" >"$tmp/theirs"
    echo "$model, batch ${batches[*]}" >&2
    for b in "${batches[@]}"; do
        grep -q "^$b " "$tmp/ours" || ours "$model" "$b"
    done
    [ -s "$tmp/theirs" ] || theirs "$model" $(($2 / 2)) "${batches[@]}"
    line=$(tail -n 1 "$tmp/theirs")
    if [ -n "$line" ]; then
        their_best=("$(field "$line" batch)")
        b=$(field "$line" infer_batch)
        [ "$b" != "${their_best[0]}" ] && their_best+=("$b")
    fi
    read -r _ _ r <<<"$(best 2)"
    for ((r = ${r:-1} + 1; r <= rounds && SECONDS < until - 60; r++)); do
        read -r tb _ <<<"$(best 2)"
        read -r ib _ <<<"$(best 3)"
        [ -n "$tb" ] && ours "$model" "$tb"
        [ -n "$ib" ] && [ "$ib" != "$tb" ] && ours "$model" "$ib"
        [ ${#their_best[@]} -gt 0 ] && theirs "$model" $((until - SECONDS)) "${their_best[@]}"
    done
    local t tn i x y mode_used
    read -r tb t tn <<<"$(best 2)"
    read -r ib i _ <<<"$(best 3)"
    x=$(while read -r line; do field "$line" train; done <"$tmp/theirs" | median)
    y=$(while read -r line; do field "$line" infer; done <"$tmp/theirs" | median)
    line=$(tail -n 1 "$tmp/theirs")
    mode_used=$(field "$line" mode)
    awk -v m="$model" -v tb="${tb:-}" -v t="${t:-0}" -v ib="${ib:-}" -v i="${i:-0}" -v x="${x:-0}" \
        -v y="${y:-0}" -v xb="$(field "$line" batch)" -v yb="$(field "$line" infer_batch)" \
        -v n="${tn:-0}" -v how="$mode_used, attention: $(field "$line" attention)" '
        function rate(v, b) {return v > 0 ? sprintf("%.0f (%s)", v, b) : "-"}
        function ratio(a, b) {return a > 0 && b > 0 ? sprintf("**%.2f**", a / b) : ""}
        BEGIN {
            printf "| %s | %s | %s | %s | %s | %s | %s | %d | %s |\n", m, rate(t, tb), rate(x, xb),
                ratio(t, x), rate(i, ib), rate(y, yb), ratio(i, y), n, (x > 0 ? how : "")
        }' | tee -a "$page"
    line=$(field "$line" note)
    [ -n "$line" ] && [ "$line" != null ] && notes+=("$model, PyTorch: $line")
    [ -n "$tb" ] && best_batches+=("$model $tb $t ${x:--}")
}

# Images/s of training: what ./vit plan predicted, what was measured, what the ceilings of this run
# would allow every operation on its own, and PyTorch.
in_one_table() {
    local line model batch speed their plan floor
    put
    put "Images/s of training, bf16:"
    put
    put "| model | batch | predicted | measured | of predicted | floor | of floor | PyTorch | of PyTorch |"
    put "|---|---|---|---|---|---|---|---|---|"
    for line in ${best_batches[@]+"${best_batches[@]}"}; do
        read -r model batch speed their <<<"$line"
        plan=$([ -n "$(plan_name)" ] && ./vit plan --json --gpu "$(plan_name)" --model "$model" \
            --num-classes 1000 --batch-size "$batch" --micro-batch "$batch" 2>>"$log" |
            sed -n 's/.*"images_per_s": \([0-9.]*\).*/\1/p' | head -n 1)
        floor=$(kept operations "$model" | tail -n 1)
        awk -v m="$model" -v b="$batch" -v v="$speed" -v p="$plan" -v f="$floor" -v t="$their" '
            function rate(x) {return x > 0 ? sprintf("%.0f", x) : "-"}
            function of(x) {return x > 0 ? sprintf("%.2f", v / x) : ""}
            BEGIN {printf "| %s | %d | %s | %s | %s | %s | %s | %s | %s |\n", m, b, rate(p), rate(v),
                of(p), rate(f), of(f), rate(t), of(t)}' | tee -a "$page"
    done
}

part_bench() {
    local model batch speed ceiling='' torch='' mode=${MODE:-default} notes=() best_batches=() share their
    build train_gpu vit build/gpu/bench_kernels
    page_head
    torch=$("$python" -c 'import torch
print(torch.__version__ if torch.cuda.is_available() else "")' 2>/dev/null)
    nvidia-smi -i 0 --query-gpu=clocks.sm,power.draw,temperature.gpu,utilization.gpu \
        --format=csv,noheader,nounits -lms 500 >"$out/clocks.csv" 2>/dev/null &
    watcher=$!
    if [ -n "$torch" ]; then
        run 60 "$python" bench/pytorch_gpu.py --ceilings && ceiling=$(grep '^{' "$tmp/now")
        put "PyTorch $torch (CUDA $(field "$ceiling" cuda), cuDNN $(field "$ceiling" cudnn))," \
            "torch.compile mode $mode. Ceilings in this run: $(field "$ceiling" tflops) TFLOP/s" \
            "in a bf16 product of 8192 x 8192 x 8192 random numbers," \
            "$(field "$ceiling" tbytes_per_s) TB/s in a copy."
    else
        put "No PyTorch that sees the GPU ($python): ours alone."
    fi
    put
    put "Images/s in bf16 at the best batch size (in parentheses), medians over alternating rounds:"
    put
    put "| model | train | PyTorch | ratio | inference | PyTorch | ratio | rounds | PyTorch by |"
    put "|---|---|---|---|---|---|---|---|---|"
    share=$((($(left) - 120) / ${#models[@]})) # the rest is for the profile
    for model in "${models[@]}"; do
        bench_model "$model" $((share > 60 ? share : 60))
    done
    kill "$watcher" 2>/dev/null
    watcher=
    put
    for line in ${notes[@]+"${notes[@]}"}; do put "$line"; done
    awk -F ', *' '$4 >= 90 {c[++n] = $1; if ($2 > p) p = $2; if ($3 > t) t = $3}
        END {if (n) {for (i = 1; i <= n; i++) s += c[i]
             printf "Under load: SM clock %.0f MHz on average, %.0f W and %.0f degrees at most.\n",
                 s / n, p, t}}' "$out/clocks.csv" | tee -a "$page"
    for line in ${best_batches[@]+"${best_batches[@]}"}; do
        read -r model batch speed their <<<"$line"
        put
        if [ -n "$(kept operations "$model")" ]; then
            put "$model, operation by operation: above, before this run was cut off."
        elif [ "$(left)" -lt 30 ]; then
            put "$model: no time left to look at single operations"
        elif run 120 build/gpu/bench_kernels "$model" "$batch" bf16; then
            put "A training step of $model, batch $batch: $(awk -v b="$batch" -v s="$speed" \
                'BEGIN {printf "%.2f", 1000 * b / s}') ms. Operation by operation (bench/kernels.c):"
            put
            tee -a "$page" <"$tmp/now"
            keep operations "$model" "$(sed -n 's/.*floors alone \([0-9]*\).*/\1/p' "$tmp/now")"
        else
            put "$model: bench_kernels failed: $(cat "$tmp/last")"
        fi
    done
    in_one_table
    # A run that measured nothing of ours has failed.
    [ ${#best_batches[@]} = ${#models[@]} ] || failed=1
}

# ---- fp8 ----

# Training's images/s, of `rounds` runs in turns with the other ways. Lines "way images/s".
fp8_speeds() { # MODEL, batch
    local way r speed
    : >"$tmp/speeds"
    for ((r = 0; r < rounds; r++)); do
        for way in bf16 fp8 "fp8 --fp8-wgrad bf16" "fp8 --fp8-skip ends" "fp8 --fp8-scaling current"; do
            # shellcheck disable=SC2086 # words of a way are arguments
            run 60 ./train_gpu bench --model "$1" --batch-size "$2" --steps "$steps" --fp8-history 2 \
                --precision $way || continue
            speed=$(sed -nE 's/^training +([0-9.]+) images.*/\1/p' "$tmp/now")
            echo "${way// /_} ${speed:-0}" >>"$tmp/speeds"
        done
    done
}

part_fp8() {
    local f files=() model batch way train a=$tmp/a b=$tmp/b c=$tmp/c
    [ "$(smi compute_cap | tr -d .)" -ge 90 ] ||
        die "$name has no 8-bit products that this program uses" "run it on an H100 or newer"
    build train_cpu train_gpu gpu-tests
    page_head
    put "| check | result | |"
    put "|---|---|---|"
    for f in test/golden/*.safetensors "$shared"/fixtures/*.safetensors; do
        [ -e "$f" ] && [ "${f##*/}" != preprocess.safetensors ] && files+=("$f")
    done
    check "ops, fp8" 100 build/gpu/test_fp8 --backend cuda --type fp8 --verbose
    check "goldens, fp8" 60 build/gpu/test_golden --backend cuda --type fp8 "${files[@]}"
    if [ "$(smi compute_cap | head -n 1)" = 9.0 ]; then # products of our own, wherever they can be
        for way in 0 1 2 3; do
            check "ops by own products ($way), fp8" 60 env VIT_GEMM=sm90:$way \
                build/gpu/test_fp8 --backend cuda --type fp8
        done
        check "goldens by own products, fp8" 60 env VIT_GEMM=sm90 \
            build/gpu/test_golden --backend cuda --type fp8 "${files[@]}"
    fi
    check "training, fp8" 200 env TEST_LONG=1 test/test_fp8.sh ./train_gpu ./train_cpu "$shared"
    train=(run 60 ./train_gpu "${small[@]}" "${noise[@]}" --layers 3 --precision fp8 --fp8-history 4)
    if "${train[@]}" --steps 20 --out "$a" && "${train[@]}" --steps 20 --out "$b" &&
        "${train[@]}" --steps 10 --out "$c" && run 60 ./train_gpu --resume "$c" --steps 20; then
        same "20 steps again, fp8" "$a" "$b"
        same "10 steps, resumed for 10, fp8" "$a" "$c"
    else
        result fail "runs, fp8" "$(cat "$tmp/last")"
    fi
    put
    put "| model | batch | precision | images/s |"
    put "|---|---|---|---|"
    for model in "${models[@]}"; do
        batch=${usual[${model%%/*}]}
        [[ $model = *:* ]] && batch=${model#*:}
        batch=${batch%%[, ]*}
        fp8_speeds "${model%%:*}" "$batch"
        cut -d ' ' -f 1 "$tmp/speeds" | sort -u | while read -r way; do
            put "| ${model%%:*} | $batch | ${way//_/ } |" \
                "$(awk -v w="$way" '$1 == w {print $2}' "$tmp/speeds" | median) |"
        done
    done
}

# ---- data ----

part_data() {
    build train_gpu build/bench_data
    page_head
    local has_pillow=none
    "$python" -c 'import PIL' 2>/dev/null && has_pillow=$python
    within "$(left)" env SHORT=1 SHARED="$shared" PYTHON="$has_pillow" bench/run_data \
        2>>"$log" | sed 's/^#/##/' | tee -a "$page"
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
}

"part_$part"
if [ "$part" != bench ] && [ "$part" != data ]; then
    put
    put "$passed passed, $failed failed, $skipped skipped"
fi
echo "took $((SECONDS - began)) s; $page, $log" >&2
[ $failed = 0 ]
