/* memory.h - device memory, conversion, and the order of calls. */
#pragma once

#include "test/ops/formulas.h"

/* ---- memory and conversion ---- */

static void memory(void)
{
    enum { ELEMENTS = 1001 };
    begin(PLAIN, "memory");
    char text[256] = "";
    real zeros[ELEMENTS] = {0}, got[ELEMENTS];
    dev *fresh = be->alloc(sizeof got);
    CHECK(fresh && (uintptr_t)fresh % 256 == 0, "alloc returns aligned memory");
    be->download(got, fresh, sizeof got);
    CHECK(memcmp(got, zeros, sizeof got) == 0, "alloc returns zeroed memory");
    be->release(fresh);
    be->release(NULL);
    void *pinned = be->host_alloc(ELEMENTS);
    CHECK(pinned != NULL);
    be->host_release(pinned);
    be->host_release(NULL);
    real *there = be->host_alloc(sizeof got), ones[ELEMENTS]; /* as operand */
    dev *operand = (dev *)there;
    for (int i = 0; i < ELEMENTS; i++)
        ones[i] = 1;
    be->upload(operand, ones, sizeof ones);
    be->add(operand, operand, ELEMENTS);
    be->download(got, operand, sizeof got);
    CHECK(got[0] == 2 && got[ELEMENTS - 1] == 2 && there[5] == 2, "%g", (double)got[0]);
    be->zero(operand, sizeof got);
    be->wait(be->mark());
    CHECK(memcmp(there, zeros, sizeof zeros) == 0, "zero in the host's memory");
    be->host_release(there);
    be->describe(text, sizeof text);
    CHECK(text[0] && strlen(text) < sizeof text - 1 && be->threads() >= 1, "'%s'", text);
    CHECK(be->memory_free() == -1 || be->memory_free() > 0, "%g bytes free", be->memory_free());
    CHECK(be->peak_flops() >= 0);
    Sizes one = {1, 197, 768, 12, 3072, 1000, 0, 20000, false}, many = one;
    many.B = 64;
    CHECK(be->scratch_bytes(&one) <= be->scratch_bytes(&many));

    Mat *a = real_vec("a", IN, ELEMENTS), *sum = real_vec("sum", INOUT, ELEMENTS);
    Mat *copy = real_vec("copy", OUT, ELEMENTS), *zero = real_vec("zero", OUT, ELEMENTS);
    Mat *reduced = real_vec("reduced", INOUT, ELEMENTS);
    uint64_t counts[3] = {1, 1ull << 40, ~0ull}, counts_after[3];
    dev *counts_dev = be->alloc(sizeof counts);
    be->upload(counts_dev, counts, sizeof counts);
    be->add(pointer(sum), pointer(a), ELEMENTS);
    be->copy(pointer(copy), pointer(a), sizeof got);
    be->zero(pointer(zero), sizeof got);
    be->add(pointer(reduced), pointer(a), ELEMENTS); /* of one rank: the sum is its own */
    Group *alone = be->split(0, "test");
    CHECK(alone == NULL);
    be->join(be->all_reduce(alone, pointer(reduced), F32, ELEMENTS));
    be->join(be->all_reduce(alone, counts_dev, U64, 3));
    be->add(pointer(reduced), pointer(a), ELEMENTS);
    be->download(counts_after, counts_dev, sizeof counts);
    be->release(counts_dev);
    CHECK(memcmp(counts, counts_after, sizeof counts) == 0, "counters of one rank changed");
    for (int i = 0; i < ELEMENTS; i++) {
        sum->v[i] += a->v[i];
        reduced->v[i] += 2 * a->v[i];
        copy->v[i] = a->v[i];
        zero->v[i] = 0;
    }
    finish(EXACT);
}

/* Every element exactly the nearest number of the new type. */
static void convert(int to, int from)
{
    enum { ELEMENTS = 3001 };
    static const double special[] = {0,
                                     -0.0,
                                     INFINITY,
                                     -INFINITY,
                                     NAN,
                                     65504,
                                     65519,
                                     65520,
                                     -65520,
                                     1e30,
                                     6e-8,
                                     2.9e-8,
                                     3.1e-8,
                                     -1e-40,
                                     1 + 0x1p-9,
                                     1 + 3 * 0x1p-9,
                                     0x1p-14,
                                     0x1p-126,
                                     1e-5,
                                     3.39e38,
                                     1 + 3 * 0x1p-12,
                                     1 + 0x1p-12,
                                     0x1p-133,
                                     1e-46,
                                     1 + 0x1p-8 + 0x1p-40,
                                     1 + 0x1p-8 - 0x1p-40,
                                     1 + 3 * 0x1p-8 - 0x1p-30,
                                     -0x1p-134};
    begin(PLAIN, "convert to %d from %d", to, from);
    Mat *x = mat_of(from, "x", IN, 1, ELEMENTS, 0), *y = mat_of(to, "y", OUT, 1, ELEMENTS, 0);
    for (int i = 0; i < ELEMENTS; i++)
        x->v[i] = i < COUNT(special) ? special[i] : x->v[i] * ldexp(1, i % 24 - 18);
    push(x);
    be->convert(pointer(y), to, pointer(x), from, ELEMENTS);
    double got[ELEMENTS];
    int bad = 0;
    pull(y, got);
    for (int i = 0; i < ELEMENTS; i++) {
        double want = round_to(to, x->v[i]);
        bool same =
            isnan(want) ? isnan(got[i]) : got[i] == want && !signbit(got[i]) == !signbit(want);
        CHECK(same || bad++ > 9, "%s: %.9g becomes %.9g, not %.9g", title, x->v[i], got[i], want);
        y->v[i] = isnan(want) ? INFINITY : want;
    }
    finish(EXACT);
}

/* A NaN stays one, also where all that tells it from infinity is among the bits that go. */
static void convert_nan(void)
{
    begin(PLAIN, "convert NaN");
    union {
        real x;
        uint32_t bits[sizeof(real) / 4]; /* the last: sign and exponent */
    } in = {.x = -INFINITY};
    uint16_t out;
    in.bits[0] |= 1;
    dev *x = be->alloc(sizeof in), *y = be->alloc(sizeof out);
    be->upload(x, &in, sizeof in);
    be->convert(y, BF16, x, F32, 1);
    be->download(&out, y, sizeof out);
    CHECK(isnan(get(&out, BF16, 0)), "%s: %04x", title, out);
    be->release(x);
    be->release(y);
    finish(EXACT);
}

/* ---- the order of calls ---- */

/* Three buffers sent in turn into the same memory, while what was computed of the one before may
 * still be under way; results fetched before they are overwritten. */
static void sending(void)
{
    enum { ELEMENTS = 40000, ROUNDS = 6, BYTES = ELEMENTS * sizeof(real) };
    begin(PLAIN, "send, fetch, mark and wait");
    Mat *in = real_vec("in", SCRATCH, ELEMENTS), *sum = real_vec("sum", INOUT, ELEMENTS);
    real *out[2] = {be->host_alloc(BYTES), be->host_alloc(BYTES)};
    real *from[2] = {be->host_alloc(BYTES), be->host_alloc(BYTES)};
    double total[ELEMENTS];
    Ticket sent[2] = {0}, fetched[2] = {0}, used = 0;
    memcpy(total, sum->v, sizeof total);
    used = be->mark(); /* what begin and the matrices sent */
    for (int round = 0; round < ROUNDS + 1; round++) {
        int k = round % 2;
        if (round > 0) { /* the result of the round before, which ran beside this one's call */
            be->wait(fetched[!k]);
            int bad = 0;
            for (int i = 0; i < ELEMENTS; i++) {
                total[i] += (double)(real)(round * 0.5 + i % 97);
                bad += !(fabs((double)out[!k][i] - total[i]) <= 1e-5 * fabs(total[i]) + 1e-5);
            }
            CHECK(bad == 0, "%s, round %d: %d elements are not of this round", title, round, bad);
        }
        if (round == ROUNDS)
            break;
        be->wait(sent[k]); /* the host's buffer may be written again */
        for (int i = 0; i < ELEMENTS; i++)
            from[k][i] = (real)((round + 1) * 0.5 + i % 97);
        sent[k] = be->send(pointer(in), from[k], BYTES, used);
        be->add(pointer(sum), pointer(in), ELEMENTS);
        used = be->mark();
        fetched[k] = be->fetch(out[k], pointer(sum), BYTES);
    }
    be->wait(used);
    be->wait(0);
    memcpy(sum->v, total, sizeof total);
    finish(EXACT);
    for (int k = 0; k < 2; k++) {
        be->host_release(out[k]);
        be->host_release(from[k]);
    }
}

/* A result is fetched as it was at that point of the order. */
static void fetching(void)
{
    enum { ELEMENTS = 20000, BYTES = ELEMENTS * sizeof(real) };
    begin(PLAIN, "fetch in order");
    Mat *x = real_vec("x", INOUT, ELEMENTS), *one = real_vec("one", IN, ELEMENTS);
    real *host[3];
    Ticket t[3];
    rescale(x, 0, 7);
    rescale(one, 0, 1);
    for (int k = 0; k < 3; k++) {
        host[k] = be->host_alloc(BYTES);
        be->add(pointer(x), pointer(one), ELEMENTS);
        t[k] = be->fetch(host[k], pointer(x), BYTES);
    }
    be->zero(pointer(x), BYTES);
    for (int k = 2; k >= 0; k--) {
        int bad = 0;
        be->wait(t[k]);
        for (int i = 0; i < ELEMENTS; i++)
            bad += host[k][i] != (real)(8 + k);
        CHECK(bad == 0, "%s, %d: %d elements", title, k, bad);
        be->host_release(host[k]);
    }
    rescale(x, 0, 0);
    finish(EXACT);
}

/* What a body of `run` works on: the state's host part from `input`, dropout of ones, a sum. */
typedef struct {
    Mat *x, *ones, *zeros, *sum, *input;
    Drop drop;
    int B, T, C;
} Body;

static void body(void *arg)
{
    const Body *a = arg;
    be->copy(st_dev, pointer(a->input), STEP_HOST_BYTES);
    be->embed_forward(
        &(Embed){a->x->t, a->ones->t, NULL, pointer(a->zeros), NULL, a->B, a->T, 0, a->C, a->drop});
    be->add(pointer(a->sum), pointer(a->ones), 8);
}

/* Two bodies by turns, each under its key: called the first time, repeated later, with the state
 * and the data of the day each time. */
static void running(void)
{
    enum { B = 3, T = 9, C = 16, ROUNDS = 4, STATE = (sizeof(StepState) + 3) / sizeof(real) };
    static uint64_t key = 1000; /* no key of the pass before */
    begin(PLAIN, "run");
    Body bodies[2];
    Mat *input = real_vec("state", SCRATCH, STATE);
    StepState *host = be->host_alloc(sizeof *host);
    Ticket sent = 0;
    key += 2;
    for (int k = 0; k < 2; k++) {
        bodies[k] = (Body){.x = mat("x", OUT, B * T, C, 0),
                           .ones = mat("ones", IN, B * T, C, 0),
                           .zeros = vec("zeros", IN, T * C),
                           .sum = real_vec("sum", INOUT, 8),
                           .input = input,
                           .drop = drop_of(0.25, RNG_EMBED_DROPOUT, k),
                           .B = B,
                           .T = T,
                           .C = C};
        rescale(bodies[k].ones, 0, 1);
        rescale(bodies[k].zeros, 0, 0);
    }
    /* add takes real numbers: eight of them at the start of `ones`, whatever their type */
    double added = is_half(under.type) ? NAN : 1;
    for (int i = 0; i < 2 * ROUNDS; i++) {
        Body *a = &bodies[i % 2];
        be->wait(sent);
        st.step = 100 + (uint32_t)i, st.sample0 = 7u * (uint32_t)i, st.seed += 3;
        *host = st;
        sent = be->send(pointer(input), host, STEP_HOST_BYTES, be->mark());
        be->run(key + (uint64_t)(i % 2), false, body, a);
        double got[B * T * C], sum[8];
        int bad = 0;
        pull(a->x, got);
        pull(a->sum, sum);
        for (long j = 0; j < B * T * C; j++) {
            a->x->v[j] = drop_factor(a->drop, j / (T * C), j % (T * C));
            bad += !(fabs(got[j] - rounded(a->x->v[j])) <= 1e-6);
        }
        CHECK(bad == 0, "%s, round %d: %d elements are of another step", title, i, bad);
        for (int j = 0; j < 8 && !isnan(added); j++) {
            a->sum->v[j] += added;
            CHECK(fabs(sum[j] - a->sum->v[j]) <= 1e-5, "%s, round %d: sum %g, not %g", title, i,
                  sum[j], a->sum->v[j]);
        }
        if (isnan(added))
            memcpy(a->sum->v, sum, sizeof sum);
        StepState s = state_now();
        CHECK(memcmp(&s, &st, STEP_HOST_BYTES) == 0, "%s, round %d: the state", title, i);
    }
    finish(EXACT);
    be->host_release(host);
}
