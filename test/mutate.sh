#!/bin/bash
# Mutation check: flip a sign (or drop a factor) in each op, and see the suite fail.
#
#   test/mutate.sh [BUILD [cpu|ranks|cuda [I/N]]]   BUILD holds the objects of an ordinary build
#                                                   (default: build); cpu, ranks or cuda: those
#                                                   mutants alone; I/N: every Nth of them from the Ith
#
# Each line of a table is `file | sed expression`. Mutants of the model and the CPU backend must fail
# the finite differences (test_grad), the tests of single operations or the goldens, in double; sums
# over ranks are test_reduce's.
# Mutants of what ranks share must fail test_layouts, on CPUs or, where a wait is left out, on the
# stand-ins, whose streams are late.
# Mutants of the CUDA backend run on the stand-ins: kernels must fail test_ops, what orders streams (a
# wait left out, a buffer used too early) must fail training (test_cuda.sh) under one of a few orders.
# A mutant that survives, or an expression that no longer changes its file, is a failure.
# All of it happens in a copy of the tree, which the Makefile builds.
build=${1:-build} which=${2:-cpu ranks cuda} part=${3:-1/1}
tree=$build/mutants
export VIT_STARTED=1 # the models are tiny: any kernels do
passed=0 failed=0 number=0

mutants() {
    cat <<'TABLE'
backend_cpu.c | s/d\[i\] \*= phi + v \* INV_SQRT_2PI/d[i] *= phi - v * INV_SQRT_2PI/
backend_cpu.c | s/(real)0.5 \* (1 + t) + (real)0.5 \* v/(real)0.5 * (1 + t) - (real)0.5 * v/
backend_cpu.c | s/d\[i\] \*= 1 - t \* t;/d[i] *= 1 + t * t;/
backend_cpu.c | s/sum\[j\] += dx\[j\];/sum[j] -= dx[j];/
backend_cpu.c | s/a->accumulate ? 1 : 0/a->accumulate ? -1 : 0/
backend_cpu.c | s/gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, 1,/gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, -1,/
backend_cpu.c | s/gemm(CblasNoTrans, CblasNoTrans, a->rows, n, a->out, 1,/gemm(CblasNoTrans, CblasNoTrans, a->rows, n, a->out, -1,/
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
backend_cpu.c | s/at\[r\] = r \* size\[me\];/at[r] = (ranks - 1 - r) * size[me];/
backend_cpu.c | s/drop_row(dx + gate, n, r, a->tokens,/drop_row(dx + gate, n, r + 1, a->tokens,/
backend_cpu.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 1, 0.5f - lambda/
backend_cpu.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 0, 1 - lambda/
backend_cpu.c | s/y < cut.y || y >= cut.y + cut.h/y <= cut.y || y >= cut.y + cut.h/
backend_cpu.c | s/c2 = 1 - pow(o->beta2/c2 = 1 + pow(o->beta2/
backend_cpu.c | s/l2 = o->kind == OPT_ADAM ? (real)s.decay/l2 = o->kind == OPT_ADAM ? -(real)s.decay/
backend_cpu.c | s/keep = o->kind == OPT_ADAMW ? (real)(1 - s.lr/keep = o->kind == OPT_ADAMW ? (real)(1 + s.lr/
backend_cpu.c | s/s.lr \* ratio/state->lr * ratio/
backend_cpu.c | s/m\[i\] = momentum \* s/m[i] = -momentum * s/
backend_cpu.c | s/w\[i\] -= lr \* s/w[i] += lr * s/
backend_cpu.c | s/trust ? sqrt(ww) \/ sqrt(uu) : 1/trust ? sqrt(uu) \/ sqrt(ww) : 1/
backend_cpu.c | s/s->clip = c < 1 ? c : 1;/s->clip = 1;/
vit.c | s/be->zero(m->dstream,/be->zero(m->dy,/
vit.c | s/unit_reduce(&m->own, l + 1, b->number, b->last);/(void)0;/
vit.c | s/unit_reduce(&m->own, u, b->number, b->last);/(void)0;/
vit.c | s/^    take_state(w->m, w->b);$//
model/params.c | s/round_up(at - start + 1, VIT_CHUNK)/(at - start + VIT_CHUNK)/
model/params.c | s/pow(decay, last - p->unit)/pow(decay, last - p->unit + 1)/
model/params.c | s/p->unit >= frozen;/p->unit > frozen;/
dist.c | s/    if (micro > 0)/    if (micro > 1)/
vit.c | s/\.gamma = w.norm1_w, \.mean/.gamma = w.norm2_w, .mean/
TABLE
}

rank_mutants() {
    cat <<'TABLE'
dist.c | s/shards_weights(u) ? unit % 2 \* u->layout->largest : at/shards_weights(u) ? unit \/ 2 % 2 * u->layout->largest : at/
dist.c | s/bool first = u->reducing\[i\].micro == 0;/bool first = true;/
dist.c | s/sum_parts(u, u->norms, 2L \* s.n);/;/
dist.c | s/(next - unit) % 2)$/(next - unit) % 2 == 0)/
model/params.c | s/(copy ? CHUNK_COPY : 0)/0/
model/params.c | s/(number \* tp + r) \* stretch + within/(number + r) * stretch + within/
vit.c | s/d.first = m->split.tp.rank \* mine;/d.first = 0;/
vit.c | s/return ranks->rank == 0 ? bias : NULL;/return bias;/
vit.c | s/&m->micro\[micro % m->plan.in_flight\];/\&m->micro[(micro + 1) % m->plan.in_flight];/
vit.c | s/    if (m->split.tp.rank > 0)$/    if (false)/
vit.c | s/^    sum_parts(m, tp, dy, r.n, C);$/    ;/
vit.c | s/next = l < lowest_unit(m) ? -1 : next;/;/
vit.c | s/return l - (l - first_block(m)) % m->plan.recompute.group;/return first_block(m);/
TABLE
}

# Waits that the order of streams must show.
late_mutants() {
    cat <<'TABLE'
dist.c | s/    u->be->join(u->coming\[unit % 2\]);/    ;/
dist.c | s/    be->join(u->reducing\[i\].ticket);/    ;/
vit.c | s/^    m->be->join(m->returned);$/    ;/
vit.c | s/^    be->join(b->passed);$/    ;/
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
cuda/layers.cuh | s/d\[1\]\[k\] = dy \* g \* plus;/d[1][k] = dy * g * minus;/
cuda/layers.cuh | s/- g_sum - n.v\[r\]\[k\] \* gn_sum/- g_sum + n.v[r][k] * gn_sum/
cuda/layers.cuh | s/for (int d = lanes; d < 32; d \*= 2)/for (int d = lanes; d < 16; d *= 2)/
cuda/layers.cuh | s/cut ? g->partner : b, c, y, x/cut ? b : g->partner, c, y, x/
cuda/layers.cuh | s/(unsigned)(x - r.x) < (unsigned)r.w/(unsigned)(x - r.x) <= (unsigned)r.w/
cuda/layers.cuh | s/g->lambda < 1 || g->cut.h > 0/g->lambda < 1/
cuda/layers.cuh | s/room\[warp \* 32 + lane\] = sum;/room[warp * 32 + lane] = -sum;/
cuda/optimizer.cuh | s/^    if (s->skip)$/    if (!s->skip)/
cuda/optimizer.cuh | s/(double)c.rate \* (double)ratio/(double)ratio/
cuda/optimizer.cuh | s/c.n = c.rate > 0 ? c.n : 0;/;/
cuda/gemm_sm90.cuh | s/mbarrier_wait(t.empty + stage, ring.parity() ^ 1);/;/
cuda/gemm_sm90.cuh | s/mbarrier_wait(t.empty + stage, ring.parity() ^ 1);/mbarrier_wait(t.empty + stage, ring.parity());/
cuda/gemm_sm90.cuh | s/mbarrier_wait(t.full + stage, ring.parity());/;/
cuda/gemm_sm90.cuh | s/^            mbarrier_init_fence();/            ;/
cuda/gemm_sm90.cuh | s/wgmma_wait<1>();/wgmma_wait<2>();/
cuda/gemm_sm90.cuh | s/wgmma_wait<0>(sums\[h\]);/wgmma_wait<1>(sums[h]);/
cuda/gemm_sm90.cuh | s/wgmma_fence(sums\[h\]);/;/
cuda/gemm_sm90.cuh | s/SWIZZLE_128, 8 \* SLAB_ROW, SLAB)/SWIZZLE_64, 8 * SLAB_ROW, SLAB)/
cuda/gemm_sm90.cuh | s/i > 0 || k > 0/true/
cuda/gemm_sm90.cuh | s/ring.at += u.blocks;/;/
cuda/gemm_sm90.cuh | s/mbarrier_wait(t.turn + group, (n - 1) \/ 2 % 2);/;/
cuda/gemm_sm90.cuh | s/(n - 1) \/ 2 % 2/n \/ 2 % 2/
cuda/gemm_sm90.cuh | s/named_barrier_sync(1 + group, SM90_GROUP);$/;/
cuda/gemm_sm90.cuh | s/row + r < M \&\& column + c < N/row + r < M/
cuda/gemm_sm90.cuh | s/for (int p = 1; p < parts; p++)/for (int p = 2; p < parts; p++)/
cuda/attention_sm90.cuh | s/column + lane % 4 \* 2 + e % 2 >= a.T/column + lane % 4 * 2 + e % 2 > a.T/
cuda/attention_sm90.cuh | s/mbarrier_wait(at.there, 0);/;/
cuda/attention_sm90.cuh | s/mbarrier_wait(at.there + 1, 0);/;/
cuda/attention_sm90.cuh | s/wgmma_fence(o);/;/
cuda/attention_sm90.cuh | s/wgmma_wait<0>(o);/wgmma_wait<1>(o);/
cuda/attention_sm90.cuh | s/top\[r\] = quad_max(top\[r\]);/;/
cuda/attention_sm90.cuh | s/sum\[r\] = quad_sum(sum\[r\]);/;/
cuda/gemm.cuh | s/p.C ? 1.0f : 0.0f/p.C ? 0.0f : 1.0f/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(cu.stream, event_of(t), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(copies, event_of(after), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(cu.stream, join_event, 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(collectives, fork_event, 0));/;/
vit.c | s/    be->wait(in->sent);/    (void)0;/
TABLE
}

rm -rf "$tree"
mkdir -p "$tree/build"
git ls-files -z | xargs -0 cp -a --parents -t "$tree"
cp -a "$build"/{found,have,libs,float,double,standin} "$tree/build"
cpu=$(realpath ./train_cpu) # the program that CUDA's mutants are compared with stays as it is
[ -x "$cpu" ] || { echo "error: there is no ./train_cpu: make"; exit 1; }

# each CFLAGS PROGRAMS TESTS: for every mutant of the table on stdin, makes the programs and runs the
# tests, a function that is told the file; one that succeeds has missed the mutant.
each() {
    if ! make -s -C "$tree" "CFLAGS=$1" $2 >"$tree/log" 2>&1 ||
        ! (cd "$tree" && $3 vit.c) >"$tree/log" 2>&1; then
        echo "FAIL the tests fail before anything is changed"
        failed=$((failed + 1))
        return
    fi
    while IFS='|' read -r file expression; do
        number=$((number + 1))
        [ $((number % ${part#*/})) = $((${part%/*} % ${part#*/})) ] || continue
        file=${file// /} expression=${expression# }
        sed "$expression" "$file" >"$tree/$file"
        if cmp -s "$file" "$tree/$file"; then
            echo "FAIL does not apply: $file: $expression"
            failed=$((failed + 1))
        elif ! make -s -C "$tree" "CFLAGS=$1" $2 >"$tree/log" 2>&1; then
            echo "FAIL does not compile: $file: $expression"
            failed=$((failed + 1))
        elif (cd "$tree" && $3 "$file") >"$tree/log" 2>&1; then
            echo "FAIL survived: $file: $expression"
            failed=$((failed + 1))
        else
            passed=$((passed + 1))
        fi
        cp "$file" "$tree/$file" # newer than what was made of the mutant
    done
}

cpu_tests() {
    build/double/test_grad && build/double/test_ops && build/double/test_reduce &&
        build/double/test_golden test/golden/*.safetensors
}
rank_tests() {
    build/test_layouts 2
}
late_tests() {
    for seed in 1 2 3; do # orders of the streams
        VIT_STANDIN_SEED=$seed build/standin/test_layouts --backend cuda 2 || return 1
    done
}
cuda_tests() {
    case $1 in
    cuda/*_sm90.cuh)
        for way in 0 1; do
            VIT_STANDIN_SM=90 VIT_GEMM=sm90:$way build/standin/test_ops --backend cuda --type bf16 ||
                return 1
        done
        ;;
    cuda/*)
        build/standin/test_ops --backend cuda --type bf16 &&
            build/standin/test_ops --backend cuda --type fp32
        ;;
    *)
        for seed in 1 2 3; do # orders of the streams
            VIT_STANDIN_SEED=$seed TEST_SMALL=1 test/test_cuda.sh build/standin/train_gpu "$cpu" ||
                return 1
        done
        ;;
    esac
}
[[ $which == *cpu* ]] && each -O3 "$(echo build/double/test_{grad,ops,golden,reduce})" \
    cpu_tests < <(mutants)
[[ $which == *ranks* ]] && each -O3 build/test_layouts rank_tests < <(rank_mutants)
[[ $which == *ranks* ]] && each -O1 build/standin/test_layouts late_tests < <(late_mutants)
[[ $which == *cuda* ]] && each -O1 "build/standin/test_ops build/standin/train_gpu" \
    cuda_tests < <(cuda_mutants)
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
