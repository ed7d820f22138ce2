/* plan.c - ./vit plan: what a run would take of memory, time and GPU-hours, before there is a
 * machine to run it on. See plan/forecast.h for how that is known, plan/propose.h for layouts.
 *
 * Flags and recipes are the training program's. Without a layout (--tp, --pp, --zero, --recompute,
 * --micro-batch) the three fastest are proposed.
 *
 * Read in this order: flags, from flags to a job, text, JSON, the command.
 */
#include "tools/tools.h"

#include "plan/propose.h"
#include "train/effects.h"
#include "train/parallel.h"
#include "train/setup.h"
#include "util/report.h"
#include "util/text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- flags ---- */

static struct {
    long world, per_machine, gbit, images, data_rate;
    const char *gpu, *link;
    bool json, kernels;
} flag = {.per_machine = 8, .images = 1281167, .gpu = "h200", .link = "ib"};

static const Flag flags[] = {
    {"world", "N", "GPUs in all [1]", FLAG_NUMBER, &flag.world, 1, 1 << 20},
    {"gpu", "NAME", "h200 h100 a100-80 a100-40 b200 v100 l40s xeon-core [h200]", FLAG_TEXT,
     &flag.gpu, 0, 0},
    {"link", "NAME", "between machines: ib, or ethernet [ib]", FLAG_TEXT, &flag.link, 0, 0},
    {"gbit", "N", "Gbit/s of a machine's network together [what its usual machine has]",
     FLAG_NUMBER, &flag.gbit, 1, 1000000},
    {"per-machine", "N", "GPUs of one machine [8]", FLAG_NUMBER, &flag.per_machine, 1, 1024},
    {"images", "N", "training images of an epoch [1281167, ImageNet-1k]", FLAG_NUMBER, &flag.images,
     1, 1L << 50},
    {"data-rate", "N", "images/s that all cores of a machine decode (bench/results) [not known]",
     FLAG_NUMBER, &flag.data_rate, 1, 1L << 40},
    {"kernels", "", "also microseconds an image of each kind of kernel", FLAG_SWITCH, &flag.kernels,
     0, 0},
    {"json", "", "one object instead of text", FLAG_SWITCH, &flag.json, 0, 0},
};

static const char *const layout_flags[] = {"tp", "pp", "zero", "recompute", "micro-batch"};

/* ---- from flags to a job ---- */

typedef struct {
    Session s;
    Job job;
    long batch, group; /* of a step, and what must divide a micro-batch */
    bool assumed_batch, proposed;
    Proposal list[MOST_PROPOSALS];
    int n; /* of the list; the first is what is planned */
} Planned;

static const Proposal *best(const Planned *p)
{
    return &p->list[0];
}

/* What --precision means on this GPU. */
static int type_of(const Options *o, const Gpu *g)
{
    static const int types[] = {BF16, F32, F32, BF16, F16, BF16}; /* .. bf16 fp16 fp8 */
    if (o->precision == PRECISION_FP8 && g->eight <= 0)
        die_usage("choose --precision bf16, or --gpu h100, h200 or b200",
                  "--precision fp8 is for an H100 or anything newer, not for %s", g->name);
    if (!g->half)
        return F32;
    return o->precision == PRECISION_AUTO && g->capability < 80 ? F16 : types[o->precision];
}

static void check(bool ok, const Error *e)
{
    if (!ok)
        die_usage(*e->hint ? e->hint : NULL, "%s", e->what);
}

/* The built-in recipe's small model is planned only where its size is given by hand. */
static bool names_size(int argc, char **argv)
{
    bool does = false;
    for (int i = 1; i < argc; i++)
        does |= strncmp(argv[i], "--width", 7) == 0;
    return does;
}

/* The run as the trainer would set it up. */
static void make_job(Planned *p, bool sized)
{
    Session *s = &p->s;
    Options *o = &s->o;
    Error e = {"", ""};
    if (s->built_in && !*o->weights && !sized)
        die_usage("--model B/16, --recipe FILE or --weights FILE", "no model is named");
    long ranks = flag.world ? flag.world : o->gpus * o->ranks;
    setup_architecture(s);
    if (s->config.classes == 0)
        s->config.classes = vit_config_default().classes;
    Cluster cluster;
    check(cluster_new(&cluster, flag.gpu, flag.link, (int)flag.per_machine, (double)flag.gbit, &e),
          &e);
    flags_note(ranks > cluster.per_machine, "link gbit", "on one machine");
    flags_note(ranks > 1, "per-machine", "with one GPU");
    flags_note(!flag.json, "kernels", "with --json");
    p->assumed_batch = !options_given(o, "batch-size");
    if (p->assumed_batch)
        o->batch_size = 4096 / ranks ? 4096 / ranks * ranks : ranks;
    check(parallel_new(&s->split, o, &s->config, 0, (int)ranks, &e), &e);
    s->type = type_of(o, cluster.gpu);
    p->batch = o->batch_size;
    p->job = (Job){.config = s->config,
                   .plan = setup_plan(s, true),
                   .tf32 = o->precision == PRECISION_TF32,
                   .cluster = cluster,
                   .ranks = (int)ranks,
                   .tp = (int)o->tp,
                   .pp = (int)o->pp,
                   .zero = s->split.zero,
                   .stages = o->layers_per_stage,
                   .reshard = o->reshard_after_forward,
                   .reduce_type = s->split.reduce_type};
    p->job.plan.batch = (int)o->batch_size;
}

static NORETURN void does_not_fit(const Job *j, long group)
{
    char hint[512], what[160];
    Needs n = job_needs(j);
    job_remedy(j, group, hint, sizeof hint);
    job_flags(j, what, sizeof what);
    die(hint, "it does not fit: %s on %d x %s takes %.1f GiB of a GPU's %.1f", what, j->ranks,
        j->cluster.gpu->name, n.total / (1 << 30), n.room / (1 << 30));
}

/* The layout that was asked for; its micro-batch, where that was not. */
static void plan_given(Planned *p)
{
    long batch, micro = setup_micro(&p->s, true, &batch, &p->group);
    Job *j = &p->job;
    bool given = p->s.o.micro_batch > 0;
    j->plan.max_batch = (int)micro;
    if (!given && !job_fit(j, batch, p->group, micro))
        does_not_fit(j, p->group);
    if (batch % j->plan.max_batch)
        die_usage("choose a --micro-batch that divides it",
                  "a rank's batch of %ld does not divide into micro-batches of %d", batch,
                  j->plan.max_batch);
    p->list[0] = (Proposal){*j, job_needs(j), job_forecast(j)};
    p->n = 1;
}

static void plan_any(Planned *p)
{
    long batch;
    p->proposed = true;
    setup_micro(&p->s, true, &batch, &p->group);
    p->n = job_propose(&p->job, p->batch, p->group, p->list);
    if (p->n)
        return;
    p->job.plan.max_batch = (int)p->group; /* no layout is left to name */
    does_not_fit(&p->job, p->group);
}

/* ---- what follows from it ---- */

/* Where the loader is slower than the GPUs, it is what counts. */
static double images_per_s(const Planned *p, const Forecast *f)
{
    int machines = (p->job.ranks + p->job.cluster.per_machine - 1) / p->job.cluster.per_machine;
    double data = (double)flag.data_rate * machines;
    return data > 0 && data < f->images_per_s ? data : f->images_per_s;
}

static double epochs(const Planned *p)
{
    const Options *o = &p->s.o;
    return o->steps ? (double)o->steps * (double)p->batch / (double)flag.images : o->epochs;
}

static double hours(const Planned *p, const Forecast *f)
{
    return epochs(p) * (double)flag.images / images_per_s(p, f) / 3600;
}

/* ---- text ---- */

#define GIB(bytes) ((bytes) / (1 << 30))

static const char *type_name(const Planned *p)
{
    static const char *const names[] = {"fp32", "bf16", "fp16"};
    if (p->job.plan.fp8.on)
        return "fp8";
    return p->job.tf32 ? "tf32" : names[p->job.plan.type];
}

static void print_model(const Planned *p)
{
    const Config *c = &p->job.config;
    const Gpu *g = p->job.cluster.gpu;
    char params[32], flop[32];
    int machine = p->job.cluster.per_machine;
    Cut whole = WHOLE_MODEL;
    Layout *l = layout_new(c, DECAY_ALL, &whole);
    format_count((double)l->n_params, params, sizeof params);
    format_count(3 * vit_forward_flops(c), flop, sizeof flop);
    layout_free(l);
    report_line("model     width %d, %s, %s, mlp %d, patch %d, %dx%d pixels: %s "
                "parameters, %sFLOP to train on an image",
                c->width, amount(c->layers, "layer").s, amount(c->heads, "head").s, c->mlp,
                c->patch, c->image_h, c->image_w, params, flop);
    report_line("machine   %d x %s, %d to a machine: %.0f TFLOP/s in %s, %.2f TB/s of memory, %.0f "
                "GB/s to its neighbours, %.1f GB/s by %s (by the data sheet, and what of it is "
                "taken for reached)",
                p->job.ranks, g->name, machine < p->job.ranks ? machine : p->job.ranks,
                gpu_peak(g, p->job.plan.fp8.on ? E4M3 : p->job.plan.type, p->job.tf32) / 1e12,
                type_name(p), g->bandwidth / 1e12, g->nvlink / 1e9, p->job.cluster.adapter / 1e9,
                p->job.cluster.link);
    if (g->processors && g->capability < 80)
        printf("note: the training program needs compute capability 8.0, which %s has not\n",
               g->name);
    if (c->width / c->heads > 128 && g->processors)
        printf("note: the program's attention on GPUs takes heads of up to 128 numbers; these have "
               "%d\n",
               c->width / c->heads);
    if (p->assumed_batch)
        printf("note: no --batch-size: %s a step\n", amount((double)p->batch, "image").s);
}

static void print_memory(const Proposal *p)
{
    const Memory *m = &p->needs.memory;
    char at[64] = "", host[64] = "", room[48] = "";
    if (p->job.pp > 1)
        snprintf(at, sizeof at, " on stage %d", p->needs.stage + 1);
    if (m->host > 0)
        snprintf(host, sizeof host, "; %.1f GiB of the host's", GIB(m->host));
    if (p->needs.room > 0)
        snprintf(room, sizeof room, " of %.1f", GIB(p->needs.room));
    report_line("memory    %.2f%s GiB%s: weights %.2f, gradients %.2f, optimiser %.2f, activations "
                "%.2f, inputs %.2f; NCCL's and libraries' %.2f (estimated)%s",
                GIB(p->needs.total), room, at, GIB(m->weights), GIB(m->gradients),
                GIB(m->optimiser), GIB(m->activations), GIB(m->inputs), GIB(p->needs.buffers),
                host);
}

static void print_time(const Proposal *p)
{
    const Forecast *f = &p->forecast;
    char text[400];
    int at = snprintf(text, sizeof text, "step      %.4g s, %ld x %d images a rank:", f->seconds,
                      f->micros, p->job.plan.max_batch);
    for (int i = 0; i < TIME_PARTS; i++)
        if (f->part[i] > 0)
            at += snprintf(text + at, sizeof text - (size_t)at, "%s %s %.1f%%", i ? "," : "",
                           time_names[i], 100 * f->part[i] / f->seconds);
    report_line("%s", text);
    if (f->talked > 0)
        report_line("talk      %.3g s of collectives in a step, of which computation hides %.0f%%",
                    f->talked, 100 * (1 - f->waited / f->talked));
    for (int i = 0; i < SENT_KINDS; i++)
        if (f->sent[i] > 0) {
            char bytes[32];
            format_count(f->sent[i], bytes, sizeof bytes);
            printf("          %sB of %s from the first rank, in %.0f messages\n", bytes,
                   sent_names[i], f->messages[i]);
        }
}

/* Of an image and a GPU; the floor is what gpu_floor says. */
static void print_kernels(const Planned *p, const Proposal *one)
{
    const Forecast *f = &one->forecast;
    double images = (double)p->batch / one->job.ranks, all[2] = {0};
    printf("kernels   microseconds an image, and the floor:\n");
    for (int i = 0; i < KERNELS; i++) {
        if (i != MESSAGES || f->kernel[i] > 0)
            printf("          %8.2f %8.2f  %s\n", 1e6 * f->kernel[i] / images,
                   1e6 * f->floor[i] / images, kernel_names[i]);
        all[0] += 1e6 * f->kernel[i] / images;
        all[1] += 1e6 * f->floor[i] / images;
    }
    printf("          %8.2f %8.2f  sum\n", all[0], all[1]);
}

/* Three digits and more: "38820", "48.52" */
typedef struct {
    char s[32];
} Rate;

static Rate rate_text(double v)
{
    Rate r;
    snprintf(r.s, sizeof r.s, v < 1000 ? "%.4g" : "%.0f", v);
    return r;
}

static void print_cost(const Planned *p, const Proposal *one)
{
    const Forecast *f = &one->forecast;
    double rate = images_per_s(p, f);
    printf("speed     %s images/s, %s a GPU; MFU %.1f%%%s\n", rate_text(rate).s,
           rate_text(rate / one->job.ranks).s, 100 * f->mfu * rate / f->images_per_s,
           rate < f->images_per_s ? "; the loader is what limits it (--data-rate)" : "");
    printf("cost      %.4g epochs of %ld images: %.4g hours, %.5g GPU-hours\n", epochs(p),
           flag.images, hours(p, f), hours(p, f) * one->job.ranks);
}

/* What keeps the proposal from being faster, in words. */
static void print_why(const Proposal *p)
{
    const Forecast *f = &p->forecast;
    int second = ATTENTION;
    for (int i = ATTENTION; i < TIME_PARTS; i++)
        second = f->part[i] > f->part[second] ? i : second;
    printf("          %.0f%% of the step are products; next come %s with %.0f%%; %.0f%% of the "
           "memory is taken\n",
           100 * f->part[PRODUCTS] / f->seconds, time_names[second],
           100 * f->part[second] / f->seconds,
           p->needs.room > 0 ? 100 * p->needs.total / p->needs.room : 0);
}

static void print_estimate(const Gpu *g)
{
    if (g->measured)
        report_line("estimate  fitted to %s; other models and numbers of ranks are extrapolated",
                    g->measured);
    else
        report_line("estimate  nothing has been measured on this GPU: peaks are the maker's, what "
                    "is reached of them is assumed (plan/gpus.c, plan/hopper.c); the loader and "
                    "checkpoints are left out");
}

static void print_text(const Planned *p)
{
    char layout[160];
    print_model(p);
    for (int i = 0; i < p->n; i++) {
        const Proposal *one = &p->list[i];
        job_flags(&one->job, layout, sizeof layout);
        if (p->proposed)
            printf("\n%d.        %s: %s images/s\n", i + 1, layout,
                   rate_text(one->forecast.images_per_s).s);
        else
            printf("layout    %s\n", layout);
        if (p->proposed)
            print_why(one);
        print_memory(one);
        print_time(one);
        if (flag.kernels)
            print_kernels(p, one);
        print_cost(p, one);
    }
    print_estimate(p->job.cluster.gpu);
}

/* ---- JSON ---- */

static void json_name(FILE *f, const char *name)
{
    fputc('"', f);
    for (; *name; name++)
        fputc(*name == ' ' ? '_' : *name, f);
    fputs("\": ", f);
}

static void json_proposal(FILE *f, const Planned *p, const Proposal *one)
{
    const Job *j = &one->job;
    const Memory *m = &one->needs.memory;
    const Forecast *x = &one->forecast;
    double rate = images_per_s(p, x);
    char flags_text[160];
    job_flags(j, flags_text, sizeof flags_text);
    fprintf(f,
            "{\"flags\": \"%s\", \"tp\": %d, \"pp\": %d, \"dp\": %d, \"zero\": %d, "
            "\"micro_batch\": %d, \"micro_batches\": %ld,\n",
            flags_text, j->tp, j->pp, j->ranks / j->tp / j->pp, j->zero, j->plan.max_batch,
            x->micros);
    fprintf(f,
            "  \"memory\": {\"weights\": %.0f, \"gradients\": %.0f, \"optimiser\": %.0f, "
            "\"activations\": %.0f, \"inputs\": %.0f, \"buffers\": %.0f, \"host\": %.0f, "
            "\"total\": %.0f, \"room\": %.0f, \"stage\": %d},\n",
            m->weights, m->gradients, m->optimiser, m->activations, m->inputs, one->needs.buffers,
            m->host, one->needs.total, one->needs.room, one->needs.stage);
    fprintf(f, "  \"seconds\": %.6g, \"time\": {", x->seconds);
    for (int i = 0; i < TIME_PARTS; i++) {
        fputs(i ? ", " : "", f);
        json_name(f, time_names[i]);
        fprintf(f, "%.6g", x->part[i]);
    }
    for (int k = 0; k < 2; k++) {
        fprintf(f, "},\n  \"%s\": {", k ? "floors" : "kernels");
        for (int i = 0; i < KERNELS; i++) {
            fputs(i ? ", " : "", f);
            json_name(f, kernel_names[i]);
            fprintf(f, "%.6g", k ? x->floor[i] : x->kernel[i]);
        }
    }
    fprintf(f, "},\n  \"talked\": %.6g, \"waited\": %.6g, \"sent\": {", x->talked, x->waited);
    for (int i = 0; i < SENT_KINDS; i++) {
        fputs(i ? ", " : "", f);
        json_name(f, sent_names[i]);
        fprintf(f, "%.0f", x->sent[i]);
    }
    fprintf(f,
            "},\n  \"images_per_s\": %.6g, \"per_gpu\": %.6g, \"mfu\": %.4f, \"hours\": %.6g, "
            "\"gpu_hours\": %.6g}",
            rate, rate / j->ranks, x->mfu * rate / x->images_per_s, hours(p, x),
            hours(p, x) * j->ranks);
}

static void print_json(FILE *f, const Planned *p)
{
    const Gpu *g = p->job.cluster.gpu;
    fprintf(f,
            "{\"gpu\": \"%s\", \"link\": \"%s\", \"world\": %d, \"precision\": \"%s\", "
            "\"batch_size\": %ld, \"epochs\": %.6g, \"images\": %ld, \"measured\": %s,\n"
            " \"plans\": [",
            g->name, p->job.cluster.link, p->job.ranks, type_name(p), p->batch, epochs(p),
            flag.images, g->measured ? "true" : "false");
    for (int i = 0; i < p->n; i++) {
        fputs(i ? ",\n " : "", f);
        json_proposal(f, p, &p->list[i]);
    }
    fputs("]}\n", f);
}

/* ---- the command ---- */

static int run_plan(const Command *c, int argc, char **argv)
{
    static Planned p;
    flags_take(c, &argc, argv);
    if (argc > 1 && argv[1][0] != '-')
        die_usage("./vit plan --help lists all flags", "'%s' is no flag", argv[1]);
    setup_options(&p.s, argc, argv);
    FILE *out = stdout;
    if (flag.json) { /* what else is said goes the way of errors */
        out = fdopen(dup(STDOUT_FILENO), "w");
        if (!out || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
            die("raise the limit of open files (ulimit -n)", "cannot open the output");
    }
    make_job(&p, names_size(argc, argv));
    effects_note(&p.s, c->name);
    bool given = false;
    for (int i = 0; i < COUNT(layout_flags); i++)
        given |= options_given(&p.s.o, layout_flags[i]);
    if (given)
        plan_given(&p);
    else
        plan_any(&p);
    if (flag.json)
        print_json(out, &p);
    else
        print_text(&p);
    report_written(out);
    const Needs *n = &best(&p)->needs;
    if (n->room > 0 && n->total > n->room)
        does_not_fit(&best(&p)->job, p.group);
    options_free(&p.s.o);
    return 0;
}

static void more_help(FILE *f)
{
    fprintf(f, "\nand the flags of the training program:\n\n");
    options_help(f);
}

const Command command_plan = {
    .name = "plan",
    .summary = "memory, speed and GPU-hours of a run on machines that are not here",
    .usage = "--model M | --recipe R  --world N [--gpu h200] [--link ib] [--tp --pp --zero ...]",
    .help =
        "Prints what a run would take: memory of the fullest rank by class, as the training "
        "program plans it;\nbytes that ranks send; the time of a step and where it goes; images/s, "
        "MFU and GPU-hours. The step is\nthe program's own, run on a device that keeps a clock and "
        "computes nothing. Products: tiles on\nmultiprocessors, in waves, at a share of the peak; "
        "passes: bytes at a share of the bandwidth;\ncollectives: a ring's bytes at a share of "
        "NVLink's or the network's, and a tree's latency, beside what\nis computed until somebody "
        "waits for them; stages by 1F1B. Without --tp, --pp, --zero, --recompute and\n"
        "--micro-batch the three fastest layouts are proposed. Status 1: it does not fit.\n",
    .flags = flags,
    .n_flags = COUNT(flags),
    .run = run_plan,
    .more_help = more_help,
};
