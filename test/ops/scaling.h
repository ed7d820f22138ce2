/* scaling.h - the loss scale, and what it looks at. */
#pragma once

#include "test/mats.h"

/* One sequence of updates. `events`, a letter for each: o overflows, g is good; for AUTO l had one
 * gradient of a thousand beyond the limit, and both others none. */
typedef struct {
    const char *name;
    LossScaling scaling;
    const char *events;
    double scale[16];    /* after each event */
    uint32_t in_row[16]; /* skipped_in_row */
} ScaleCase;

static const ScaleCase scale_cases[] = {
    {"none", {SCALING_NONE, 1, 2, 2}, "gogoog", {1, 1, 1, 1, 1, 1}, {0, 1, 0, 1, 2, 0}},
    {"static",
     {SCALING_STATIC, 1024, 2, 2},
     "oogggo",
     {1024, 1024, 1024, 1024, 1024, 1024},
     {1, 2, 0, 0, 0, 1}},
    {"dynamic: doubled after 3 good ones in a row",
     {SCALING_DYNAMIC, 64, 3, 1},
     "gggggggogggg",
     {64, 64, 128, 128, 128, 256, 256, 128, 128, 128, 256, 256},
     {0}},
    {"dynamic: at once", {SCALING_DYNAMIC, 64, 1000, 1}, "oogo", {32, 16, 16, 8}, {0}},
    {"dynamic: hysteresis 2, at once from then on, until it has grown",
     {SCALING_DYNAMIC, 64, 2, 2},
     "ogoogggoo",
     {64, 64, 32, 16, 16, 32, 32, 32, 16},
     {0}},
    {"dynamic: hysteresis 3, good steps do not restore it",
     {SCALING_DYNAMIC, 8, 1000, 3},
     "ogogoog",
     {8, 8, 8, 8, 4, 2, 2},
     {0}},
    {"dynamic: an overflow starts the row again",
     {SCALING_DYNAMIC, 64, 2, 5},
     "gogogg",
     {64, 64, 64, 64, 64, 128},
     {0}},
    {"dynamic: not below 1, and only there are skipped ones counted",
     {SCALING_DYNAMIC, 4, 2, 1},
     "oooogooggo",
     {2, 1, 1, 1, 1, 1, 1, 1, 2, 1},
     {0, 0, 1, 2, 0, 1, 2, 0, 0, 0}},
    {"dynamic: not above 2^32",
     {SCALING_DYNAMIC, 0x1p31, 1, 1},
     "gggo",
     {0x1p32, 0x1p32, 0x1p32, 0x1p31},
     {0}},
    {"auto", {SCALING_AUTO, 8, 0, 0}, "ggllg", {16, 32, 16, 8, 16}, {0}},
    {"auto: from 1 to 2^32", {SCALING_AUTO, 2, 0, 0}, "llllg", {1, 1, 1, 1, 2}, {0}},
    {"auto: not above 2^32", {SCALING_AUTO, 0x1p32, 0, 0}, "ggl", {0x1p32, 0x1p32, 0x1p31}, {0}},
};

static void scaling(const ScaleCase *c)
{
    begin(PLAIN, "scale_loss %s", c->name);
    st.loss_scale = c->scaling.init;
    st.patience = (uint32_t)c->scaling.hysteresis;
    send_state();
    for (int i = 0; c->events[i]; i++) {
        StepState s = state_now(), before = s;
        s.skip = c->events[i] == 'o';
        s.large = c->events[i] == 'l';
        s.counted = c->scaling.kind == SCALING_AUTO ? 1000 : 0;
        be->upload(st_dev, &s, sizeof s);
        be->scale_loss(&c->scaling);
        s = state_now();
        CHECK(s.loss_scale == c->scale[i], "%s, update %d: %g, not %g", title, i + 1, s.loss_scale,
              c->scale[i]);
        CHECK(s.skipped_in_row == c->in_row[i], "%s, update %d: %u in a row, not %u", title, i + 1,
              s.skipped_in_row, c->in_row[i]);
        CHECK(memcmp(&s, &before, STEP_HOST_BYTES) == 0 && s.t == before.t &&
                  s.skipped == before.skipped && s.clip == before.clip,
              "%s, update %d: more has changed", title, i + 1);
        if (c->scaling.kind == SCALING_AUTO)
            CHECK(s.large == 0 && s.counted == 0, "%s: the counts were not emptied", title);
        if (c->scaling.kind == SCALING_DYNAMIC && c->events[i] == 'o')
            CHECK(s.good_steps == 0, "%s, update %d: %u good steps", title, i + 1, s.good_steps);
    }
    finish(EXACT);
}

/* More than one in ten million: two of 10^7 halve the scale, one of 10^7 + 1 does not. */
static void auto_limit(uint64_t large, uint64_t counted, double scale)
{
    begin(PLAIN, "scale_loss auto, %d of %.0f", (int)large, (double)counted);
    st.loss_scale = 16, st.large = large, st.counted = counted;
    send_state();
    be->scale_loss(&(LossScaling){SCALING_AUTO, 16, 0, 0});
    CHECK(state_now().loss_scale == scale, "%s: %g", title, state_now().loss_scale);
    finish(EXACT);
}

/* What count_large adds, to counts beyond 2^32 too; the gaps of x hold NaN. */
static void large_elements(int rows, int cols, int pad)
{
    begin(PLAIN, "count_large %dx%d", rows, cols);
    double limit = 0.125 * 65504;
    double special[] = {limit,    -limit,    8192,      -8192, 9000, NAN,
                        INFINITY, -INFINITY, limit + 4, 60000, 0,    8160};
    Mat *x = mat("x", IN, rows, cols, pad);
    rescale(x, 6000, 0);
    uint64_t large = 0, n = (uint64_t)rows * (uint64_t)cols;
    for (long i = 0; i < rows * cols; i++)
        if (i % 7 == 3)
            x->v[i] = special[i / 7 % COUNT(special)];
    push(x);
    for (long i = 0; i < rows * cols; i++)
        large += !(fabs(x->v[i]) <= limit);
    st.large = 5000000000u, st.counted = 7000000000u;
    send_state();
    be->count_large(tensor(x), rows, cols);
    be->count_large(tensor(x), rows, cols);
    StepState s = state_now();
    CHECK(s.large - st.large == 2 * large, "%s: %d of %d", title, (int)(s.large - st.large),
          (int)(2 * large));
    CHECK(s.counted - st.counted == 2 * n, "%s: counted %d", title, (int)(s.counted - st.counted));
    s.large = st.large, s.counted = st.counted;
    CHECK(memcmp(&s, &st, sizeof s) == 0, "%s: more has changed", title);
    finish(EXACT);
}
