#!/bin/bash
# The tests of several processes by MPICH instead of Open MPI: test/test_mpich.sh [SHARED]
# Builds the program for it in build/mpich; its mpirun stands there in front of the others.
cd "$(dirname "$0")/.." || exit 1
if ! command -v mpirun.mpich mpicc.mpich >/dev/null; then
    echo "SKIP no MPICH (scripts/deps long)"
    echo "0 passed, 0 failed, 1 skipped"
    exit
fi
build=build/mpich
mkdir -p $build/bin
make --no-print-directory BUILD=$build MPI=mpicc.mpich NVCC= $build/train_cpu >$build/log 2>&1 ||
    { cat $build/log; exit 1; }
# a script, not a link: it looks for its helpers beside itself
printf '#!/bin/sh\nexec mpirun.mpich "$@"\n' >$build/bin/mpirun
chmod +x $build/bin/mpirun
export MPICC=mpicc.mpich PATH=$PWD/$build/bin:$PATH
test/run $build/logs "test/test_ranks.sh $build/train_cpu ${1-}" "test/test_faults.sh $build/train_cpu" \
    "test/test_netns.sh $build/train_cpu" "test/test_slurm.sh $build/train_cpu"
