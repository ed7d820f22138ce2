#!/bin/bash
# The house keeps its order: test/test_layers.sh BUILD. Looks at the sources' includes, and at the
# objects in BUILD/float (of `make objects`) for who calls whom.
build=${1:-build}
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
check() { # what is right, what was found against it
    if [ -z "$2" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAIL %s:\n%s\n' "$1" "$2"
    fi
}

# Floors: a file includes what is on its own or below; a file in the root is a floor by its name.
floors="util 0  model 1  image 1  backend 2  cpu 3  cuda 3  weights 2  datasets 2  dist 3  data 3
        backend_cpu 4  backend_cuda 4  vit 4  checkpoint 5  plan 5  results 5  train/ 6  tools 7  train 7"
files=$(ls ./*.[ch] ./*.cu ./*/*.[ch] cuda/*.cuh | sed 's,^\./,,' | grep -v '^\(test\|bench\|build\)/')
includes=$(grep -H '^#include "' $files | sed 's/:#include "/ /; s/".*//')

up=$(awk -v floors="$floors" '
    function room(path) {
        if (path ~ /^train\//) return "train/"
        if (path ~ /\//) return substr(path, 1, index(path, "/") - 1)
        return substr(path, 1, index(path, ".") - 1)
    }
    BEGIN { n = split(floors, f); for (i = 1; i < n; i += 2) floor[f[i]] = f[i + 1] }
    { a = room($1); b = room($2)
      if (!(a in floor) || !(b in floor)) print "  " $1 " includes " $2 ": which floor is that?"
      else if (a != b && floor[a] <= floor[b]) print "  " $1 " includes " $2 }' <<<"$includes")
check "nothing includes upwards" "$up"

excused=$(grep -n '^#include.*/\*' $files)
check "an include needs no excuse" "$excused"

devices=$(grep -lE '#include <(cblas|mpi|cuda|cublas|nccl)' $files | grep -v '^\(backend_\|cuda/\|cpu/\)')
check "libraries of devices are for the backends alone" "$devices"

root=$({ git ls-files 2>/dev/null || ls; } | grep -v '/\|^\.' | wc -l)
check "at most 16 files in the root" "$([ "$root" -le 16 ] || echo "  $root files")"

guards=$(grep '\.\(h\|cuh\)$' <<<"$files" | xargs grep -L '^#pragma once')
check "headers are read once" "$guards"

bounds=$(awk '/__global__.*__launch_bounds__\(/ { at = FILENAME ":" FNR }
    at && /^{/ { for (said = i = 0; i < 3; i++) { getline; said += /launched_within</ }
                 if (!said) print "  " at; at = "" }' cuda/*.cuh)
check "a kernel with bounds says so to the stand-in" "$bounds"

long=$(awk 'length > 100 { print "  " FILENAME ":" FNR }' $files)
check "100 columns" "$long"

# A calls B where A's object wants a symbol that B's has; tsort finds circles.
objects=$(grep '\.c$' <<<"$files" | sed "s,.*,$build/float/&,; s/c$/o/")
if ! ls $objects >/dev/null 2>&1; then
    echo "FAIL no objects in $build/float: make objects"
    failed=$((failed + 1))
else
    circles=$(nm -A --defined-only --extern-only $objects | sed 's/:[^ ]* [A-Z] / /' |
        awk 'NR == FNR { home[$2] = $1; next } $2 in home && home[$2] != $1 { print $1, home[$2] }' \
            - <(nm -A --undefined-only $objects | sed 's/: *U / /') | sort -u | tsort 2>&1 >/dev/null)
    check "no two files call each other in a circle" "$circles"
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
