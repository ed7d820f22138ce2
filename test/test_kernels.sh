#!/bin/bash
# scripts/kernels_report: what passes its budget, and what does not.
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
kernel() { # mangled name, architecture, registers, stack, spilled
    echo "ptxas info    : Compiling entry function '$1' for '$2'"
    echo "ptxas info    : Function properties for $1"
    echo "    $4 bytes stack frame, $5 bytes spill stores, $5 bytes spill loads"
    echo "ptxas info    : Used $3 registers, used 1 barriers, 1024 bytes smem"
}
check() { # name, passes|fails, what is said, budget...
    local name=$1 how=$2 said=$3 status
    shift 3
    printf '%s\n' "architectures sm_80 ${judged-sm_90a}" "$@" >"$tmp/budget"
    scripts/kernels_report "$tmp/log" "$tmp/budget" >"$tmp/said" 2>&1
    status=$?
    if [ $((status == 0)) = $((how == 1)) ] && grep -qE "$said" "$tmp/said"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: $(cat "$tmp/said")"
    fi
}
both() { # the same for both architectures
    kernel _Z1kILi4EEvPf sm_80 "$@"
    kernel _Z1kILi4EEvPf sm_90a "$@"
}
both 128 0 0 >"$tmp/log"
check "fits" 1 '2 passed, 0 failed' 'k<4> 128 0'
check "blocks" 1 'sm_90a .* 2 blocks +k<4>' 'k<4> 128 0 256 1000 2'
check "blocks by registers" 0 'FAIL blocks < 3' 'k<4> 128 0 256 1000 3'
check "blocks by memory" 0 'sm_80 .* 1 blocks .*FAIL blocks < 2' 'k<4> 128 0 256 90000 2'
check "registers" 0 'FAIL registers > 127' 'k<4> 127 0'
check "the first line counts" 0 'no kernel is a k$' 'k<4> 128 0' 'k 1 0'
check "no line" 0 'FAIL no line' 'other 128 0'
check "no such kernel" 0 'no kernel is a other' 'k<4> 128 0' 'other 128 0'
judged='' check "another architecture" 1 '1 passed, 0 failed, 1 skipped' 'k<4> 128 0'
both 128 8 8 >"$tmp/log"
check "spills" 0 'FAIL spilled > 15' 'k<4> 128 15'
check "spills that are known" 1 '2 passed' 'k<4> 128 16'
{
    kernel _Z1kIL3End2EEvPf sm_80 4 0 0
    kernel _Z1kIL3End2EEvPf sm_90a 128 0 0
} >"$tmp/log"
check "empty for another architecture" 1 '2 passed' 'k<2> 128 0 256 170000 1'
both 128 8 8 >"$tmp/log"
kernel _Z1kILi8EEvPf sm_80 20 0 0 >>"$tmp/log"
check "half a log" 0 'not whole' '.* 128 16'
: >"$tmp/log"
check "no log" 0 'not whole: 0 kernels'
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
