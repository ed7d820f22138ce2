#!/bin/bash
# Mutation check: flip a sign (or drop a factor) in each op, and see the suite fail.
#
#   test/mutate.sh [BUILD]      BUILD holds the double objects of an ordinary build (default: build)
#
# Each line of the table is `file | sed expression`. The mutant is compiled in double and must fail
# the finite differences (test_grad) or, for what gradients cannot see, the tests of single operations
# or the goldens (test_ops, test_golden).
# A mutant that survives, or an expression that no longer changes its file, is a failure.
build=${1:-build}
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
backend_cpu.c | s/sum\[DBIAS\]\[j\] += d\[j\];/sum[DBIAS][j] -= d[j];/
backend_cpu.c | s/sum\[DLS\]\[j\] += dx\[j\]/sum[DLS][j] -= dx[j]/
backend_cpu.c | s/out\[j\] \*= ls\[j\];/out[j] *= -ls[j];/
backend_cpu.c | s/(mask\[j\] \* d\[j\] - D)/(mask[j] * d[j] + D)/
backend_cpu.c | s/p\[j\] \* (d\[j\] - D)/p[j] * (d[j] + D)/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, P,/gemm(CblasTrans, CblasNoTrans, T, hs, n, -1, P,/
backend_cpu.c | s/gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, dP,/gemm(CblasNoTrans, CblasNoTrans, n, hs, T, -1, dP,/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, dP,/gemm(CblasTrans, CblasNoTrans, T, hs, n, -1, dP,/
backend_cpu.c | s/real beta = i0 > 0;/real beta = 0;/
backend_cpu.c | s/dq\[j\] += row(q,/dq[j] -= row(q,/
backend_cpu.c | s/dx\[j\] = in ? dy\[j\] \* inv : 0;/dx[j] = in ? -dy[j] * inv : 0;/
backend_cpu.c | s/\* mass - (double)y\[k\]/* mass + (double)y[k]/
backend_cpu.c | s/(v >= 0 ? 1 : e) \/ (1 + e) - (double)y\[k\]/(v >= 0 ? 1 : e) \/ (1 + e) + (double)y[k]/
backend_cpu.c | s/a\[i\] += b\[i\];/a[i] -= b[i];/
backend_cpu.c | s/drop_row(dx, n, (r % a->tokens) \* n,/drop_row(dx, n, (r % a->tokens) * n + 4,/
backend_cpu.c | s/patch_add(out, a, mix\[b\].partner, py, px, 1 -/patch_add(out, a, mix[b].partner, py, px, 0.5f -/
backend_cpu.c | s/c2 = 1 - pow(o->beta2/c2 = 1 + pow(o->beta2/
backend_cpu.c | s/l2 = o->kind == OPT_ADAM ? (real)wd/l2 = o->kind == OPT_ADAM ? -(real)wd/
backend_cpu.c | s/keep = o->kind == OPT_ADAMW ? (real)(1 - lr/keep = o->kind == OPT_ADAMW ? (real)(1 + lr/
backend_cpu.c | s/m\[i\] = momentum \* m\[i\] +/m[i] = -momentum * m[i] +/
backend_cpu.c | s/w\[i\] -= lr \* m\[i\];/w[i] += lr * m[i];/
backend_cpu.c | s/trust ? sqrt(ww) \/ sqrt(uu) : 1/trust ? sqrt(uu) \/ sqrt(ww) : 1/
backend_cpu.c | s/s->clip = c < 1 ? c : 1;/s->clip = 1;/
vit.c | s/be->zero(m->dstream,/be->zero(m->dy,/
vit.c | s/unit_reduce(m, l + 1);/(void)0;/
vit.c | s/unit_reduce(m, u);/(void)0;/
vit.c | s/\.gamma = w.norm1_w, \.mean/.gamma = w.norm2_w, .mean/
TABLE
}

flags="-std=c11 -D_GNU_SOURCE -O2 -march=native -fno-math-errno -fno-trapping-math -fopenmp -w -I. \
  -I/usr/include/$triple/openblas-openmp -DREAL=double"
libs="-L/usr/lib/$triple/openblas-openmp -Wl,-rpath,/usr/lib/$triple/openblas-openmp -lopenblas -ljpeg -lcjson -lm -lpthread"
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
        [ "$source" = "$file" ] || [ "$source" = train.c ] || objects="$objects $build/double/${source%.c}.o"
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
done < <(mutants)
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
