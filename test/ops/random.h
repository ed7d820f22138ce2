/* random.h - random numbers and what is drawn with them. */
#pragma once

#include "test/ops/formulas.h"

static void known_answers(void)
{
    static const struct {
        uint64_t key;
        uint32_t c[4], v[4];
    } known[] = {
        /* philox4x32-10 among Random123's known answers */
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, {~0u, ~0u, ~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822u,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < COUNT(known); i++) {
        const uint32_t *c = known[i].c;
        Philox r = philox(known[i].key, c[0], c[1], c[2], c[3]);
        CHECK(memcmp(r.v, known[i].v, sizeof r.v) == 0, "Philox vector %d: %08x %08x %08x %08x", i,
              r.v[0], r.v[1], r.v[2], r.v[3]);
    }
    RngStream s = {.seed = 5, .sample = 6, .step = 7, .purpose = RNG_AUGMENT, .layer = 1};
    for (uint32_t i = 0; i < 9; i++) {
        double want = rng_unit(rng_block(5, i / 4, 6, 7, RNG_AUGMENT, 1).v[i % 4]);
        CHECK(rng_next(&s) == want, "rng_next, number %u", i);
    }
    CHECK(rng_unit(0) > 0 && rng_unit(~0u) < 1);
    CHECK(rng_threshold(0) == 0 && rng_threshold(0.25) == 1u << 30 && rng_threshold(1) == ~0u);
}

/* Kept elements of n, each with probability 1-p: within five standard deviations. */
static void check_rate(const char *what, double p, double kept, double n)
{
    double sigma = sqrt(n * p * (1 - p));
    CHECK(fabs(kept - n * (1 - p)) <= 5 * sigma, "%s, p %g: %.0f of %.0f kept", what, p, kept, n);
}

/* Ones through dropout and drop path on the device: what comes out is 0 or 1/(1-p). */
static void keep_rates(double p)
{
    enum { B = 40, T = 197, C = 16, ALL = B * T * C };
    begin(PLAIN, "rates of p %g", p);
    Mat *ones = mat("ones", IN, B * T, C, 0), *zeros = mat("zeros", IN, ALL, 1, 0);
    Mat *results[] = {mat("x", SCRATCH, B * T, C, 0), mat("x_out", SCRATCH, ALL, 1, 0)};
    double *host = xmalloc(ALL * sizeof *host), kept_as = rounded(1 / (1 - p));
    Tensor column = {ones->t.p, 1, under.type, NULL};
    rescale(ones, 0, 1);
    rescale(zeros, 0, 0);
    be->embed_forward(&(Embed){results[0]->t, ones->t, NULL, pointer(zeros), NULL, B, T, 0, C,
                               drop_of(p, RNG_EMBED_DROPOUT, 0)});
    be->residual_norm_forward(&(ResidualNorm){.x = zeros->t,
                                              .x_out = results[1]->t,
                                              .branch = column,
                                              .rows = ALL,
                                              .C = 1,
                                              .path = drop_of(p, RNG_MLP_PATH, 5),
                                              .tokens = 1});
    for (int k = 0; k < 2; k++) {
        double kept = 0, other = 0;
        pull(results[k], host);
        for (long i = 0; i < ALL; i++) {
            kept += host[i] != 0;
            other += host[i] != 0 && !(fabs(host[i] / kept_as - 1) <= 1e-6);
        }
        CHECK(other == 0, "%.0f elements are neither 0 nor 1/(1-p)", other);
        check_rate(k ? "drop path" : "dropout", p, kept, ALL);
    }
    free(host);
    finish(EXACT);
}

/* Masks of another purpose, layer, step or sample, or one element on, agree by chance alone. */
static void independent_masks(double p)
{
    enum { ALL = 40000 };
    const Drop base = drop_of(p, RNG_PROJ_DROPOUT, 3);
    double agree[5] = {0}, chance = p * p + (1 - p) * (1 - p);
    for (long i = 0; i < ALL; i++) {
        bool kept = drop_factor(base, 2, i) > 0;
        for (int k = 0; k < 5; k++) {
            Drop d = drop_of(p, base.purpose + (k == 0), base.layer + (k == 1));
            st.step += k == 2;
            agree[k] += (drop_factor(d, 2 + (k == 3), i + (k == 4)) > 0) == kept;
            st.step -= k == 2;
        }
    }
    for (int k = 0; k < 5; k++)
        check_rate("agreement with another mask", 1 - chance, agree[k], ALL);
}
