/* meter.c - adds up what steps came to, and makes reports of it. See meter.h.
 *
 * Results come here in order, up to a step late (train.c); how they look is report.c's business.
 * Speeds leave out evaluations and checkpoints. What costs a sum over the ranks (bytes and workers
 * of the data) is asked for at reports alone, which all ranks make at the same steps.
 *
 * Read in this order: what is used, reports, beginning and end.
 */
#include "train/meter.h"

#include "image/formats.h"
#include "train/hosts.h"
#include "train/tuning.h"
#include "util/report.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* ---- what is used ---- */

double meter_epoch(const Session *s, uint64_t step)
{
    double ahead = (double)(s->state.step - step) * (double)s->o.batch_size;
    return ((double)s->state.samples - ahead) / (double)data_count(s->train);
}

Usage meter_usage(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (Usage){.cpu_seconds = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                                  1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec),
                   .peak_bytes = 1024.0 * (double)u.ru_maxrss};
}

/* Some ranks read no data (split_reads). */
static LoaderStats stats_of(const Meter *m)
{
    return m->loader ? loader_stats(m->loader) : (LoaderStats){0};
}

/* Of all ranks, which call this together. */
typedef struct {
    double bytes, workers, damaged; /* read so far, at work now, met so far */
    int slowest;                    /* the rank with the most work, */
    double work, mean;              /* its seconds, and the mean of all */
} Use;

/* `work`: seconds since the last report in which this rank did not wait for others. */
static Use use_of_all(const Meter *m, double work)
{
    enum { BYTES, WORKERS, DAMAGED, WORK };
    World w = m->s->world;
    LoaderStats l = stats_of(m);
    double *all = xcalloc((size_t)(WORK + w.ranks), sizeof *all);
    all[BYTES] = (double)l.bytes;
    all[WORKERS] = l.workers;
    all[DAMAGED] = (double)data_damaged(m->s->train);
    all[WORK + w.rank] = work;
    hosts_sum(all, WORK + w.ranks);
    Use u = {.bytes = all[BYTES], .workers = all[WORKERS]};
    for (int r = 0; r < w.ranks; r++) {
        u.mean += all[WORK + r] / w.ranks;
        u.slowest = all[WORK + r] > all[WORK + u.slowest] ? r : u.slowest;
    }
    u.work = all[WORK + u.slowest];
    u.damaged = (double)data_damaged_by_all(m->s->train, all[DAMAGED], hosts_sum);
    free(all);
    return u;
}

/* ---- reports ---- */

static double seconds_waited(const Meter *m)
{
    return stats_of(m).waited - m->waited;
}

/* What is no number has no sign that means anything; printf would show it. */
static double unsigned_nan(double x)
{
    return isnan(x) ? NAN : x;
}

/* What the steps since the last report came to, `seconds` of training. */
static StepReport measure(const Meter *m, const StepState *state, uint64_t step, double seconds)
{
    const Session *s = m->s;
    double images = (double)m->images, left = (double)(s->steps - step);
    StepReport r = {.step = (double)step,
                    .total = (double)s->steps,
                    .epoch = meter_epoch(s, step),
                    .loss = unsigned_nan(m->loss / images),
                    .acc = 100 * m->hits / images,
                    .lr = state->lr,
                    .grad_norm = unsigned_nan(state->grad_norm),
                    .ms = 1000 * seconds / (double)m->steps,
                    .images_per_s = images / seconds,
                    .wait = seconds_waited(m) / seconds,
                    .skipped = state->skipped,
                    .loss_scale = s->m->plan.scaling.kind ? state->loss_scale : 0,
                    .epochs = s->o.epochs,
                    .elapsed = now() - m->began,
                    .best = s->state.best_metric,
                    .eta = (now() - m->began) / (double)(step - m->first) * left};
    if (s->o.steps)
        r.epochs = r.epoch + left * (double)s->o.batch_size / (double)data_count(s->train);
    double peak = s->be->peak_flops() * s->world.ranks;
    r.gflops = r.images_per_s * tuning_flops(s->m) / 1e9;
    r.mfu = peak > 0 ? 100 * r.gflops * 1e9 / peak : 0;
    return r;
}

/* The part of a report that is not asked for at every step. */
static void measure_use(Meter *m, StepReport *r, double seconds)
{
    const Backend *be = m->s->be;
    double sent = be->sent(), waited = be->waited();
    bool alone = m->s->world.ranks == 1;
    Use all = use_of_all(m, seconds - (waited - m->comm_waited));
    Usage u = meter_usage();
    r->memory = u.peak_bytes;
    r->cpu = (u.cpu_seconds - m->cpu_seconds) / ((now() - m->reported) * be->threads());
    r->gpu = be->busy();
    r->workers = all.workers;
    r->damaged = all.damaged;
    r->slowest = alone ? -1 : all.slowest;
    r->slowest_by = (all.work - all.mean) / seconds;
    r->data_bytes_per_s = (all.bytes - m->data_bytes) / seconds;
    if (m->s->state.step > m->asked)
        m->step_bytes = (sent - m->comm_bytes) / (double)(m->s->state.step - m->asked);
    r->comm_bytes = m->step_bytes;
    r->comm_wait = !sent ? -1 : (waited - m->comm_waited) / seconds;
    m->comm_bytes = sent;
    m->comm_waited = waited;
    m->asked = m->s->state.step;
    m->cpu_seconds = u.cpu_seconds;
    m->data_bytes = all.bytes;
}

/* r->stats is [batch, 3]: loss, whether the label was right, whether it was among the best five.
 * The first step is reported by itself, since it takes longer than those that follow. */
void meter_step(Meter *m, const StepResult *r, uint64_t step, double damaged)
{
    const Session *s = m->s;
    for (long i = 0; i < s->o.batch_size; i++) {
        m->loss += (double)r->stats[3 * i];
        m->hits += (double)r->stats[3 * i + 1];
    }
    m->images += s->o.batch_size;
    m->steps++;
    data_damaged_by_all(s->train, damaged, hosts_sum); /* too many end the run */
    bool first = step == m->first + 1, last = step == s->steps;
    double seconds = now() - m->from, waited = seconds_waited(m);
    StepReport report = measure(m, &r->state, step, seconds);
    report_bar(&report);
    if (!first && !last && step % (uint64_t)s->o.log_every != 0)
        return;
    measure_use(m, &report, seconds);
    report_step(&report);
    if (!first) {
        m->training += seconds;
        m->stalled += waited;
    }
    m->loss = m->hits = 0;
    m->images = m->steps = 0;
    m->waited += waited;
    m->from = m->reported = now();
}

void meter_pause(Meter *m, double seconds, double bytes, double waited)
{
    m->from += seconds;
    m->comm_bytes += bytes;
    m->comm_waited += waited;
}

/* ---- beginning and end ---- */

/* "node1 node1 node2 node2": where each rank is. */
static void log_hosts(World w)
{
    if (w.ranks == 1 || w.rank > 0)
        return;
    char *hosts = xstrdup(hosts_name(0));
    for (int r = 1; r < w.ranks; r++) {
        char *more = xasprintf("%s %s", hosts, hosts_name(r));
        free(hosts);
        hosts = more;
    }
    log_text("hosts", hosts);
    free(hosts);
}

void meter_begin(Meter *m, const Session *s, Loader *loader)
{
    char device[256], built[512], host[256] = "", time_text[32];
    time_t t = time(NULL);
    gethostname(host, sizeof host - 1);
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%SZ", gmtime(&t));
    snprintf(built, sizeof built, "%s, %s, C compiler %s", s->be->built, formats_built,
             __VERSION__);
    *m = (Meter){.s = s, .loader = loader, .first = s->state.step};
    m->cpu_seconds = meter_usage().cpu_seconds;
    m->began = m->from = m->reported = now();
    m->comm_bytes = s->be->sent();
    m->comm_waited = s->be->waited();
    m->asked = s->state.step;
    s->be->describe(device, sizeof device);
    log_begin("start");
    log_num("step", (double)s->state.step);
    log_num("steps", (double)s->steps);
    log_text("device", device);
    log_text("built", built);
    log_text("host", host);
    log_text("time", time_text);
    log_num("ranks", s->world.ranks);
    log_text("data", s->o.data);
    log_num("train_images", (double)data_count(s->train));
    log_num("val_images", s->val ? (double)data_count(s->val) : 0);
    log_num("classes", s->config.classes);
    log_num("parameters", (double)s->m->layout->n_params);
    log_num("forward_gflop", vit_forward_flops(&s->config) / 1e9);
    log_num("batch", (double)s->o.batch_size);
    log_num("micro_batch", s->micro);
    log_num("seed", (double)s->state.seed);
    log_hosts(s->world);
    log_end();
}

void meter_end(const Meter *m)
{
    Use use = use_of_all(m, 0);
    double share = m->training > 0 ? m->stalled / m->training : 0;
    log_begin("end");
    log_num("step", (double)m->s->state.step);
    log_num("seconds", now() - m->began);
    log_num("data_bytes", use.bytes);
    log_num("wait", share);
    log_num("damaged", use.damaged);
    log_end();
    if (use.damaged > 0)
        printf("note: %s replaced by others\n", amount(use.damaged, "damaged training image").s);
    if (share > 0.05 && m->stalled > 0.25)
        printf("note: %.0f%% of the time was spent waiting for images; more --workers (%.0f at "
               "work), --decode fast,\n      or smaller images, made once by ./vit shard "
               "--short-side 256, would help\n",
               100 * share, use.workers);
}
