#!/bin/bash
# What happens to a run of several processes when one of them is killed, hangs or is told to stop:
# test/test_faults.sh TRAIN_CPU. All ranks must be gone within ten seconds, one message says what
# happened and how to go on, and the last checkpoint continues with the bits of an undisturbed run.
# Most of it is waiting: scenes are played at the same time, each in a folder of its own.
here=$(realpath "$(dirname "$0")") program=$(realpath "$1")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$program"
# leaks are MPI's own; libraries that make mistakes are loaded before the sanitizer
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0:verify_asan_link_order=0

# Some milliseconds a step; no schedule, so that where a run was to end makes no difference.
small="--data fake --num-classes 4 --image-size 32 --patch-size 4 --width 64 --layers 2 --heads 2
       --mlp 128 --batch-size 16 --micro-batch 8 --workers 1 --threads 1 --val-data none
       --schedule constant --warmup-steps 0 --dropout 0.1 --log-every 1"
dp="--ranks 2" zero="--ranks 2 --zero 3" tp="--ranks 2 --tp 2" pp="--ranks 2 --pp 2"
patience=4
# what the watchdog says of a rank's calls to the others
call=' [0-9]+ of (the hosts|[0-9.]+ ([kMG]B|bytes) \([a-z, ]+\))'
waits="rank [0-9] computing \\(step [0-9]+\\), in"

# ---- scenes, and what they check ----

all_played() {
    wait
    cat "$tmp"/*.out
    finish
}
scenes=0
scene() { # name, function, arguments...
    [ "$(jobs -rp | wc -l)" -lt 4 ] || wait -n
    scenes=$((scenes + 1))
    mkdir $scenes
    (
        cd $scenes || exit
        name=$1
        shift
        "$@"
    ) >"$tmp/$scenes.out" 2>&1 &
}

rank() { # number: the process that has it
    for p in $ranks; do
        grep -qzxE "(OMPI_COMM_WORLD|PMI)_RANK=$1" "/proc/$p/environ" && echo "$p" && return
    done
}
# Starts a run that would never end, and waits for its first checkpoint.
begin() { # command...
    "$@" --out run --save-every 20 --steps 1000000 >log 2>&1 &
    pid=$!
    wait_for 60 test -e run/latest
    ranks=$(descendants $pid)
    first=$(rank 0) second=$(rank 1)
    check "$name: it runs" [ "$first" -a "$second" ]
}
none_left() {
    # shellcheck disable=SC2086
    ! kill -0 $ranks $pid 2>/dev/null
}
gone() { # seconds
    wait_for "$1" none_left && return
    fail "$name: ranks are left after $1 s"
    # shellcheck disable=SC2086
    kill -KILL $ranks $pid 2>/dev/null
}
said() { # status, pattern: once, and before all else
    local pattern=$2 who='rank [0-9]|all ranks' lines='error|\['
    [ "$mpich$1" = 1137 ] && pattern="(a rank was killed by signal [96]|$2)" who='a rank|rank [0-9]' lines=error
    check "$name: says first: $pattern" \
        sh -c "grep -E '^($lines)' log | head -n 1 | grep -qE '^error: $pattern'"
    check "$name: says it once" [ "$(grep -cE "^error: ($who)" log)" = 1 ]
}
ended_with() { # status, found
    case $mpich$1 in
    1137) [[ $2 =~ ^(137|134|1)$ ]] ;;
    *) [ "$2" = "$1" ] ;;
    esac
}
# All are gone in so many seconds, with this status, having said this once, before all else.
ended() { # seconds, status, pattern
    gone "$1"
    wait $pid 2>/dev/null
    local rc=$?
    check "$name: status $rc, not $2" ended_with "$2" $rc
    said "$2" "$3"
    check "$name: says how to go on" grep -q -- '--resume' log
}
# The run goes on from its last checkpoint, and has the bits of one that nothing has disturbed.
goes_on() { # how ranks share the model
    local last to rc file
    last=$(sed 's/step_0*//' run/latest)
    to=$((last + 5))
    # shellcheck disable=SC2086
    timeout 100 "$program" $small "$@" --out even --save-every 1000000 --steps $to >log.even 2>&1
    timeout 60 "$program" --resume run --steps $to >log 2>&1
    rc=$?
    check "$name: it continues at $last (status $rc)" grep -q "^resumed   at step $last," log
    for file in model train_state; do
        check "$name: $file has the bits of an undisturbed run" cmp -s \
            "run/$(cat run/latest)/$file.safetensors" "even/$(cat even/latest)/$file.safetensors"
    done
    check "$name: nothing else is left there" [ -z "$(compgen -G 'run/*.tmp*')" ]
}

if ! ldd "$program" | grep -q 'libmpi' || ! command -v mpirun >/dev/null; then
    skip "no MPI, no ranks"
    finish
fi
# MPICH's mpirun kills all ranks where one is killed: the launcher alone is left to say it, unless a
# rank was faster. UCX, below it, aborts (signal 6) and complains where it reads the memory of a rank
# that is gone: which of the two signals it tells of is chance.
mpich=
ldd "$program" | grep -q libmpich && mpich=1

# ---- killed ----

in_a_step() {
    begin "$program" $small $dp
    kill -KILL $second
    ended 10 137 'rank 1 \(.*\) ended'
    goes_on $dp
}
# Where one is stopped, the other soon waits for it.
in_a_collective() { # layout; the rank that is killed: one that waits
    begin "$program" $small $1
    local victim other
    victim=$(rank $2) other=$(rank $((1 - $2)))
    kill -STOP $other
    sleep 0.5
    kill -KILL $victim
    kill -CONT $other
    ended 10 137 "rank $2 \\(.*\\) ended"
    goes_on $1
}
# Stopped while they write, to be sure that they do.
in_the_middle() {
    for _ in $(seq 2000); do
        until compgen -G 'run/*.tmp/model*' >/dev/null; do :; done
        kill -STOP $ranks
        compgen -G 'run/*.tmp/model*' >/dev/null && return
        kill -CONT $ranks
    done
    return 1
}
in_a_checkpoint() { # layout, rank
    begin "$program" $small $1
    check "$name" in_the_middle
    kill -KILL "$(rank $2)"
    kill -CONT $ranks 2>/dev/null
    ended 10 137 "rank $2 \\(.*\\) ended"
    goes_on $1
}
scene "killed in a step" in_a_step
scene "killed in a collective" in_a_collective "$dp" 1
scene "killed in a collective, zero" in_a_collective "$zero" 0
scene "killed in a collective, tp" in_a_collective "$tp" 1
scene "killed in a collective, pp" in_a_collective "$pp" 1
scene "killed in a checkpoint" in_a_checkpoint "$dp" 1
scene "killed in a checkpoint, zero" in_a_checkpoint "$zero" 0

# ---- hanging ----

stopped() { # layout, rank
    begin "$program" $small $1 --watchdog $patience
    sleep 1.5 # the others know where it is
    kill -STOP "$(rank $2)"
    ended $((patience + 10)) 1 \
        "rank $2 \\(.*\\) has not answered for $patience s, stopped or .*: it was [a-z ]* \\(step [0-9]+\\), (in|after) [a-z-]+$call; .*(in|after) [a-z-]+$call$"
}
stopped_for_a_while() {
    begin "$program" $small $dp --watchdog $patience
    kill -STOP $ranks # as a whole
    sleep $((patience + 2))
    local before
    before=$(cat run/latest)
    kill -CONT $ranks
    check "$name: goes on" wait_for 20 sh -c "[ \$(cat run/latest) != $before ]"
    kill -TERM $pid
    gone 10
    check "$name" grep -q '^stopped after step' log
}
scene "stopped" stopped "$dp" 1
scene "rank 0 stopped" stopped "$dp" 0
scene "stopped, zero" stopped "$zero" 1
scene "stopped, tp" stopped "$tp" 1
scene "stopped, pp" stopped "$pp" 0
scene "all stopped, and continued" stopped_for_a_while

# ---- told to stop ----

told() { # layout, the rank that is; none: the launcher
    begin "$program" $small $1
    local whom=$pid
    [ "$2" ] && whom=$(rank $2)
    kill -TERM $whom
    gone 10
    wait $pid
    local rc=$? step
    check "$name: status $rc" [ $rc = 143 ]
    step=$(sed -n 's/^stopped after step \([0-9]*\).*/\1/p' log)
    check "$name: all at the same step, which is saved" [ "$(cat run/latest)" = "$(printf 'step_%08d' "$step")" ]
    check "$name: no more is said" sh -c "! grep -q '^error' log"
    goes_on $1
}
mpirun_told() { # signal, status
    begin mpirun -n 2 "$program" $small
    kill -$1 $pid
    gone 10
    wait $pid
    local rc=$?
    # MPICH's gives 0 where a rank's output was closed before it looked at its status
    check "$name: status $rc" [ $rc = $2 -o "$mpich$rc" = 10 ]
    [ $1 = TERM ] || check "$name" grep -q '^stopped after step' log
    goes_on $dp
}
# The last evaluation, when the training itself is complete and saved: it is given up, and that is said.
told_at_the_end() {
    "$program" $small $dp --val-data fake:200000 --steps 5 --out run >log 2>&1 &
    pid=$!
    wait_for 60 grep -q '^step 5' log
    ranks=$(descendants $pid)
    sleep 0.5
    kill -TERM $pid
    gone 10
    wait $pid
    local rc=$?
    check "$name: status $rc" [ $rc = 0 ]
    check "$name: says so once" [ "$(grep -c '^note: a signal has ended the evaluation after step 5' log)" = 1 ]
    check "$name: is saved" [ "$(cat run/latest)" = step_00000005 ]
}
# Before mpirun, which has much to do, has started any rank.
told_early() {
    mkdir slow
    printf '#!/bin/sh\ntrap "" USR1\nsleep 3\nexec "%s" "$@"\n' "$(command -v mpirun)" >slow/mpirun
    chmod +x slow/mpirun
    PATH=$PWD/slow:$PATH "$program" $small $dp --out run --steps 1000000 >log 2>&1 &
    pid=$! ranks=
    sleep 1
    kill -TERM $pid
    gone 10
    wait $pid
    local rc=$?
    check "$name: status $rc" [ $rc = 143 ]
    check "$name: nothing has begun" [ ! -e run ]
}
scene "SIGTERM" told "$dp"
scene "SIGTERM in the last evaluation" told_at_the_end
scene "SIGTERM, too early for ranks" told_early
scene "SIGTERM to a rank" told "$dp" 1
scene "SIGTERM, zero" told "$zero"
scene "SIGTERM, tp" told "$tp"
scene "SIGTERM, pp" told "$pp"
scene "SIGUSR1 to mpirun" mpirun_told USR1 138
scene "SIGTERM to mpirun" mpirun_told TERM $((mpich ? 143 : 1)) # MPICH's passes it on, and no more

# ---- a library, loaded before all others, makes mistakes in rank 1 ----

cat >fault.c <<'END'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int meant(const char *what)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *fault = getenv("FAULT");
    rank = rank ? rank : getenv("PMI_RANK");
    return rank && fault && !strcmp(rank, "1") && !strcmp(fault, what);
}
int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = va_arg(args, int);
    va_end(args);
    while (strstr(path, "stuck") && meant("disk"))
        pause();
    if (strstr(path, "run/") && (flags & O_ACCMODE) != O_RDONLY && meant("read-only")) {
        errno = EROFS;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at)
{
    if (meant("full")) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, bytes, n, at);
}
/* In the middle of a step. */
int MPI_Isend(const void *x, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *r)
{
    static int sent;
    while (meant("silence") && ++sent > 40)
        pause();
    return PMPI_Isend(x, n, type, to, tag, comm, r);
}
int MPI_Init_thread(int *argc, char ***argv, int wanted, int *given)
{
    if (meant("init"))
        kill(getpid(), SIGKILL);
    return PMPI_Init_thread(argc, argv, wanted, given);
}
int MPI_Finalize(void)
{
    if (meant("finalize"))
        kill(getpid(), SIGKILL);
    return PMPI_Finalize();
}
END
faulty() { # fault, status, pattern, arguments...
    local fault=$1 status=$2 pattern=$3 started=$SECONDS
    shift 3
    LD_PRELOAD=$tmp/fault.so FAULT=$fault timeout 60 "$program" $small "$@" --watchdog $patience >log 2>&1
    local rc=$?
    check "$name: status $rc" ended_with "$status" $rc
    check "$name: in $((SECONDS - started)) s" [ $((SECONDS - started)) -lt $((patience + 15)) ]
    said "$status" "$pattern"
}
full() { # layout
    faulty full 1 'rank 1: run/step_00000002.tmp/.*: No space left on device' --out run --steps 2 $1
    check "$name: no half of a checkpoint" [ -z "$(compgen -G 'run/step*')" ]
}
# Found out before the first step, and not when there is something to save.
read_only() {
    faulty read-only 1 'rank 1: run: cannot write to a file of rank 0: Read-only file system' --out run \
        --steps 2 $zero
    check "$name: before the first step" sh -c "! grep -q '^step' log"
}
read_only_dp() {
    LD_PRELOAD=$tmp/fault.so FAULT=read-only timeout 60 "$program" $small --out run --steps 2 $dp >log 2>&1
    local rc=$?
    check "$name: status $rc" [ $rc = 0 ]
    check "$name: is said" grep -q '^note: rank 1: run: .*Read-only.*; rank 0 saves the run by itself' log
    check "$name: is saved" test -e run/step_00000002
}
hanging_disk() {
    mkdir -p pictures/a pictures/b
    for i in $(seq 32); do
        printf 'P3 1 1 255 %d 0 0' "$i" >"pictures/a/$i.ppm"
        printf 'P3 1 1 255 0 %d 0' "$i" >"pictures/b/$i.ppm"
    done
    mv pictures/b/9.ppm pictures/b/stuck.ppm
    faulty disk 1 "rank 1 \\(.*\\) has done nothing for $patience s, and others wait: it was reading images \\(step [0-9]+\\), after [a-z-]+$call; waiting: $waits [a-z-]+$call$" \
        $dp --data pictures --no-augment --out run --steps 100
}
hanging_directory() {
    faulty disk 1 "rank 1 \\(.*\\) has done nothing for $patience s, and others wait: it was opening the run.s directory.*; waiting: rank 0 opening .*, in sum [0-9]+ of the hosts$" \
        $zero --out stuck --steps 100
}
silent() { # one is in a call, of which another's message never comes
    faulty silence 1 "all ranks have waited for each other for $patience s: ranks? .*, in all-reduce [0-9]+ of [0-9.]+ (kB|bytes) \\(data parallel\\)" \
        $dp --out run --steps 1000
}
in_mpi() { # call
    faulty "$1" 137 'rank 1 \(.*\) ended' $dp --out run --steps 3
    [ "$1" = init ] || check "$name: the run is there" test -e run/step_00000003
}
if ${MPICC:-mpicc} -shared -fPIC -o fault.so fault.c 2>log; then
    scene "a disk that hangs" hanging_disk
    scene "a directory that hangs" hanging_directory
    scene "a disk that is read-only for one, zero" read_only
    scene "a disk that is read-only for one" read_only_dp
    for layout in "$dp" "$zero" "$tp" "$pp"; do scene "a full disk, $layout" full "$layout"; done
    scene "a message that never comes" silent
    scene "killed in MPI_Init" in_mpi init
    scene "killed in MPI_Finalize" in_mpi finalize
else
    skip "no mpicc for a library that makes mistakes"
fi

all_played
