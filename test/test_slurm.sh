#!/bin/bash
# Training under Slurm: test/test_slurm.sh TRAIN_CPU [TRAIN_GPU]
# A Slurm of its own on this machine: controller, munge and two nodes, each with a name, a /tmp for PMIx
# and a slurmd of its own. Nothing of it is left. Needs root and Debian's slurmctld, slurmd, slurm-client
# and munge (scripts/deps long). TRAIN_GPU is the program on the stand-ins for CUDA. With TEST_LONG=1 the
# time limit itself ends a job, which takes two minutes.
self=$(realpath "$0") cpu=$(realpath "$1") gpu=${2:+$(realpath "$2")} home=$(realpath "$(dirname "$0")/..")
# shellcheck source=test/common.sh
. "$home/test/common.sh"
need "$cpu"
for tool in slurmctld slurmd srun sbatch scontrol munged unshare; do
    command -v $tool >/dev/null || { skip "no $tool"; finish; }
done
[ "$(id -u)" = 0 ] || { skip "a Slurm of our own needs root"; finish; }
if [ -z "${INSIDE-}" ]; then # names of the nodes, in an /etc/hosts of our own
    unshare -m true 2>/dev/null || { skip "no namespaces here"; finish; }
    cd / && rm -rf "$tmp"
    INSIDE=1 exec unshare -m --propagation private "$self" "$cpu" ${gpu:+"$gpu"}
fi

daemons=()
end_all() {
    [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null
    wait
    rm -rf "$tmp"
}
trap end_all EXIT
export SLURM_CONF=$tmp/slurm.conf
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # MPI's own
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT VIT_PORT

# ---- a cluster ----

base=$((20000 + $$ % 10000)) # ports
printf '127.0.0.1 localhost %s\n127.0.0.1 node1\n127.0.0.1 node2\n' "$(hostname)" >hosts
mount --bind hosts /etc/hosts || { skip "cannot mount"; finish; }
mkdir state spool private
chmod 755 "$tmp"
head -c 1024 /dev/urandom >munge.key
chmod 400 munge.key
cat >slurm.conf <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$base
AuthType=auth/munge
AuthInfo=socket=$tmp/munge.sock,cred_expire=5
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool/%n
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd-%n.pid
SlurmctldLogFile=$tmp/slurmctld.log
SlurmdLogFile=$tmp/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
KillWait=10
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((base + 1))
NodeName=node2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((base + 2))
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
END
munged --force --foreground --key-file="$tmp/munge.key" --socket="$tmp/munge.sock" --pid-file="$tmp/munge.pid" \
    --log-file="$tmp/munge.log" --seed-file="$tmp/munge.seed" >munged.out 2>&1 &
daemons+=($!)
wait_for 5 test -S munge.sock
slurmctld -D -f slurm.conf >slurmctld.out 2>&1 &
daemons+=($!)
for node in node1 node2; do
    # shellcheck disable=SC2016
    unshare -m -u sh -c 'hostname $0; mount -t tmpfs none private && exec slurmd -D -N $0 -f slurm.conf' $node \
        >$node.out 2>&1 &
    daemons+=($!)
done
if ! wait_for 20 sh -c '[ "$(sinfo -h -t idle -o %D)" = 2 ]'; then
    cat ./*.out slurmctld.log >log 2>&1
    fail "a Slurm of two nodes"
    finish
fi
export SLURM_PMIX_TMPDIR=$tmp/private # PMIx's files have one name on both nodes

small="--data fake --num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2
       --mlp 64 --batch-size 8 --micro-batch 4 --workers 1 --threads 1 --val-data none --log-every 1"
last() { echo "$1/$(cat "$1/latest")"; }

# ---- srun ----

# What srun of this program needs for MPI: PMIx for Open MPI, PMI-2 for MPICH.
mpi=
ldd "$cpu" | grep -q 'libmpi\.' && mpi=--mpi=pmix
ldd "$cpu" | grep -q libmpich && mpi=--mpi=pmi2
if [ $mpi ]; then
    timeout 60 "$cpu" $small --steps 4 --out one >log 2>&1
    check "one process: status $?" test -e one/latest
    timeout 60 srun $mpi -N 2 -n 2 "$cpu" $small --steps 4 --out two >log 2>&1
    check "srun over two nodes: status $?" grep -q '^ranks     2 processes' log
    check "has the bits of one process" cmp -s "$(last one)/model.safetensors" "$(last two)/model.safetensors"
    check "one rank speaks" [ "$(grep -c '^step 4/4' log)" = 1 ]
    check "the log knows the nodes" grep -q '"hosts":"node1 node2"' two/log.jsonl
    timeout 60 srun $mpi -N 2 -n 2 "$cpu" $small --steps 2 --heads 3 --out bad >log 2>&1
    check "what all find wrong is said (status $?)" grep -q '^error: 3 heads' log
    timeout 60 srun -N 2 -n 2 "$cpu" $small --steps 2 --ranks 3 --out bad >log 2>&1
    check "another number of ranks (status $?)" grep -q 'srun has started 2' log
else
    skip "$cpu has no MPI"
fi
if [ "$gpu" ]; then
    VIT_SHARE_GPU=1 timeout 100 srun -O -N 2 -n 4 "$gpu" $small --steps 3 --precision fp32 --out gpus >log 2>&1
    check "four ranks of train_gpu on two nodes: status $?" grep -q '^done in' log
    check "know who is where" grep -q '"hosts":"node1 node1 node2 node2"' gpus/log.jsonl
fi

# ---- the sbatch scripts ----

program=$cpu precision=float32
job() { # variables, --, flags of sbatch and the script
    local given=()
    while [ "$1" != -- ]; do given+=("$1") && shift; done
    shift
    env SRUN_FLAGS="$mpi" VIT_HOME="$home" PROGRAM="$program" PREC=$precision GPUS_PER_NODE=1 VIT_SIZE=base \
        BSIZE_PER_GPU=2 DATA=fake "${given[@]}" sbatch --parsable "$@" 2>log
}
state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p'; }
ended() { [[ $(state "$1") =~ ^(COMPLETED|FAILED|TIMEOUT|CANCELLED|NODE_FAIL)$ ]]; }
tiny="--num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --mlp 64
      --representation 0 --val-data none --workers 1 --threads 1 --log-every 1 --warmup-steps 0 --eval-every 0"
[ $mpi ] || finish

id=$(job GRAD_ACCUM=2 CONTAINER=image -- -N 2 "$home/scripts/slurm/pretrain.sbatch" $tiny --steps 5)
check "a job is taken" [ "$id" ]
wait_for 30 ended "$id"
cp "vit-pretrain-$id.txt" log
check "pretrain.sbatch ends: $(state "$id")" [ "$(state "$id")" = COMPLETED ]
check "2 nodes x 2 images x 2 micro-batches" grep -q '^plan      5 steps of 8 images, 2 at a time' log
check "what is not used is said" grep -q '^note: CONTAINER=image is not used' log
id=$(job -- -N 2 "$home/scripts/slurm/finetune.sbatch" $tiny --steps 3)
wait_for 30 ended "$id"
cp "vit-finetune-$id.txt" log
check "finetune.sbatch goes on from it: $(state "$id")" grep -q '^weights .*pretrain_dir' log
check "to its end" grep -q '^done in' log
for wrong in VIT_SIZE=huger PREC=int8 GPUS_PER_NODE=0 MP=3 PROGRAM=none DATA=; do
    id=$(job $wrong -- --job-name=wrong "$home/scripts/slurm/pretrain.sbatch")
    wait_for 20 ended "$id"
    cp "wrong-$id.txt" log
    check "$wrong: $(state "$id")" sh -c "grep -q '^error: ' log && grep -q '^hint: ' log && ! grep -q '^step' log"
done

# SIGUSR1, as Slurm sends it before the time limit: saved, queued again, resumed, to the end.
# A job that is queued again waits until its old credentials have expired: cred_expire, above.
requeued() { # name, flags of sbatch
    local name=$1
    shift
    rm -rf long
    id=$(job MODEL_DIR_LOCAL=long -- -N 2 --job-name=long "$@" "$home/scripts/slurm/pretrain.sbatch" $tiny \
        --steps 1000000 --save-every 1000000)
    wait_for 30 grep -q '^step 20/' "long-$id.txt"
    [[ $* = *signal* ]] || scancel --signal=USR1 "$id"
    wait_for 100 grep -q 'goes back into the queue' "long-$id.txt"
    cp "long-$id.txt" log
    check "$name: saved" grep -q '^saved step_' log
    saved=$(sed -n 's/^saved step_0*\([0-9]*\);.*/\1/p' log)
    wait_for 60 grep -q "^resumed   at step $saved," "long-$id.txt"
    cp "long-$id.txt" log
    check "$name: goes on from step $saved" grep -q "^resumed   at step $saved," log
    wait_for 20 sh -c "grep -A 100 '^resumed' long-$id.txt | grep -q ^step"
    scancel "$id"
    wait_for 30 ended "$id"
    cp "long-$id.txt" log
    check "$name: cancelled, it is not queued again ($(state "$id"))" [ "$(grep -c 'goes back' log)" = 1 ]
}
requeued "SIGUSR1"
[ -z "${TEST_LONG-}" ] || requeued "the time limit" --time=1 --signal=USR1@45

finish
