#!/bin/bash
# Mutation check: flip a sign (or drop a factor) in each op, and see the suite fail.
#
#   test/mutate.sh [BUILD [cpu|cuda]]   BUILD holds the objects of an ordinary build (default: build);
#                                       cpu or cuda: those mutants alone
#
# Each line of a table is `file | sed expression`. Mutants of the model and the CPU backend are
# compiled in double and must fail the finite differences (test_grad) or, for what gradients cannot
# see, the tests of single operations or the goldens (test_ops, test_golden). Mutants of the CUDA
# backend run on the stand-ins: kernels must fail test_ops, what orders streams (a wait left out, a
# buffer used too early) must fail training (test_cuda.sh) under one of a few orders.
# A mutant that survives, or an expression that no longer changes its file, is a failure.
build=${1:-build} which=${2:-cpu cuda}
cc=${CC:-gcc}
work=$build/mutants
triple=$($cc -print-multiarch)
mkdir -p "$work"
export VIT_STARTED=1 # the models are tiny: any kernels do
passed=0 failed=0

mutants() {
    cat <<'TABLE'
backend_cpu.c | s/d\[i\] \*= phi + v \* INV_SQRT_2PI/d[i] *= phi - v * INV_SQRT_2PI/
backend_cpu.c | s/(real)0.5 \* (1 + t) + (real)0.5 \* v/(real)0.5 * (1 + t) - (real)0.5 * v/
backend_cpu.c | s/d\[i\] \*= 1 - t \* t;/d[i] *= 1 + t * t;/
backend_cpu.c | s/sum\[j\] += dx\[j\];/sum[j] -= dx[j];/
backend_cpu.c | s/a->accumulate ? 1 : 0/a->accumulate ? -1 : 0/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, 1,/gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, -1,/
backend_cpu.c | s/gemm(CblasNoTrans, CblasNoTrans, a->rows, a->in, a->out, 1,/gemm(CblasNoTrans, CblasNoTrans, a->rows, a->in, a->out, -1,/
backend_cpu.c | s/dpos\[j\] += dx\[j\];/dpos[j] -= dx[j];/
backend_cpu.c | s/sum\[j\] += row(x, r)\[j\];/sum[j] -= row(x, r)[j];/
backend_cpu.c | s/dgamma\[j\] += dy\[j\] \* n;/dgamma[j] -= dy[j] * n;/
backend_cpu.c | s/dbeta\[j\] += dy\[j\];/dbeta[j] -= dy[j];/
backend_cpu.c | s/(dy\[j\] \* gamma\[j\] - s1 -/(dy[j] * gamma[j] + s1 -/
backend_cpu.c | s/- s1 - (x\[j\] - mean)/- s1 + (x[j] - mean)/
backend_cpu.c | s/dbias\[j\] += d\[j\];/dbias[j] -= d[j];/
backend_cpu.c | s/dls\[j\] += dx\[j\]/dls[j] -= dx[j]/
backend_cpu.c | s/out\[j\] \*= gain\[j\];/out[j] *= -gain[j];/
backend_cpu.c | s/(mask\[j\] \* d\[j\] - D)/(mask[j] * d[j] + D)/
backend_cpu.c | s/p\[j\] \*= mask\[j\];/;/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, P,/gemm(CblasTrans, CblasNoTrans, T, hs, n, -1, P,/
backend_cpu.c | s/gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, dP,/gemm(CblasNoTrans, CblasNoTrans, n, hs, T, -1, dP,/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, dP,/gemm(CblasTrans, CblasNoTrans, T, hs, n, -1, dP,/
backend_cpu.c | s/real beta = i0 > 0;/real beta = 0;/
backend_cpu.c | s/dq\[j\] += row(a->dqkv,/dq[j] -= row(a->dqkv,/
backend_cpu.c | s/dx\[j\] = in ? dy\[j\] \* inv : 0;/dx[j] = in ? -dy[j] * inv : 0;/
backend_cpu.c | s/\* mass - (double)y\[k\]/* mass + (double)y[k]/
backend_cpu.c | s/(v >= 0 ? 1 : e) \/ (1 + e) - (double)y\[k\]/(v >= 0 ? 1 : e) \/ (1 + e) + (double)y[k]/
backend_cpu.c | s/a\[i\] += b\[i\];/a[i] -= b[i];/
backend_cpu.c | s/drop_row(dx, n, r, a->tokens,/drop_row(dx, n, r + 1, a->tokens,/
backend_cpu.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 1, 0.5f - lambda/
backend_cpu.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 0, 1 - lambda/
backend_cpu.c | s/y < cut.y || y >= cut.y + cut.h/y <= cut.y || y >= cut.y + cut.h/
backend_cpu.c | s/c2 = 1 - pow(o->beta2/c2 = 1 + pow(o->beta2/
backend_cpu.c | s/l2 = o->kind == OPT_ADAM ? (real)s.decay/l2 = o->kind == OPT_ADAM ? -(real)s.decay/
backend_cpu.c | s/keep = o->kind == OPT_ADAMW ? (real)(1 - lr/keep = o->kind == OPT_ADAMW ? (real)(1 + lr/
backend_cpu.c | s/m\[i\] = momentum \* s/m[i] = -momentum * s/
backend_cpu.c | s/w\[i\] -= lr \* s/w[i] += lr * s/
backend_cpu.c | s/trust ? sqrt(ww) \/ sqrt(uu) : 1/trust ? sqrt(uu) \/ sqrt(ww) : 1/
backend_cpu.c | s/s->clip = c < 1 ? c : 1;/s->clip = 1;/
vit.c | s/be->zero(m->dstream,/be->zero(m->dy,/
vit.c | s/unit_reduce(m, l + 1);/(void)0;/
vit.c | s/unit_reduce(m, u);/(void)0;/
vit.c | s/\.gamma = w.norm1_w, \.mean/.gamma = w.norm2_w, .mean/
TABLE
}

cuda_mutants() {
    cat <<'TABLE'
cuda/attention.cuh | s/__syncthreads(); \/\* this stage is complete/\/* this stage is complete/
cuda/attention.cuh | s/cp_async_wait<0>();/cp_async_wait<1>();/
cuda/attention.cuh | s/x \* (m \* dp\[i\]\[e\] - delta\[e \/ 2\])/x * (m * dp[i][e] + delta[e \/ 2])/
cuda/attention.cuh | s/dp\[i\]\[e\] = x \* (m \* dp\[i\]\[e\] - delta\[query\]);/dp[i][e] = x * (m * dp[i][e] + delta[query]);/
cuda/attention.cuh | s/sum\[r\] \*= shrink;/;/
cuda/attention.cuh | s/if (!FULL \&\& 16 \* n + p.at_column(i, e) >= keys)/if (!FULL \&\& 16 * n + p.at_column(i, e) > keys)/
cuda/layers.cuh | s/d\[k\] += rstd\[m\] \* (dyk/d[k] -= rstd[m] * (dyk/
cuda/layers.cuh | s/sum\[SUM_DBETA\]\[j\]\[k\] += dyk;/sum[SUM_DBETA][j][k] -= dyk;/
cuda/layers.cuh | s/cut ? g->partner : b, c, y, x/cut ? b : g->partner, c, y, x/
cuda/layers.cuh | s/(unsigned)(x - r.x) < (unsigned)r.w/(unsigned)(x - r.x) <= (unsigned)r.w/
cuda/layers.cuh | s/g->lambda < 1 || g->cut.h > 0/g->lambda < 1/
cuda/layers.cuh | s/room\[warp \* 32 + lane\] = sum;/room[warp * 32 + lane] = -sum;/
cuda/optimizer.cuh | s/^    if (s->skip)$/    if (!s->skip)/
cuda/gemm.cuh | s/p.C ? 1.0f : 0.0f/p.C ? 0.0f : 1.0f/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(cu.stream, event_of(t), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(copies, event_of(after), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(cu.stream, join_event, 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(collectives, fork_event, 0));/;/
vit.c | s/    be->wait(in->sent);/    (void)0;/
TABLE
}

flags="-std=c11 -D_GNU_SOURCE -O2 -march=native -fno-math-errno -fno-trapping-math -fopenmp -w -I. \
  -I/usr/include/$triple/openblas-openmp -DREAL=double"
libs="-L/usr/lib/$triple/openblas-openmp -Wl,-rpath,/usr/lib/$triple/openblas-openmp -lopenblas -ljpeg -lcjson $(cat "$build/libs") -lm -lpthread"
while IFS='|' read -r file expression; do
    file=${file// /}
    expression=${expression# }
    name=${file%.c}
    sed "$expression" "$file" >"$work/$file"
    if cmp -s "$file" "$work/$file"; then
        echo "FAIL does not apply: $file: $expression"
        failed=$((failed + 1))
        continue
    fi
    objects=
    for source in *.c; do
        [ "$source" = "$file" ] || [ "$source" = train.c ] || [ "$source" = tools.c ] || objects="$objects $build/double/${source%.c}.o"
    done
    if ! { $cc $flags -c -o "$work/$name.o" "$work/$file" &&
        $cc $flags -o "$work/test_grad" test/test_grad.c "$work/$name.o" $objects $libs &&
        $cc $flags -o "$work/test_ops" test/test_ops.c "$work/$name.o" $objects $libs &&
        $cc $flags -o "$work/test_golden" test/test_golden.c "$work/$name.o" $objects $libs; }; then
        echo "FAIL does not compile: $file: $expression"
        failed=$((failed + 1))
    elif "$work/test_grad" >"$work/log" 2>&1 && "$work/test_ops" >>"$work/log" 2>&1 &&
        "$work/test_golden" test/golden/*.safetensors >>"$work/log" 2>&1; then
        echo "FAIL survived: $file: $expression"
        failed=$((failed + 1))
    else
        passed=$((passed + 1))
    fi
done < <([[ $which == *cpu* ]] && mutants)

# The same for the CUDA backend.
standin="-std=c++20 -D_GNU_SOURCE -O1 -march=native -fopenmp -w -Itest/cuda_on_cpu -I. \
  -I/usr/include/$triple/openblas-openmp"
caught_by_training() { # under the order of some seed
    local seed
    for seed in 1 2 3; do
        VIT_STANDIN_SEED=$seed TEST_SMALL=1 test/test_cuda.sh "$work/standin_train_gpu" \
            ./train_cpu >"$work/log" 2>&1 || return 0
    done
    return 1
}
while IFS='|' read -r file expression; do
    file=${file// /}
    expression=${expression# }
    rm -rf "$work/src"
    mkdir -p "$work/src"
    cp -r backend_cuda.cu cuda vit.c "$work/src"
    sed -i "$expression" "$work/src/$file"
    if cmp -s "$file" "$work/src/$file"; then
        echo "FAIL does not apply: $file: $expression"
        failed=$((failed + 1))
        continue
    fi
    objects="$work/cuda.o $work/vit32.o"
    for source in *.c; do
        [ "$source" = vit.c ] || [ "$source" = train.c ] || [ "$source" = tools.c ] || objects="$objects $build/float/${source%.c}.o"
    done
    for source in test/cuda_on_cpu/*.cpp; do
        source=${source##*/}
        objects="$objects $build/standin/${source%.cpp}.o"
    done
    if ! { ${CXX:-g++} $standin -x c++ -c -o "$work/cuda.o" "$work/src/backend_cuda.cu" &&
        $cc ${flags% -DREAL=double} -c -o "$work/vit32.o" "$work/src/vit.c" &&
        $cc ${flags% -DREAL=double} -o "$work/test_ops" test/test_ops.c $objects -lboost_context -lrt -lstdc++ $libs &&
        $cc ${flags% -DREAL=double} -o "$work/standin_train_gpu" "$build/float/train.o" $objects -lboost_context -lrt -lstdc++ $libs; }; then
        echo "FAIL does not compile: $file: $expression"
        failed=$((failed + 1))
    elif case $file in
        cuda/*) ! { "$work/test_ops" --backend cuda --type bf16 && "$work/test_ops" --backend cuda --type fp32; } >"$work/log" 2>&1 ;;
        *) caught_by_training ;;
        esac; then
        passed=$((passed + 1))
    else
        echo "FAIL survived: $file: $expression"
        failed=$((failed + 1))
    fi
done < <([[ $which == *cuda* ]] && cuda_mutants)
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
