#!/bin/bash
# Training on several machines: test/test_netns.sh TRAIN_CPU [TRAIN_GPU]
# Two machines are network namespaces with names of their own and two links between them, of which one
# fails in the middle of a run. Needs root and iproute2. Processes on CPUs talk MPI, started by
# scripts/mpirun_hosts with a shell of ours in the place of ssh; those of TRAIN_GPU, the program on the
# stand-ins for CUDA, are started one by one, as torchrun does, and their NCCL is shared memory: what is
# tried of them is how they meet, and how they notice that one cannot be heard.
self=$(realpath "$0") cpu=$(realpath "$1") gpu=${2:+$(realpath "$2")} home=$(realpath "$(dirname "$0")/..")
# shellcheck source=test/common.sh
. "$home/test/common.sh"
need "$cpu"
[ "$(id -u)" = 0 ] || { skip "namespaces need root"; finish; }
for tool in ip nsenter unshare; do
    command -v $tool >/dev/null || { skip "no $tool (scripts/deps test)"; finish; }
done
if [ -z "${INSIDE-}" ]; then # names and links that nobody else sees
    unshare -mnu true 2>/dev/null || { skip "no namespaces here"; finish; }
    cd / && rm -rf "$tmp"
    INSIDE=1 exec unshare -mnu --propagation private "$self" "$cpu" ${gpu:+"$gpu"}
fi

keepers=()
end_all() {
    [ ${#keepers[@]} = 0 ] || kill "${keepers[@]}" 2>/dev/null
    wait
    rm -rf "$tmp"
}
trap end_all EXIT
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # MPI's own
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT VIT_PORT

# ---- two machines ----

printf '127.0.0.1 localhost\n10.1.0.1 alpha\n10.1.0.2 beta\n' >hosts
mount --bind hosts /etc/hosts || { skip "cannot mount"; finish; }
for name in alpha beta; do
    unshare -nu sh -c "hostname $name; exec sleep 10000" &
    keepers+=($!)
done
declare -A of=([alpha]=${keepers[0]} [beta]=${keepers[1]})
on() { # machine, command...
    nsenter -n -u -t "${of[$1]}" "${@:2}"
}
wait_for 5 sh -c "[ \$(nsenter -u -t ${of[beta]} hostname) = beta ]"
wait_for 5 sh -c "[ \$(nsenter -u -t ${of[alpha]} hostname) = alpha ]"
for link in 1 2; do # slow0 to meet and watch, fast0 for gradients
    name=$([ $link = 1 ] && echo slow0 || echo fast0)
    ip link add a$link type veth peer name b$link 2>log || { skip "no links between namespaces"; finish; }
    ip link set a$link netns "${of[alpha]}" name $name && on alpha ip addr add 10.$link.0.1/24 dev $name
    ip link set b$link netns "${of[beta]}" name $name && on beta ip addr add 10.$link.0.2/24 dev $name
    for machine in alpha beta; do on $machine ip link set $name up; done
done
for machine in alpha beta; do on $machine ip link set lo up; done
links() { # up or down
    for name in slow0 fast0; do on beta ip link set $name "$1"; done
}
# What mpirun takes for ssh: [flags] HOST COMMAND...
cat >rsh <<END
#!/bin/bash
while [[ \$1 = -* ]]; do shift; done
case \$1 in
alpha | 10.1.0.1) keeper=${of[alpha]} ;;
beta | 10.1.0.2) keeper=${of[beta]} ;;
esac
shift
exec nsenter -n -u -t \$keeper sh -c "cd '$tmp'; \$*"
END
chmod +x rsh
export OMPI_MCA_plm_rsh_agent=$tmp/rsh OMPI_MCA_plm=rsh HYDRA_LAUNCHER=rsh HYDRA_LAUNCHER_EXEC=$tmp/rsh

small="--data fake --num-classes 4 --image-size 32 --patch-size 8 --width 64 --layers 2 --heads 2 --mlp 128
       --batch-size 8 --micro-batch 4 --workers 1 --threads 1 --val-data none --log-every 1 --schedule constant
       --warmup-steps 0"
patience=4
last() { echo "$1/$(cat "$1/latest")"; }
received() { on beta cat /proc/net/dev | sed -nE "s/^ *$1: *([0-9]+) .*/\1/p"; }

# ---- MPI ----

mpirun=mpirun
ldd "$cpu" | grep -q libmpich && command -v mpirun.mpich >/dev/null && mpirun=mpirun.mpich
export MPIRUN=$mpirun
hosts() { on alpha "$home/scripts/mpirun_hosts" "$@"; }
if ldd "$cpu" | grep -q libmpi && command -v $mpirun >/dev/null; then
    "$cpu" $small --steps 4 --out one >log 2>&1
    before=$(received slow0) before_fast=$(received fast0)
    timeout 100 "$home/scripts/mpirun_hosts" 2>log
    check "mpirun_hosts wants machines (status $?)" grep -q '^hint: -n HOST' log
    hosts -n alpha,beta -o eth7 "$cpu" 2>log
    check "an interface that is not there (status $?)" grep -q 'no network interface eth7' log
    hosts -n alpha,beta -o slow0 -b fast0 "$cpu" $small --steps 4 --out two >log 2>&1
    check "two machines by mpirun_hosts: status $?" grep -q '^done in' log
    check "have the bits of one process" cmp -s "$(last one)/model.safetensors" "$(last two)/model.safetensors"
    check "the log knows the machines" grep -q '"hosts":"alpha beta"' two/log.jsonl
    slow=$(($(received slow0) - before)) fast=$(($(received fast0) - before_fast))
    [ $mpirun = mpirun ] && check "gradients go over -b: $fast bytes, $slow over -o" [ $fast -gt $((2 * slow)) ]
    hosts -n alpha,beta -r 2 -o slow0 "$cpu" $small --micro-batch 2 --steps 2 --out four >log 2>&1
    check "four ranks: status $?" grep -q '"hosts":"alpha alpha beta beta"' four/log.jsonl

    # beta's links go down in the middle of a run
    hosts -n alpha,beta -o slow0 -b fast0 "$cpu" $small --watchdog $patience --steps 100000000 --save-every 20 \
        --out lost >log.lost 2>&1 &
    pid=$!
    wait_for 30 test -e lost/latest
    ranks=$(pgrep -f -- "^$cpu .*--out lost" | tr '\n' ' ')
    check "it runs" [ "$(wc -w <<<"$ranks")" = 2 ]
    links down
    # shellcheck disable=SC2086
    wait_for $((patience + 15)) sh -c "! kill -0 $ranks 2>/dev/null"
    check "MPI: all have ended" [ $? = 0 ]
    wait_for 1 sh -c "! kill -0 $pid 2>/dev/null" || kill -KILL $pid # mpirun, which TCP keeps waiting
    wait $pid 2>/dev/null
    cp log.lost log
    check "MPI: and say why" grep -qE '^error: rank 1 \(beta\) has not answered for' log
    links up
    timeout 60 "$cpu" --resume lost --steps $(($(sed 's/step_0*//' lost/latest) + 1)) >log 2>&1
    check "MPI: the last checkpoint goes on (status $?)" grep -q '^done in' log
else
    skip "$cpu has no MPI"
fi
[ "$gpu" ] || finish

# ---- ranks that meet by themselves ----

start() { # machine, rank, ranks, local rank, arguments...: to log.RANK
    local machine=$1 rank=$2
    on "$machine" env RANK="$rank" WORLD_SIZE="$3" LOCAL_RANK="$4" MASTER_ADDR=alpha MASTER_PORT="${port:-29500}" \
        "$gpu" $small "${@:5}" >"log.$rank" 2>&1 &
    pids[rank]=$!
}
statuses() { # waits for all: prints their statuses
    local pid said=
    for pid in "${pids[@]}"; do
        wait "$pid"
        said="$said $?"
    done
    pids=()
    echo "$said" >said
    cat log.[0-9]* >log
}
pids=()
start alpha 0 2 0 --precision fp32 --steps 3 --out met
start beta 1 2 0 --precision fp32 --steps 3 --out met
statuses
check "ranks meet: $(cat said)" grep -q '"hosts":"alpha beta"' met/log.jsonl

export VIT_DIST_TIMEOUT=3
start beta 1 2 0 --steps 3 --out never
statuses
check "rank 0 has not come: $(cat said)" grep -q '^error: rank 1 of 2 could not reach rank 0 at alpha port 29501 within 3 s: Connection refused' log
on beta ip link set slow0 down
start alpha 0 2 0 --steps 3 --out never
start beta 1 2 0 --steps 3 --out never
statuses
check "a machine that cannot be reached: $(cat said)" grep -qE '^error: rank 1 of 2 could not reach .*(unreachable|timed out|No route)' log
check "who is missing" grep -q '^error: 1 of 2 ranks came to alpha port 29501 within 3 s; missing: 1' log
on beta ip link set slow0 up
on beta env RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=gamma MASTER_PORT=29500 "$gpu" $small --steps 1 >log 2>&1
check "a name that nobody has (status $?)" grep -qE '^error: rank 1 .* rank 0 at gamma .*(resolution|not known)' log
VIT_DIST_TIMEOUT=30 start alpha 0 2 0 --steps 1 # waits for its rank 1
taken=${pids[0]}
wait_for 10 sh -c "nsenter -n -t ${of[alpha]} cat /proc/net/tcp6 | grep -qi ':$(printf %04X 29501) '"
start alpha 0 2 0 --steps 1
statuses
check "a port in use: $(cat said)" grep -q '^error: rank 0 cannot listen on port 29501: Address already in use' log
kill "$taken" && wait "$taken" 2>/dev/null
start alpha 0 2 0 --steps 1 --out worlds
start beta 1 3 0 --steps 1 --out worlds
statuses
check "worlds that differ: $(cat said)" grep -q '^error: rank 0 (alpha, of 2 ranks) refused rank 1 of 3: it counts another number' log
unset VIT_DIST_TIMEOUT

# The link over which they watch each other goes down: each machine says so once, within the watchdog's time.
export VIT_SHARE_GPU=1 # two ranks of a machine
port=29600
for rank in 0 1; do start alpha $rank 4 $rank --watchdog $patience --steps 100000000 --save-every 5 --out cut; done
for rank in 2 3; do start beta $rank 4 $((rank - 2)) --watchdog $patience --steps 100000000 --save-every 5 --out cut; done
wait_for 60 test -e cut/latest
on beta ip link set slow0 down
from=$SECONDS
statuses
check "a link goes down: all end with status 1: $(cat said)" [ "$(cat said)" = " 1 1 1 1" ]
check "within the watchdog's time: $((SECONDS - from)) s" [ $((SECONDS - from)) -le $((patience + 6)) ]
cat log.[01] >log
check "alpha says it once" [ "$(grep -cE '^error: 2 ranks have not answered.*: rank(s 2-3| 2 .*; rank 3) ' log)$(grep -c '^error: ' log)" = 11 ]
cat log.[23] >log
check "beta says it once" [ "$(grep -c '^error: rank 0 (alpha) has not answered' log)$(grep -c '^error: ' log)" = 11 ]
check "the last checkpoint is there" test -e "$(last cut)/model.safetensors"

finish
