/* test_ops: every op of a Backend against its formula in backend.h, written out naively in double.
 *
 *   test_ops [--backend cpu|cuda] [--type fp32|tf32|bf16|fp16] [--verbose] [seed=N]
 *
 * What a case is, and what its results are held to: test/mats.h; seed: with other numbers. All
 * cases run again and must give the same bits each time: on the CPU with one thread, with two, and
 * with two again, except that OpenBLAS may sum in another order with another number of threads;
 * elsewhere twice. The model made of the ops: test/test_grad.c and test/test_golden.c.
 *
 * The cases and their formulas are in test/ops, a file for each kind of layer; here is what runs
 * them, in an order that their random numbers depend on. Order: layers, updates, calls, main.
 */
#include "mats.h"
#include "ops/attention.h"
#include "ops/images.h"
#include "ops/linear.h"
#include "ops/losses.h"
#include "ops/memory.h"
#include "ops/norms.h"
#include "ops/optimiser.h"
#include "ops/random.h"
#include "ops/scaling.h"

static void layer_cases(void)
{
    for (int i = 0; i < COUNT(linear_cases); i++) {
        if (linear_cases[i].big && !under.full)
            continue;
        linear_forward(&linear_cases[i], false);
        linear_backward_input(&linear_cases[i]);
        linear_backward_weight(&linear_cases[i]);
    }
    for (int i = 0; i < COUNT(patch_cases); i++)
        patchify(&patch_cases[i]);
    for (int i = 0; i < COUNT(norm_cases); i++) {
        norm_forward(&norm_cases[i]);
        norm_backward(&norm_cases[i], 0);
        if (norm_cases[i].norm) {
            norm_backward(&norm_cases[i], 1);
            norm_backward(&norm_cases[i], 3);
        }
    }
    for (int backward = 0; backward < 2; backward++) {
        for (int kind = ACT_GELU; kind <= ACT_TANH; kind++)
            activation(kind, backward);
        every_gelu(backward);
        for (int i = 0; i < COUNT(embed_cases); i++)
            embed(&embed_cases[i], backward);
        for (int i = 0; i < COUNT(attention_cases); i++)
            if (under.full || !attention_cases[i].big)
                attention(&attention_cases[i], backward);
        for (int i = 0; i < COUNT(head_norm_cases); i++)
            head_norm(&head_norm_cases[i], backward);
        for (int i = 0; i < COUNT(pool_cases); i++)
            pool(&pool_cases[i], backward);
    }
    softmax_sweep();
    for (int i = 0; i < COUNT(loss_cases); i++)
        loss(&loss_cases[i]);
    for (int i = 0; i < COUNT(linear_cases); i++)
        if (linear_cases[i].act && linear_cases[i].pre && !linear_cases[i].big) {
            activate(&linear_cases[i]);
            linear_forward(&linear_cases[i], true); /* GELU may go into the product */
        }
}

static void wide_layers(void)
{
    for (int i = 0; i < COUNT(wide_cases); i++) {
        linear_forward(&wide_cases[i], false);
        linear_backward_input(&wide_cases[i]);
        linear_backward_weight(&wide_cases[i]);
        if (wide_cases[i].pre)
            activate(&wide_cases[i]);
    }
}

/* Masks of some columns, or heads, of wider matrices: from a multiple of four and from others on.
 */
static void part_cases(void)
{
    static const int firsts[] = {1, 30, 128};
    for (int i = 0; i < COUNT(firsts); i++) {
        cut.first = firsts[i];
        for (int k = 0; k < COUNT(linear_cases); k++) {
            const LinearCase *c = &linear_cases[k];
            if (c->drop <= 0)
                continue;
            cut.of = cut.first + c->out + 5;
            linear_forward(c, false);
            if (c->act && c->pre)
                activate(c);
            cut.of = cut.first + c->in + 5;
            linear_backward_input(c);
        }
        for (int k = 0; k < COUNT(attention_cases); k++) {
            const AttentionCase *c = &attention_cases[k];
            if (c->drop <= 0 || c->T > 200)
                continue;
            cut.of = cut.first + c->heads + 1;
            attention(c, false);
            attention(c, true);
        }
    }
    cut.first = cut.of = 0;
}

static void update_cases(void)
{
    static const double bad[] = {0, NAN, INFINITY, -INFINITY};
    make_chunks();
    for (int i = 0; i < COUNT(opt_cases); i++) {
        optimiser(&opt_cases[i]);
        if (is_half(under.type) && !opt_cases[i].skip)
            stochastic_rounding(&opt_cases[i]);
    }
    if (is_half(under.type))
        rounding_places();
    for (int i = 0; i < COUNT(bad); i++) {
        norms(1, 1, bad[i]);
        norms(150, 1024, bad[i]);
        norms(0, 8, bad[i]);
    }
    share_chunks();
    for (int i = 0; i < COUNT(opt_cases); i++) {
        state_on_host = i % 2;
        optimiser(&opt_cases[i]);
    }
    state_on_host = false;
    norms(1, 1, 0);
    norms(1, 1, NAN);
    norms(150, 1024, INFINITY);
    for (int i = 0; i < COUNT(scale_cases); i++)
        scaling(&scale_cases[i]);
    auto_limit(2, 10000000, 8);
    auto_limit(1, 10000001, 32);
    auto_limit(1, 9999999, 8);
    large_elements(1, 3000, 0);
    large_elements(197, 48, 0);
    large_elements(37, 81, 7);
    be->release(chunks_dev);
}

static void order_cases(void)
{
    memory();
    sending();
    fetching();
    running();
    for (int to = F32; to <= F16; to++)
        for (int from = F32; from <= F16; from++)
            if ((to <= BF16 && from <= BF16) || strcmp(be->name, "cpu") != 0) /* it has no F16 */
                convert(to, from);
    convert_nan();
}

static void run_cases(void)
{
    static const int threads[] = {1, 2, 2};
    bool cpu = strcmp(under.be->name, "cpu") == 0;
    int passes = cpu ? COUNT(threads) : 2;
    be = under.be;
    for (pass = 0; pass < passes; pass++) {
        double start = now();
        n_cases = 0;
        if (cpu || pass == 0)
            device_init(cpu ? threads[pass] : 0);
        same_threads = !cpu || (pass > 0 && threads[pass] == threads[pass - 1]);
        st_dev = be->alloc(sizeof st);
        scratch_dev = be->alloc(SCRATCH_BYTES + GUARD);
        be->bind(st_dev, scratch_dev, SCRATCH_BYTES);
        order_cases();
        layer_cases();
        part_cases();
        update_cases();
        wide_layers();
        for (int i = 1; i < 10; i += 4)
            keep_rates(i / 10.0);
        char zeros[GUARD] = {0}, after[GUARD];
        be->download(after, (dev *)((char *)scratch_dev + SCRATCH_BYTES), GUARD);
        CHECK(memcmp(zeros, after, GUARD) == 0, "%s wrote behind its scratch memory", be->name);
        be->release(scratch_dev);
        be->release(st_dev);
        printf("%s %s, %d threads: %d cases in %.1f s\n", be->name, under.name, be->threads(),
               n_cases, now() - start);
    }
    if (under.verbose)
        report_worst();
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    argc = device_options(argc, argv);
    for (int i = 1; i < argc; i++) /* the folder that all tests are given is of no use here */
        if (sscanf(argv[i], "seed=%d", &seed) != 1 && strchr("-=", *argv[i]))
            die_usage("seed=N", "unknown argument '%s'", argv[i]);
    known_answers();
    run_cases();
    for (int i = 1; i < 10; i += 4)
        independent_masks(i / 10.0);
    return check_report();
}
