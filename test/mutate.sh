#!/bin/bash
# Mutation check: flip a sign (or drop a factor) in each op, and see the suite fail.
#
#   test/mutate.sh [BUILD [cpu|bf16|ranks|cuda|hopper [I/N | TEXT]]]   BUILD holds the objects of an
#                                         ordinary build (default: build); cpu, bf16, ranks, cuda or
#                                         hopper: those mutants alone; I/N: every Nth of them from
#                                         the Ith; TEXT: those whose file or expression has it
#
# Each line of a table is `file | sed expression`. Mutants of the model and the CPU backend must fail
# the finite differences (test_grad), the tests of single operations or the goldens, in double; sums
# over ranks are test_reduce's. Mutants of bf16 on the CPU must fail test_ops, by floats or by pairs.
# Mutants of what ranks share must fail test_layouts, on CPUs or, where a wait is left out, on the
# stand-ins, whose streams are late.
# Mutants of the CUDA backend run on the stand-ins: kernels must fail test_ops, what orders streams (a
# wait left out, a buffer used too early) must fail training (test_cuda.sh) under one of a few orders.
# Mutants of the stand-in for Hopper must fail test_hopper: it computes something else, or no longer
# sees a mistake.
# A mutant that survives, or an expression that no longer changes its file, is a failure.
# All of it happens in a copy of the tree, which the Makefile builds.
build=${1:-build} which=${2:-cpu bf16 ranks cuda hopper} part=${3:-1/1}
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
cpu/loss.c | s/\* mass - (double)y\[k\]/* mass + (double)y[k]/
cpu/loss.c | s/(v >= 0 ? 1 : e) \/ (1 + e) - (double)y\[k\]/(v >= 0 ? 1 : e) \/ (1 + e) + (double)y[k]/
backend_cpu.c | s/a\[i\] += b\[i\];/a[i] -= b[i];/
backend_cpu.c | s/drop_row(dx + gate, n, r, a->tokens,/drop_row(dx + gate, n, r + 1, a->tokens,/
cpu/patches.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 1, 0.5f - lambda/
cpu/patches.c | s/g->partner, py, px, g->cut, 1, 1 - lambda/g->partner, py, px, g->cut, 0, 1 - lambda/
cpu/patches.c | s/y < cut.y || y >= cut.y + cut.h/y <= cut.y || y >= cut.y + cut.h/
cpu/optimizer.c | s/c2 = 1 - pow(o->beta2/c2 = 1 + pow(o->beta2/
cpu/optimizer.c | s/l2 = o->kind == OPT_ADAM ? (real)s.decay/l2 = o->kind == OPT_ADAM ? -(real)s.decay/
cpu/optimizer.c | s/keep = o->kind == OPT_ADAMW ? (real)(1 - s.lr/keep = o->kind == OPT_ADAMW ? (real)(1 + s.lr/
cpu/optimizer.c | s/s.lr \* ratio/state->lr * ratio/
cpu/optimizer.c | s/m\[i\] = momentum \* s/m[i] = -momentum * s/
cpu/optimizer.c | s/w\[i\] -= lr \* s/w[i] += lr * s/
cpu/optimizer.c | s/trust ? sqrt(ww) \/ sqrt(uu) : 1/trust ? sqrt(uu) \/ sqrt(ww) : 1/
cpu/optimizer.c | s/s->clip = c < 1 ? c : 1;/s->clip = 1;/
vit.c | s/be->zero(m->dstream,/be->zero(m->dy,/
vit.c | s/unit_reduce(&m->own, l + 1, b->number, b->last);/(void)0;/
vit.c | s/unit_reduce(&m->own, u, b->number, b->last);/(void)0;/
vit.c | s/^    take_state(w->m, w->b);$//
model/params.c | s/next = round_up(at + 1, VIT_CHUNK);/next = at + VIT_CHUNK;/
model/params.c | s/pow(decay, last - p->unit)/pow(decay, last - p->unit + 1)/
model/params.c | s/p->unit >= frozen)/p->unit > frozen)/
dist.c | s/    if (micro > 0)/    if (micro > 1)/
vit.c | s/\.gamma = w.norm1_w, \.mean/.gamma = w.norm2_w, .mean/
TABLE
}

rank_mutants() {
    cat <<'TABLE'
dist.c | s/takes_turns(u) ? unit % 2 \* u->layout->largest : at/takes_turns(u) ? unit \/ 2 % 2 * u->layout->largest : at/
dist.c | s/bool first = u->reducing\[i\].micro == 0;/bool first = true;/
dist.c | s/sum_parts(u, u->norms, 2L \* s.n);/;/
dist.c | s/|| (next - unit) % 2))/|| (next - unit) % 2 == 0))/
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
cuda/attention.cuh | s/if (!FULL \&\& 16 \* n + 8 \* i + e % 2 >= limit)/if (!FULL \&\& 16 * n + 8 * i + e % 2 > limit)/
cuda/attention.cuh | s/e % 2 < limit ?/e % 2 <= limit ?/
cuda/attention.cuh | s/(unsigned)row % (2 \* ROWS)/(unsigned)row % ROWS/
cuda/norms.cuh | s/rstd\[m\] \* (dyk \* gamma/-rstd[m] * (dyk * gamma/
cuda/norms.cuh | s/sum_of(SUM_DBETA, j, k) += dyk;/sum_of(SUM_DBETA, j, k) -= dyk;/
cuda/norms.cuh | s/    if (IN_MEMORY)/    if (!IN_MEMORY)/
cuda/layers.cuh | s/d\[1\]\[k\] = dy \* g \* plus;/d[1][k] = dy * g * minus;/
cuda/norms.cuh | s/- g_sum - n.v\[r\]\[k\] \* gn_sum/- g_sum + n.v[r][k] * gn_sum/
cuda/norms.cuh | s/for (int d = lanes; d < 32; d \*= 2)/for (int d = lanes; d < 16; d *= 2)/
cuda/layers.cuh | s/cut ? g->partner : b, c, y, x/cut ? b : g->partner, c, y, x/
cuda/layers.cuh | s/(unsigned)(x - r.x) < (unsigned)r.w/(unsigned)(x - r.x) <= (unsigned)r.w/
cuda/layers.cuh | s/g->lambda < 1 || g->cut.h > 0/g->lambda < 1/
cuda/rows.cuh | s/room\[warp \* 32 + lane\] = sum;/room[warp * 32 + lane] = -sum;/
cuda/optimizer.cuh | s/^    if (s->skip)$/    if (!s->skip)/
cuda/optimizer.cuh | s/(double)c.rate \* (double)ratio/(double)ratio/
cuda/optimizer.cuh | s/c.n = c.rate > 0 ? c.n : 0;/;/
cuda/gemm_sm90.cuh | s/mbarrier_wait(t.empty + stage, parity);/;/
cuda/gemm_sm90.cuh | s/parity = 1; \/\* of `empty`/parity = 0; \/* of `empty`/
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
cuda/gemm_sm90.cuh | s/upper ? sums\[c\] : sums\[c + N \/ 2\]/sums[c]/
cuda/gemm_sm90.cuh | s/lane % 16 \* PATCH_STRIDE/lane % 8 * PATCH_STRIDE/
cuda/gemm_sm90.cuh | s/for (int p = 1; p < parts; p++)/for (int p = 2; p < parts; p++)/
cuda/gemm_sm90.cuh | s/k \* 32), k > 0);/k * 32), i > 0 || k > 0);/
cuda/gemm_sm90.cuh | s/PROMOTES = true;/PROMOTES = false;/
cuda/gemm_sm90.cuh | s/wgmma_wait<0>(part);/wgmma_wait<1>(part);/
cuda/gemm_sm90.cuh | s/\*x.scale_a \* \*x.scale_b : 1;/*x.scale_a : 1;/
cuda/gemm_sm90.cuh | s/NARROW ? SLAB_ROW : SLAB_ROW \/ 2;/SLAB_ROW \/ 2;/
cuda/gemm_sm90.cuh | s/^        __syncwarp(); \/\* of one/        ; \/* of one/
cuda/gemm_sm90.cuh | s/0x5410, 0x7632/0x7632, 0x5410/
cuda/gemm_sm90.cuh | s/0x6420, 0x7531/0x7531, 0x6420/
cuda/gemm_sm90.cuh | s/words\[i \/ 2\]\[i % 2\] \&= mask;/;/
cuda/gemm_sm90.cuh | s/eight.most = there\[r\] ?/eight.most = true ?/
cuda/gemm_sm90.cuh | s/unpack_pairs<E>(v\[0\], product);/;/
cuda/gemm_sm90.cuh | s/: 2L \* u.m + group;/: u.m;/
cuda/gemm_sm90.cuh | s/if (at.row < at.M \&\& at.column + across/if (at.row + 16 <= at.M \&\& at.column + across/
cuda/gemm_sm90.cuh | s/Tile::READERS << x.pair/Tile::READERS/
cuda/gemm_sm90.cuh | s/mbarrier_arrive_at(t.empty + stage, lane);/mbarrier_arrive(t.empty + stage);/
cuda/gemm_sm90.cuh | s/if (lane <= (uint32_t)x.pair)/if (lane == 0)/
cuda/gemm_sm90.cuh | s/map, full, 3, x, y)/map, full, 1 << cluster_rank(), x, y)/
cuda/gemm_sm90.cuh | s/(int)cluster_rank() \* (SIZE \/ 2)/0/
cuda/gemm_sm90.cuh | s/^            cluster_sync();$/            __syncthreads();/
cuda/gemm_sm90.cuh | s/cluster_sync(); \/\* the other/; \/* the other/
cuda/gemm_sm90.cuh | s/return rows + (rows \& x.pair);/return rows;/
cuda/attention_sm90.cuh | s/column + lane % 4 \* 2 + e % 2 >= a.T/column + lane % 4 * 2 + e % 2 > a.T/
cuda/attention_sm90.cuh | s/mbarrier_wait(at.there, 0);/;/
cuda/attention_sm90.cuh | s/mbarrier_wait(at.there + 1, 0);/;/
cuda/attention_sm90.cuh | s/wgmma_fence(o);/;/
cuda/attention_sm90.cuh | s/wgmma_wait<0>(o);/wgmma_wait<1>(o);/
cuda/attention_sm90.cuh | s/top\[r\] = quad_max(top\[r\]);/;/
cuda/attention_sm90.cuh | s/sum\[r\] = quad_sum(sum\[r\]);/;/
cuda/attention_sm90.cuh | s/phase = (int)(first % 4);/phase = 0;/
cuda/attention_sm90.cuh | s/factor\[r\] = a.mask.scale \/ sum/factor[r] = 1 \/ sum/
cuda/attention_sm90_backward.cuh | s/mbarrier_wait(at.there + 1, parity);/;/
cuda/attention_sm90_backward.cuh | s/, parity ^= 1) {/) {/
cuda/attention_sm90_backward.cuh | s/__syncthreads(); \/\* k, v and/; \/* k, v and/
cuda/attention_sm90_backward.cuh | s/wgmma_wait<1>(s);/wgmma_wait<2>(s);/
cuda/attention_sm90_backward.cuh | s/wgmma_fence(dk);/;/
cuda/attention_sm90_backward.cuh | s/fence_proxy_async();/;/
cuda/attention_sm90_backward.cuh | s/__syncthreads(); \/\* all of dS/; \/* all of dS/
cuda/attention_sm90_backward.cuh | s/tma_store_read_wait<0>(); \/\*/; \/*/
cuda/attention_sm90_backward.cuh | s/ \& keys.there\[r\];/;/
cuda/attention_sm90_backward.cuh | s/two >> 8 \& 1/two >> 7 \& 1/
cuda/attention_sm90_backward.cuh | s/a->qkv, 3 \* H, Tq, T,/a->qkv, 3 * H, T, T,/
cuda/attention_sm90_backward.cuh | s/EIGHT ? delayed_scale(a.eight.scale) : 1/1/
cuda/attention_sm90_backward.cuh | s/warp_amax(x));/warp_amax(x) * 2);/
cuda/attention_sm90_backward.cuh | s/sum.x += x\[0\];/sum.x += EIGHT ? 0 : x[0];/
cuda/attention_sm90_large.cuh | s/mbarrier_wait(at.full + in.slot, in.phase % 2);/;/
cuda/attention_sm90_large.cuh | s/mbarrier_wait(at.empty + in.slot, in.phase % 2 ^ 1);/;/
cuda/attention_sm90_large.cuh | s/in.phase % 2 ^ 1);/in.phase % 2);/
cuda/attention_sm90_large.cuh | s/mbarrier_wait(at.own_there + group, own_parity);/;/
cuda/attention_sm90_large.cuh | s/own_parity ^= 1;/;/
cuda/attention_sm90_large.cuh | s/mbarrier_wait(at.forgotten + n % 2, n \/ 2 % 2 ^ 1);/;/
cuda/attention_sm90_large.cuh | s/mbarrier_wait(at.known + n % 2, n \/ 2 % 2);/;/
cuda/attention_sm90_large.cuh | s/wgmma_wait<1>(s);/wgmma_wait<2>(s);/
cuda/attention_sm90_large.cuh | s/wgmma_fence(sums\[0\]);/;/
cuda/attention_sm90_large.cuh | s/At::STREAMS ? count % At::TILES : tile/tile/
cuda/attention_sm90_large.cuh | s/count \/ At::TILES : number/count \/ At::TILES + 1 : number/
cuda/attention_sm90_large.cuh | s/a.sums \&\& pass.tile < tiles/a.sums/
cuda/attention_sm90_large.cuh | s/tile > 0 \&\& from == 0/tile > 0/
cuda/attention_sm90_large.cuh | s/my.last \&\& tile > 0/tile > 0/
cuda/attention_sm90_large.cuh | s/!passed \&\& i </false \&\& i </
cuda/attention_sm90_large.cuh | s/i % 2 < a.T ? s\[i\] : 0;/i % 2 <= a.T ? s[i] : 0;/
cuda/attention_sm90_large.cuh | s/(x - (KEYS ? delta\[e % 2\] : my.delta\[e \/ 2\]))/x/
cuda/attention_sm90_large.cuh | s/(which \* SLABS + s) % 2/0/
cuda/attention_sm90_large.cuh | s/((uint32_t)first + (uint32_t)query \* T) % 4 + key/key/
cuda/attention_sm90_long.cuh | s/mbarrier_wait(at.full + in.slot, in.phase % 2);/;/
cuda/attention_sm90_long.cuh | s/wgmma_wait<0>(s, my.o);/wgmma_wait<1>(s, my.o);/
cuda/attention_sm90_long.cuh | s/wgmma_fence(my.o);/;/
cuda/attention_sm90_long.cuh | s/last \&\& tile > 0/tile > 0/
cuda/attention_sm90_long.cuh | s/i % 2 < a.T ? s\[i\]/i % 2 <= a.T ? s[i]/
cuda/attention_sm90_long.cuh | s/top\[r\] = quad_max(top\[r\]);/;/
cuda/attention_sm90_long.cuh | s/my.sum\[r\] \*= shrink\[r\];/;/
cuda/attention_sm90_long.cuh | s/my.o\[i\] \*= shrink\[i \/ 2 % 2\];/;/
cuda/attention_sm90_long.cuh | s/both_halves(kept >> 2 \* i)/both_halves(kept >> i)/
cuda/attention_sm90_long.cuh | s/= quad_sum(my.sum\[r\]);/= my.sum[r];/
cuda/attention_sm90_long.cuh | s/a.mask.scale \/ sum/1 \/ sum/
cuda/attention_sm90_long.cuh | s/wgmma_wait<0>(my.o);/;/
cuda/gemm.cuh | s/p.C ? 1.0f : 0.0f/p.C ? 0.0f : 1.0f/
cuda/fp8.cuh | s/r + i < a.rows ? \*(const uint32_t/true ? *(const uint32_t/
cuda/fp8.cuh | s/w\[8 + k\], w\[12 + k\]/w[12 + k], w[8 + k]/
cuda/fp8.cuh | s/return fmaf(x, scale, x \* 0);/return x * scale;/
cuda/fp8.cuh | s/exponent - (fraction > 0x600000u)/exponent/
cuda/fp8.cuh | s/if (!state->skip \&\& amax > 0/if (amax > 0/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(cu.stream, event_of(t), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(copies, event_of(after), 0));/;/
backend_cuda.cu | s/CHECK_CUDA(cudaStreamWaitEvent(g->stream, fork_event, 0));/;/
vit.c | s/    be->wait(in->sent);/    (void)0;/
TABLE
}

bf16_mutants() {
    cat <<'TABLE'
cpu/bf16_attention.c | s/s\[j\] = -INFINITY;/s[j] = 0;/
cpu/bf16_attention.c | s/(m \* f32_load(d + r \* N + j) - D\[r\])/(m * f32_load(d + r * N + j) + D[r])/
cpu/bf16_attention.c | s/if (i > 0 \&\& d->p <= 0)/if (i > 0)/
cpu/bf16_attention.c | s/dbias\[j\] += sums\[b/dbias[j] -= sums[b/
cpu/bf16_attention.c | s/\.add = add/.add = false/
cpu/bf16_attention.c | s/u->add || s > 0/u->add/
cpu/bf16_attention.c | s/return x >> 16 | y;/return x >> 16;/
cpu/bf16_attention.c | s/if (rows < per)/if (rows < 0)/
cpu/bf16_attention.c | s/mask\[1\] += N;/;/
cpu/bf16_layers.c | s/- s1 - x\[j\] \* s2/- s1 + x[j] * s2/
cpu/bf16_layers.c | s/scale_branch(dx, a, ls, r);/scale_branch(dx, a, NULL, r);/
cpu/bf16_layers.c | s/else if (!a->beside)/else/
cpu/bf16_layers.c | s/> BITS_8160/>= BITS_8160/
cpu/bf16_layers.c | s/for (int t = a->cls_tokens; t < T; t++)/for (int t = 0; t < T; t++)/
cpu/optimizer.c | s/(bits + (random >> 16)) >> 16/bits >> 16/
cpu/optimizer.c | s/!a->stochastic || c->rate == 0/!a->stochastic/
TABLE
}

hopper_mutants() {
    cat <<'TABLE'
test/cuda_on_cpu/wgmma.cpp | s/cut \&\& j < n/false \&\& j < n/
test/cuda_on_cpu/async.cpp | s/(address >> 7)/(address >> 8)/
test/cuda_on_cpu/async.cpp | s/(bytes \/ 16 - 1)/7/
test/cuda_on_cpu/async.cpp | s/memcpy(&a.proxy\[i\], b.smem + i, n);/;/
test/cuda_on_cpu/async.cpp | s/if (m.pending || m.bytes)/if (m.pending)/
test/cuda_on_cpu/async.cpp | s/if (m.pending || m.bytes)/if (m.bytes)/
test/cuda_on_cpu/async.cpp | s/if ((m.phase \& 1) == parity)/if ((m.phase \& 1) != parity)/
test/cuda_on_cpu/async.cpp | s/announce(m, -long(box_bytes/announce(m, long(box_bytes/
test/cuda_on_cpu/async.cpp | s/uint64_t(y) >= m.size\[1\]/uint64_t(y) > m.size[1]/
test/cuda_on_cpu/async.cpp | s/uint64_t(z) >= m.size\[2\]/uint64_t(z) > m.size[2]/
test/cuda_on_cpu/async.cpp | s/uint64_t(w) >= m.size\[3\]/uint64_t(w) > m.size[3]/
test/cuda_on_cpu/async.cpp | s/std::min(end - (x + c), 16l)/16l/
test/cuda_on_cpu/async.cpp | s/std::max(-(x + c), 0l)/0l/
test/cuda_on_cpu/async.cpp | s/a.timing = .*/a.timing = AT_ONCE;/
test/cuda_on_cpu/async.cpp | s/if (to \&\& memcmp(shared(address, n)/if (to \&\& false \&\& memcmp(shared(address, n)/
test/cuda_on_cpu/async.cpp | s/        if (!s.read)/        if (false)/
test/cuda_on_cpu/async.cpp | s/++n.arrived == n.expected;/++n.arrived == n.expected - 1;/
test/cuda_on_cpu/async.cpp | s/from\[lane \/ 8\]/from[lane % 4]/
test/cuda_on_cpu/async.cpp | s/>> j % 2 \* 16 \&/>> 0 \&/
test/cuda_on_cpu/async.cpp | s/    if (sum > pool)/    if (sum > pool + 4096)/
test/cuda_on_cpu/async.cpp | s/    if (!m.fenced)/    if (false)/
test/cuda_on_cpu/async.cpp | s/if (rank != cluster_rank() \&\& /if (false \&\& /
test/cuda_on_cpu/async.cpp | s/    if (block_left(rank))/    if (false)/
test/cuda_on_cpu/async.cpp | s/    if (block_left(rank_of(l.to)))/    if (false)/
test/cuda_on_cpu/async.cpp | s/size_t i = window(), end/size_t i = 0, end/
test/cuda_on_cpu/async.cpp | s/if (rank_of(bar.first) == cluster_rank())/if (true)/
test/cuda_on_cpu/async.cpp | s/if (ranks >> rank \& 1)/if (true)/
test/cuda_on_cpu/async.cpp | s/rank \* block().stride - window()/rank * block().stride/
test/cuda_on_cpu/async.cpp | s/16 \* cluster_rank() + unsigned(id)/unsigned(id)/
test/cuda_on_cpu/async.cpp | s/expected = block().threads \* block().blocks/expected = block().threads/
test/cuda_on_cpu/wgmma.cpp | s/return {window() + /return {/
test/cuda_on_cpu/kernel.cpp | s/blockIdx = resident().index/blockIdx = residents[0].index/
test/cuda_on_cpu/kernel.cpp | s/rank = cluster_rank(), first = rank \* w.block_warps()/rank = cluster_rank(), first = 0 * rank/
test/cuda_on_cpu/kernel.cpp | s/i < b.blocks ? i \* b.stride : w.smem_bytes/w.smem_bytes/
test/cuda_on_cpu/stream.cpp | s/ \&\& c.gridDim.x % blocks == 0 ? blocks/ ? blocks/
test/cuda_on_cpu/wgmma.cpp | s/mn \* o.stride + k % 8 \* 16 + k \/ 8 \* o.leading/mn * o.leading + k % 8 * 16 + k \/ 8 * o.stride/
test/cuda_on_cpu/wgmma.cpp | s/mn \/ n \* o.leading + k % 8 \* w + k \/ 8 \* o.stride/mn \/ n * o.stride + k % 8 * w + k \/ 8 * o.leading/
test/cuda_on_cpu/wgmma.cpp | s/mn % 8 \* 16 + mn \/ 8 \* o.stride + k \* o.leading/mn % 8 * 16 + mn \/ 8 * o.leading + k * o.stride/
test/cuda_on_cpu/wgmma.cpp | s/return n == 1 ? at : swizzled(at, w);/return at;/
test/cuda_on_cpu/wgmma.cpp | s/widths\[\] = {16, 128, 64, 32}/widths[] = {16, 32, 64, 128}/
test/cuda_on_cpu/wgmma.cpp | s/r % 2 \* 8;/r \/ 2 * 8;/
test/cuda_on_cpu/wgmma.cpp | s/ldexpf(float(m), -9)/ldexpf(float(m), -10)/
test/cuda_on_cpu/wgmma.cpp | s/half_float(uint16_t(\*p << 8))/half_float(uint16_t(*p << 7))/
test/cuda_on_cpu/wgmma.cpp | s/l.p.accumulate ? d\[j\] + sum\[j\] : sum\[j\]/d[j] + sum[j]/
test/cuda_on_cpu/wgmma.cpp | s/f((row + 8) \* n/f((row + 1) * n/
test/cuda_on_cpu/wgmma.cpp | s/block().random->below(2) == 0/true/
test/cuda_on_cpu/wgmma.cpp | s/if (memcmp(seen, p, 16))/if (false)/
test/cuda_on_cpu/wgmma.cpp | s/    t.fenced = false;/    ;/
test/cuda_on_cpu/wgmma.cpp | s/        if (f.last > end) {/        if (false) {/
test/cuda_on_cpu/wgmma.cpp | s/d\[i\] = __uint_as_float(NOTHING);/;/
test/cuda_on_cpu/wgmma.cpp | s/    compute_to(g, std::max(end, g.done));/    ;/
test/cuda_on_cpu/kernel.cpp | s/    if (!w.early.the_rest)/    if (true)/
test/cuda_on_cpu/stream.cpp | s/l.dependent || g().random.below(2)/l.dependent || true/
test/cuda_on_cpu/stream.cpp | s/s.frontier\[0\] == s.kernel_node/false/
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
        case $part in
        [0-9]*/[0-9]*) [ $((number % ${part#*/})) = $((${part%/*} % ${part#*/})) ] || continue ;;
        *) [[ "$file|$expression" == *"$part"* ]] || continue ;;
        esac
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
    build/double/test_grad && build/double/test_ops && build/double/test_reduce && build/double/test_tuning &&
        build/double/test_golden test/golden/*.safetensors
}
rank_tests() {
    build/test_layouts 2
}
bf16_tests() {
    for products in floats pairs; do
        VIT_BF16_PRODUCTS=$products build/test_ops --type bf16 || return 1
    done
}
late_tests() {
    for seed in 1 2 3; do # orders of the streams
        VIT_STANDIN_SEED=$seed build/standin/test_layouts --backend cuda 2 || return 1
    done
}
cuda_tests() {
    case $1 in
    cuda/*_sm90*.cuh)
        for way in 0 3; do
            VIT_STANDIN_SM=90 VIT_GEMM=sm90:$way build/standin/test_fp8 --backend cuda --type fp8 ||
                return 1
            VIT_STANDIN_SM=90 VIT_GEMM=sm90:$way build/standin/test_ops --backend cuda --type bf16 ||
                return 1
        done
        ;;
    cuda/fp8.cuh)
        VIT_STANDIN_SM=90 build/standin/test_fp8 --backend cuda --type fp8
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
hopper_tests() {
    timeout 120 build/standin/test_hopper
}
[[ $which == *cpu* ]] && each -O3 "$(echo build/double/test_{grad,ops,golden,reduce,tuning})" \
    cpu_tests < <(mutants)
[[ $which == *bf16* ]] && each -O3 build/test_ops bf16_tests < <(bf16_mutants)
[[ $which == *ranks* ]] && each -O3 build/test_layouts rank_tests < <(rank_mutants)
[[ $which == *ranks* ]] && each -O1 build/standin/test_layouts late_tests < <(late_mutants)
[[ $which == *cuda* ]] && each -O1 "build/standin/test_ops build/standin/test_fp8 build/standin/train_gpu" \
    cuda_tests < <(cuda_mutants)
[[ $which == *hopper* ]] && each -O1 build/standin/test_hopper hopper_tests < <(hopper_mutants)
if [ $((passed + failed)) = 0 ]; then
    echo "FAIL there is no mutant of '$part'"
    failed=1
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
