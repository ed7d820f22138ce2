/* optimiser.h - the optimisers, what they round to, and norms of gradients. */
#pragma once

#include "test/ops/formulas.h"

/* Tensors of a small model: several chunks, one element, all zeros (LAMB's trust ratio is 1), one
 * that is frozen. */
static const struct {
    int n, flags;
    bool zero;
    float rate;
} tensors[] = {{9000, CHUNK_DECAY, 0, 0.75f},     {7, CHUNK_1D, 0, 1}, {4096, CHUNK_DECAY, 0, 1},
               {1, CHUNK_1D | CHUNK_DECAY, 0, 1}, {50, 0, 1, 0.5f},    {301, 0, 0, 0.25f},
               {600, CHUNK_DECAY, 0, 0}};
enum { N_CHUNKS = 9, N = 64 * 226 };
static Chunk chunks[N_CHUNKS];
static dev *chunks_dev;

/* Lay them out with gaps, as a model does, in buffers of N elements. */
static void make_chunks(void)
{
    long offset = 64;
    int k = 0;
    for (int t = 0; t < COUNT(tensors); t++) {
        for (int at = 0; at < tensors[t].n; at += VIT_CHUNK) {
            int left = tensors[t].n - at, n = left < VIT_CHUNK ? left : VIT_CHUNK;
            chunks[k++] = (Chunk){offset + at, n, t, tensors[t].flags, tensors[t].rate};
        }
        offset += (tensors[t].n + 63) / 64 * 64;
    }
    if (k != N_CHUNKS || offset > N)
        die(NULL, "test_ops: wrong sizes of the chunks");
    chunks_dev = be->alloc(sizeof chunks);
    be->upload(chunks_dev, chunks, sizeof chunks);
}

/* The chunk that holds element i, or NULL in a gap, and where it is frozen: nothing may happen. */
static const Chunk *chunk_of(long i)
{
    for (int k = 0; k < N_CHUNKS; k++)
        if (chunks[k].rate > 0 && i >= chunks[k].offset && i < chunks[k].offset + chunks[k].n)
            return &chunks[k];
    return NULL;
}

typedef struct {
    const char *name;
    OptConfig opt; /* kind, beta1, beta2, eps, momentum, weight decay, ema decay */
    uint32_t t;    /* 1: from empty moments */
    bool ema, skip;
    double clip, loss_scale;
} OptCase;

/* As a rank has them that shares the model with others: another has some chunks, and some of its
 * own count elsewhere. */
static void share_chunks(void)
{
    static const bool elsewhere[N_CHUNKS] = {[1] = true, [3] = true, [6] = true};
    for (int k = 0; k < N_CHUNKS; k++)
        if (elsewhere[k])
            chunks[k].offset = chunks[k].n = 0;
        else if (k == 2 || k == 4)
            chunks[k].flags |= CHUNK_COPY;
    be->upload(chunks_dev, chunks, sizeof chunks);
}

/* The sum of squares of chunk k of x [N], where it counts */
static double counted_squares(int k, const double *x)
{
    const double *v = x + chunks[k].offset;
    return chunks[k].flags & CHUNK_COPY || chunks[k].rate == 0 ? 0 : dot(v, 1, v, 1, chunks[k].n);
}

static const OptCase opt_cases[] = {
    {"adamw, first step", {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0}, 1, 0, 0, 1, 1},
    {"adamw", {OPT_ADAMW, 0.9, 0.95, 1e-3, 0, 0.3, 0.99}, 7, 1, 0, 0.37, 1024},
    {"adam, first step", {OPT_ADAM, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 1, 1, 0, 0.5, 1},
    {"adam", {OPT_ADAM, 0.8, 0.99, 1e-6, 0, 0.3, 0}, 1000, 0, 0, 0.37, 8},
    {"adam, an old average", {OPT_ADAM, 0.8, 0.99, 1e-6, 0, 0.3, 0.9}, 1000, 1, 0, 0.37, 8},
    {"sgd, first step", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0}, 1, 0, 0, 0.5, 1},
    {"sgd", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0.999}, 2, 1, 0, 0.37, 8},
    {"lamb, first step", {OPT_LAMB, 0.9, 0.999, 1e-6, 0, 0.02, 0}, 1, 0, 0, 1, 1},
    {"lamb", {OPT_LAMB, 0.9, 0.99, 1e-6, 0, 0.02, 0.9}, 7, 1, 0, 0.37, 8},
    {"adamw, skipped", {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
    {"adam, skipped", {OPT_ADAM, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
    {"sgd, skipped", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0.9}, 7, 1, 1, 1, 1},
    {"lamb, skipped", {OPT_LAMB, 0.9, 0.999, 1e-6, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
};

typedef struct {
    Mat *w, *work, *grad, *m, *v, *ema, *norms; /* work: of 16-bit types alone */
} OptMats;

/* One element's new moments and, without LAMB, weight; LAMB's direction goes to grad. */
static void opt_element(const OptCase *c, const OptMats *a, long i, const Chunk *k)
{
    const OptConfig *o = &c->opt;
    double wd = k->flags & CHUNK_DECAY ? o->weight_decay : 0, lr = st.lr * k->rate;
    double *w = &a->w->v[i], *m = &a->m->v[i], *v = a->v ? &a->v->v[i] : NULL;
    double g = c->clip * a->grad->v[i] / c->loss_scale;
    if (o->kind == OPT_SGD) {
        *m = c->t > 1 ? o->momentum * *m + g + wd * *w : g + wd * *w;
        *w -= lr * *m;
        return;
    }
    if (o->kind == OPT_ADAM)
        g += wd * *w;
    *m = o->beta1 * *m + (1 - o->beta1) * g;
    *v = o->beta2 * *v + (1 - o->beta2) * g * g;
    double mh = *m / (1 - pow(o->beta1, c->t)), vh = *v / (1 - pow(o->beta2, c->t));
    double step = mh / (sqrt(vh) + o->eps);
    if (o->kind == OPT_LAMB)
        a->grad->v[i] = step + wd * *w;
    else
        *w = *w * (o->kind == OPT_ADAMW ? 1 - lr * wd : 1) - lr * step;
}

/* Norms per chunk and tensor, then the step along u, which is in grad */
static void lamb_reference(const OptMats *a)
{
    double ww[COUNT(tensors)] = {0}, uu[COUNT(tensors)] = {0};
    for (int k = 0; k < N_CHUNKS; k++) {
        ww[chunks[k].tensor] += a->norms->v[k] = counted_squares(k, a->w->v);
        uu[chunks[k].tensor] += a->norms->v[N_CHUNKS + k] = counted_squares(k, a->grad->v);
    }
    for (long i = 0; i < N; i++) {
        const Chunk *c = chunk_of(i);
        if (!c)
            continue;
        bool plain = c->flags & CHUNK_1D || ww[c->tensor] == 0 || uu[c->tensor] == 0;
        double ratio = plain ? 1 : sqrt(ww[c->tensor] / uu[c->tensor]);
        a->w->v[i] -= st.lr * c->rate * ratio * a->grad->v[i];
    }
}

/* What the step leaves; the gaps, and everything in a skipped step, must keep their bits. */
static void opt_reference(const OptCase *c, const OptMats *a)
{
    bool lamb = c->opt.kind == OPT_LAMB;
    double decay = fmin(c->opt.ema_decay, (1 + (double)c->t) / (10 + (double)c->t));
    for (long i = 0; !c->skip && i < N; i++) {
        const Chunk *k = chunk_of(i);
        if (k)
            opt_element(c, a, i, k);
    }
    if (lamb && !c->skip)
        lamb_reference(a);
    for (long i = 0; i < N; i++) {
        Mat *all[] = {a->w, a->work, a->m, a->v, a->ema, lamb ? a->grad : NULL};
        if (a->work)
            a->work->v[i] = a->w->v[i];
        if (a->ema)
            a->ema->v[i] = decay * a->ema->v[i] + (1 - decay) * a->w->v[i];
        for (int k = 0; k < COUNT(all); k++)
            if (all[k] && (c->skip || !chunk_of(i)))
                all[k]->v[i] = NAN;
    }
}

static OptMats opt_mats(const OptCase *c)
{
    bool lamb = c->opt.kind == OPT_LAMB, sgd = c->opt.kind == OPT_SGD;
    OptMats a = {real_vec("w", INOUT, N),
                 vec("work", INOUT, is_half(under.type) * N),
                 real_vec("grad", lamb ? INOUT : IN, N),
                 real_vec("m", INOUT, N),
                 real_vec("v", INOUT, !sgd * N),
                 real_vec("ema", INOUT, c->ema * N),
                 real_vec("norms", OUT, lamb * 2 * N_CHUNKS)};
    for (long i = 0; i < N; i++) {
        const Chunk *k = chunk_of(i);
        if (k && tensors[k->tensor].zero)
            a.w->v[i] = 0;
        if (c->skip && i % 5 == 0)
            a.grad->v[i] = i % 2 ? NAN : INFINITY;
        if (c->t == 1 && !sgd)
            a.m->v[i] = 0; /* sgd: whatever was in m */
        if (a.v)
            a.v->v[i] = c->t > 1 ? fabs(a.v->v[i]) : 0;
    }
    push(a.w);
    push(a.m);
    if (a.v)
        push(a.v);
    rescale(a.grad, c->loss_scale, 0);
    return a;
}

/* Moments and average in memory of host_alloc for the time of a step. */
static bool state_on_host;
static void swap_state(OptStep *s)
{
    static dev *elsewhere[3];
    dev **const at[] = {&s->exp_avg, &s->exp_avg_sq, &s->ema};
    const size_t bytes = N * sizeof(real);
    for (int i = 0; i < COUNT(at); i++) {
        dev *here = *at[i], *host = elsewhere[i] ? here : NULL;
        if (!here)
            continue;
        *at[i] = host ? elsewhere[i] : (dev *)be->host_alloc(bytes);
        be->copy(*at[i], here, bytes);
        elsewhere[i] = host ? NULL : here;
        be->wait(be->mark());
        be->host_release(host);
    }
}

static void opt_step(const OptCase *c, const OptMats *a, bool stochastic)
{
    bool lamb = c->opt.kind == OPT_LAMB, sgd = c->opt.kind == OPT_SGD;
    OptStep step = {.opt = &c->opt,
                    .chunks = chunks_dev,
                    .n = N_CHUNKS,
                    .w = pointer(a->w),
                    .work = pointer(a->work ? a->work : a->w),
                    .work_type = under.type,
                    .stochastic = stochastic,
                    .grad = pointer(a->grad),
                    .exp_avg = pointer(a->m),
                    .exp_avg_sq = pointer(a->v),
                    .ema = pointer(a->ema),
                    .norms = pointer(a->norms)};
    st.t = c->t, st.clip = c->clip, st.loss_scale = c->loss_scale, st.skip = c->skip;
    send_state();
    if (state_on_host)
        swap_state(&step);
    (sgd ? be->sgd : lamb ? be->lamb_direction : be->adam)(&step);
    if (lamb)
        be->lamb_apply(&step);
    if (state_on_host)
        swap_state(&step);
}

static void optimiser(const OptCase *c)
{
    begin(PLAIN, "%s%s", c->name, state_on_host ? ", state on the host" : "");
    OptMats a = opt_mats(c);
    opt_step(c, &a, false);
    long bad = 0;
    if (a.work && !c->skip) { /* exactly the nearest to the master weights that the device has */
        double *w = xmalloc(N * sizeof *w), *work = xmalloc(N * sizeof *work);
        pull(a.w, w);
        pull(a.work, work);
        for (long i = 0; i < N; i++)
            bad += chunk_of(i) && work[i] != rounded(w[i]);
        free(w);
        free(work);
    }
    CHECK(bad == 0, "%s %s: %ld working weights are not the nearest", under.name, title, bad);
    opt_reference(c, &a);
    finish(EXACT);
}

/* How often things of probability p happened, against five standard deviations. */
typedef struct {
    double excess, variance;
} Tally;

static void count(Tally *t, bool happened, double p, double weight)
{
    t->excess += weight * (happened - p);
    t->variance += weight * weight * p * (1 - p);
}

static void check_tally(const Tally *t, const char *what)
{
    CHECK(t->variance > 0 && fabs(t->excess) <= 5 * sqrt(t->variance),
          "%s %s, %s: %.1f too many, sigma %.1f", under.name, title, what, t->excess,
          sqrt(t->variance));
}

/* Working weights rounded by chance, 16-bit types alone: always one of the two neighbours, upwards
 * with the probability p of the distance from the lower one; independently of the neighbouring
 * element, of the one four places on and of the step before. (Of numbers of one sign, since
 * rounding may work on magnitudes.) */
static void stochastic_rounding(const OptCase *as_given)
{
    double *w = xmalloc(N * sizeof *w), *work = xmalloc(N * sizeof *work);
    static double p[2][N];
    static bool up[2][N], negative[2][N];
    for (int k = 0; k < 2; k++) {
        Tally all = {0}, slope = {0}, same[3] = {{0}};
        long wrong = 0;
        OptCase case_k = *as_given, *c = &case_k;
        c->t += (uint32_t)k; /* the bits are a function of the update */
        begin(PLAIN, "stochastic rounding, %s", c->name);
        OptMats a = opt_mats(c);
        opt_step(c, &a, true);
        pull(a.w, w);
        pull(a.work, work);
        for (long i = 4; i < N; i++) {
            double u = ulp(under.type, w[i]), low = floor(w[i] / u) * u;
            p[k][i] = (w[i] - low) / u;
            if (!chunk_of(i) || p[k][i] == 0) {
                wrong += chunk_of(i) && work[i] != w[i];
                continue;
            }
            up[k][i] = work[i] > w[i];
            negative[k][i] = w[i] < 0;
            wrong += work[i] != low && work[i] != low + u;
            count(&all, up[k][i], p[k][i], 1);
            count(&slope, up[k][i], p[k][i], p[k][i] - 0.5);
            const struct {
                int pass;
                long i;
            } others[] = {{k, i - 1}, {k, i - 4}, {0, i}};
            for (int j = 0; j < 2 + k; j++) {
                double q = p[others[j].pass][others[j].i];
                bool comparable = chunk_of(i) == chunk_of(i - 4) && q > 0 &&
                                  negative[others[j].pass][others[j].i] == negative[k][i];
                if (comparable)
                    count(&same[j], up[k][i] == up[others[j].pass][others[j].i],
                          p[k][i] * q + (1 - p[k][i]) * (1 - q), 1);
            }
        }
        CHECK(wrong == 0, "%s %s: %ld are no neighbours", under.name, title, wrong);
        check_tally(&all, "went up");
        check_tally(&slope, "in proportion");
        check_tally(&same[0], "as the element before");
        check_tally(&same[1], "as the element four before");
        if (k)
            check_tally(&same[2], "as the step before");
        opt_reference(c, &a); /* the other results are as without chance */
        for (long i = 0; i < N; i++)
            a.work->v[i] = chunk_of(i) ? work[i] : NAN;
        finish(EXACT);
    }
    free(w);
    free(work);
}

/* Rounding by chance is a function of the chunk's number and the element's place in it: a rank that
 * has every other chunk alone, elsewhere in its buffer, rounds them as one that has all. */
static void rounding_places(void)
{
    begin(PLAIN, "round_weights");
    Chunk some[N_CHUNKS];
    long at = 64 * 3;
    dev *some_dev = be->alloc(sizeof some);
    Mat *w[] = {real_vec("w", IN, N), real_vec("w of some", IN, N)};
    Mat *work[] = {vec("work", OUT, N), vec("work of some", OUT, N)};
    for (int k = 0; k < N_CHUNKS; k++) {
        some[k] = chunks[k];
        some[k].offset = k % 2 ? 0 : at;
        some[k].n = k % 2 ? 0 : chunks[k].n;
        for (long i = 0; i < some[k].n; i++)
            w[1]->v[at + i] = w[0]->v[chunks[k].offset + i];
        at += (some[k].n + 63) / 64 * 64;
    }
    push(w[1]);
    be->upload(some_dev, some, sizeof some);
    for (int j = 0; j < 2; j++)
        be->round_weights(&(OptStep){.chunks = j ? some_dev : chunks_dev,
                                     .n = N_CHUNKS,
                                     .w = pointer(w[j]),
                                     .work = pointer(work[j]),
                                     .work_type = under.type,
                                     .stochastic = true});
    long wrong = 0, differ = 0, up = 0, frozen = 0;
    pull(work[0], work[0]->v);
    pull(work[1], work[1]->v);
    for (int k = 0; k < N_CHUNKS; k++)
        for (long i = 0; i < chunks[k].n; i++) {
            double x = w[0]->v[chunks[k].offset + i], y = work[0]->v[chunks[k].offset + i];
            wrong += !(fabs(y - x) < ulp(under.type, x) || y == x);
            differ += i < some[k].n && y != work[1]->v[some[k].offset + i];
            up += y != rounded(x);
            frozen += chunks[k].rate == 0 && y != rounded(x);
        }
    CHECK(wrong == 0, "%s %s: %ld are no neighbours", under.name, title, wrong);
    CHECK(differ == 0, "%s %s: %ld depend on the place in the buffer", under.name, title, differ);
    CHECK(frozen == 0, "%s %s: %ld of what is frozen by chance", under.name, title, frozen);
    CHECK(up > N / 8, "%s %s: %ld of %d by chance", under.name, title, up, N);
    finish(EXACT);
    be->release(some_dev);
}

/* sum_squares and finish_norm, on gradients with `bad` (if not 0) in one place, and the state that
 * they leave. The norm is about 116: max_norm 1 clips it, 150 does not. */
static void norms(double max_norm, double loss_scale, double bad)
{
    begin(PLAIN, "finish_norm max %g scale %g bad %g", max_norm, loss_scale, bad);
    Mat *x = real_vec("x", IN, N), *partial = real_vec("partial", OUT, N_CHUNKS);
    if (bad != 0)
        x->v[chunks[2].offset + 5] = bad;
    x->v[chunks[N_CHUNKS - 1].offset] = NAN; /* frozen: nobody has written its gradient */
    rescale(x, loss_scale, 0);
    st = (StepState){.seed = 1,
                     .lr = 0.5,
                     .step = 9,
                     .sample0 = 4,
                     .t = 6,
                     .skip = 1,
                     .skipped = 3,
                     .skipped_in_row = 2,
                     .loss_scale = loss_scale,
                     .good_steps = 11,
                     .patience = 2,
                     .large = 5,
                     .counted = 77};
    send_state();
    be->sum_squares(pointer(partial), pointer(x), chunks_dev, N_CHUNKS);
    be->finish_norm(pointer(partial), N_CHUNKS, max_norm);
    double sum = 0;
    for (int k = 0; k < N_CHUNKS; k++)
        sum += partial->v[k] = finite_or_not(counted_squares(k, x->v));
    StepState s = state_now();
    double norm = sqrt(sum) / loss_scale;
    double clip = max_norm > 0 ? fmin(1, max_norm / (norm + 1e-6)) : 1;
    bool skip = !isfinite(norm);
    CHECK(memcmp(&s, &st, STEP_HOST_BYTES) == 0, "%s: the host's part changed", title);
    CHECK(s.skip == skip && s.t == 6u + !skip, "%s: skip %u t %u", title, s.skip, s.t);
    CHECK(s.skipped == 3u + skip, "%s: %u skipped", title, s.skipped);
    CHECK(skip ? !isfinite(s.grad_norm) : fabs(s.grad_norm / norm - 1) <= gate, "%s: norm %g",
          title, s.grad_norm);
    CHECK(skip || fabs(s.clip / clip - 1) <= gate, "%s: clip %g, not %g", title, s.clip, clip);
    CHECK(s.skipped_in_row == 2 && s.loss_scale == loss_scale && s.good_steps == 11 &&
              s.patience == 2 && s.large == 5 && s.counted == 77,
          "%s: what scale_loss and count_large are for has changed", title);
    finish(EXACT);
}
