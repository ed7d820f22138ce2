#!/bin/bash
# scripts/pack with packages of our own making, and an NCCL inside of a Python package: what is packed
# is found by compiler and loader after `. DIR/env`, from wherever DIR has been moved to.
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
check() { # name, command...
    local name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $name: $(tail -n 3 "$tmp/log")"
    fi
}
if ! command -v dpkg-deb >/dev/null; then
    echo "0 passed, 0 failed, 1 skipped (no dpkg-deb)"
    exit 77
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
cc=${CC:-cc}
triple=$($cc -print-multiarch)
unset NCCL CPATH LIBRARY_PATH LD_LIBRARY_PATH CUDA_HOME

tree=$tmp/tree
lib=$tree/usr/lib/$triple/openblas-openmp
include=$tree/usr/include/$triple/openblas-openmp
mkdir -p "$tree/DEBIAN" "$lib" "$include" "$tree/usr/share/doc" "$tmp/debs"
printf 'Package: packed\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: test\n' \
    >"$tree/DEBIAN/control"
echo 'int packed(void);' >"$include/packed.h"
echo 'int packed(void) { return 42; }' >"$tmp/packed.c"
$cc -shared -fPIC -o "$lib/libpacked.so" "$tmp/packed.c"
dpkg-deb -b "$tree" "$tmp/debs/packed.deb" >/dev/null

python=$tmp/site/nvidia/nccl
mkdir -p "$python/include" "$python/lib"
echo 'int nccl(void);' >"$python/include/nccl.h"
echo 'int nccl(void) { return 7; }' >"$tmp/nccl.c"
$cc -shared -fPIC -Wl,-soname,libnccl.so.2 -o "$python/lib/libnccl.so.2" "$tmp/nccl.c"

cat >"$tmp/use.c" <<'END'
#include <nccl.h>
#include <packed.h>
int main(void) { return packed() == 42 && nccl() == 7 ? 0 : 1; }
END
use() { # folder of env
    (
        export CUDA_HOME=$tmp/none PYTHONPATH=$tmp/site
        . "$1/env" && [ "${NCCL-}" = -lnccl ] &&
            $cc -o "$tmp/use" "$tmp/use.c" -lpacked $NCCL && "$tmp/use"
    )
}
no() { ! "$@"; }
check "packs" env DEBS="$tmp/debs" scripts/pack "$tmp/prefix"
check "documents are left out" [ ! -e "$tmp/prefix/usr/share" ]
check "not there without" no "$cc" -o "$tmp/use" "$tmp/use.c" -lpacked -lnccl
if echo '#include <nccl.h>' | $cc -E - >/dev/null 2>&1; then
    echo "skipped: this machine has an NCCL of its own"
    skipped=1
else
    check "compiler, loader and NCCL" use "$tmp/prefix"
    mkdir "$tmp/elsewhere" && mv "$tmp/prefix" "$tmp/elsewhere/"
    check "moved" use "$tmp/elsewhere/prefix"
    check "no NCCL is said" bash -c 'export PYTHON=false CUDA_HOME=/none; . "$0" 2>&1 | grep -q "one GPU"' \
        "$tmp/elsewhere/prefix/env"
fi
check "nothing to pack" no env DEBS="$tmp/none" scripts/pack "$tmp/prefix"
check "no option" no scripts/pack --everything
echo "$passed passed, $failed failed, ${skipped:-0} skipped"
[ $failed = 0 ]
