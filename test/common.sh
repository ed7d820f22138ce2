# shellcheck shell=bash
# What the shell tests share; each sources it once it knows the full paths of its programs:
#
#   . "$here/common.sh"     goes to a temporary folder, $tmp, which goes with the script
#   need PROGRAM...         ends the test where one of them is not there
#   check NAME COMMAND...   counts a test, which passes when the command succeeds
#   run ARGUMENT...         of the command that the script is about, which it names in `subject`, an
#                           array: what that prints is in ./log, its status in $rc
#   good NAME ARGUMENT...   it ends well
#   bad NAME STATUS PATTERN ARGUMENT...   it is refused
#   refused NAME STATUS PATTERN   $rc is that, and ./log has an error and a hint, one of which matches
#   field RUN KEY           a number of each line of a run's log that has it
#   same NAME RUN RUN       the last checkpoints of two runs have the same bits
#   wait_for SECONDS COMMAND...   until it succeeds; or fails with it
#   finish                  prints `N passed, N failed, N skipped` and ends with the status that says so
#
# Scripts leave what a program printed in ./log, of which a failure shows the end. Counts are lines of
# a file, so that scenes can be played side by side.
tmp=$(mktemp -d) || exit 1
trap 'umount "$tmp/small" 2>/dev/null; rm -rf "$tmp"' EXIT
cd "$tmp" && : >results && : >log || exit 1
rc=0
subject=() # of run
export XDG_CACHE_HOME=$tmp/cache
export VIT_BF16_PRODUCTS=floats # else eval would compute in bf16 on some CPUs, and in fp32 on others
# for mpirun without our own launcher: containers are root's, and ranks more than cores
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1

pass() { echo passed >>"$tmp/results"; }
skip() { echo skipped >>"$tmp/results"; echo "SKIP $1"; }
fail() {
    echo failed >>"$tmp/results"
    echo "FAIL $1"
    grep -v '^step' log | tail -n 12 | sed 's/^/  | /'
}
check() {
    local name=$1
    shift
    if "$@"; then pass; else fail "$name"; fi
}
count() { grep -c "^$1" "$tmp/results"; }
finish() {
    echo "$(count passed) passed, $(count failed) failed, $(count skipped) skipped"
    [ "$(count failed)" = 0 ]
    exit
}
need() {
    local program
    for program in "$@"; do
        [ -x "$program" ] && continue
        fail "no program $program"
        finish
    done
}
run() {
    "${subject[@]}" "$@" >log 2>&1
    rc=$?
}
good() {
    local name=$1
    shift
    run "$@"
    check "$name (status $rc)" [ $rc = 0 ]
}
bad() {
    local name=$1 status=$2 pattern=$3
    shift 3
    run "$@"
    refused "$name" "$status" "$pattern"
}
refused() {
    check "$1: status $rc, not $2" [ $rc = "$2" ]
    check "$1: says error and hint" \
        sh -c "grep -q '^error: ' log && grep -q '^hint: ..' log && grep -qE -- '$3' log"
}
field() { sed -nE 's/.*"'"$2"'":([^,}]*)[,}].*/\1/p' "$1/log.jsonl"; }
last() { echo "$1/$(cat "$1/latest")"; }
same() {
    check "$1: weights" cmp -s "$(last "$2")/model.safetensors" "$(last "$3")/model.safetensors"
    check "$1: state" cmp -s "$(last "$2")/train_state.safetensors" "$(last "$3")/train_state.safetensors"
}
wait_for() {
    local n=$(($1 * 20))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $((n--)) -gt 0 ] || return 1
        sleep 0.05
    done
}
descendants() { # process: those that run $program, below mpirun and its helpers
    local p
    for p in $(pgrep -P "$1"); do
        if [ "$(readlink "/proc/$p/exe")" = "$program" ]; then echo "$p"; else descendants "$p"; fi
    done
}
