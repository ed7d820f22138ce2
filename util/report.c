/* report.c - see report.h. The bar is drawn on a terminal alone; a pipe gets one line per interval,
 * so that logs stay readable. Nothing here computes: the numbers come in a StepReport. */
#include "util/report.h"

#include "util/text.h"
#include "util/tfevents.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- log.jsonl ---- */

static FILE *log_file;
static bool log_failed;

/* Whether a full disk or a kill left half a line at the end of the file. */
static bool ends_in_part(const char *path)
{
    FILE *f = fopen(path, "rb");
    bool part = f && fseek(f, -1, SEEK_END) == 0 && fgetc(f) != '\n';
    if (f)
        fclose(f);
    return part;
}

bool log_open(const char *path, bool append, Error *e)
{
    bool cut = append && ends_in_part(path);
    log_file = fopen(path, append ? "a" : "w");
    if (!log_file)
        return fail(e, "choose another --out", "cannot write %s: %s", path, strerror(errno));
    if (cut)
        fputc('\n', log_file);
    return true;
}

void log_close(void)
{
    if (log_file)
        fclose(log_file);
    log_file = NULL;
}

/* The numbers of a line about a step or an evaluation, for TensorBoard: train/loss, eval/top1. */
static struct {
    const char *group; /* NULL: of another line */
    long step;
    EventScalar at[64];
    int n;
} scalars;

static void scalars_begin(const char *event)
{
    static const char *const groups[][2] = {{"step", "train"}, {"eval", "eval"}};
    scalars.n = 0;
    scalars.group = NULL;
    for (int i = 0; i < COUNT(groups); i++)
        if (strcmp(event, groups[i][0]) == 0)
            scalars.group = groups[i][1];
}

static void scalars_add(const char *key, double value)
{
    if (!scalars.group || scalars.n == COUNT(scalars.at))
        return;
    if (strcmp(key, "step") == 0) {
        scalars.step = (long)value;
        return;
    }
    EventScalar *s = &scalars.at[scalars.n++];
    snprintf(s->tag, sizeof s->tag, "%s/%s", scalars.group, key);
    s->value = value;
}

void log_begin(const char *event)
{
    if (!log_file)
        return;
    scalars_begin(event);
    fputs("{\"event\":", log_file);
    json_string(log_file, event);
}

void log_num(const char *key, double value)
{
    if (!log_file)
        return;
    scalars_add(key, value);
    if (!isfinite(value))
        fprintf(log_file, ",\"%s\":null", key);
    else if (value == floor(value) && fabs(value) < 1e15)
        fprintf(log_file, ",\"%s\":%.0f", key, value);
    else
        fprintf(log_file, ",\"%s\":%.9g", key, value);
}

void log_text(const char *key, const char *value)
{
    if (!log_file)
        return;
    fprintf(log_file, ",\"%s\":", key);
    json_string(log_file, value);
}

void log_end(void)
{
    if (!log_file)
        return;
    if (scalars.group)
        events_scalars(scalars.step, scalars.at, scalars.n);
    fputs("}\n", log_file);
    /* a full disk costs log lines; the run goes on until a checkpoint cannot be written */
    if (fflush(log_file) != 0 && !log_failed) {
        log_failed = true;
        warn("cannot write the log: %s", strerror(errno));
    }
}

/* ---- the screen ---- */

static bool bar_shown;

/* Open MPI gives its processes a terminal of their own, whatever its output goes to: a program that
 * has started mpirun says what that is, and otherwise nobody knows. */
bool report_terminal(void)
{
    static int terminal = -1;
    const char *said = getenv("VIT_TERMINAL");
    if (terminal < 0 && said)
        terminal = strcmp(said, "1") == 0;
    else if (terminal < 0)
        terminal = isatty(STDOUT_FILENO) && !getenv("OMPI_COMM_WORLD_RANK");
    return terminal;
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

char *report_folded(const char *line, int columns)
{
    enum { INDENT = 10 };
    size_t n = 0;
    char *out = xmalloc(strlen(line) * (INDENT + 2) + 2);
    for (int room = columns - 1; *line; room = columns - 1 - INDENT) {
        int take = (int)strlen(line);
        if (take > room && room > INDENT) {
            for (take = room; take > INDENT && line[take] != ' ';)
                take--;
            if (take == INDENT) /* a word that is longer: as long as it is */
                take = room + (int)strcspn(line + room, " ");
        }
        n += (size_t)sprintf(out + n, "%.*s\n", take, line);
        line += take;
        line += strspn(line, " ");
        if (*line)
            n += (size_t)sprintf(out + n, "%*s", INDENT, "");
    }
    out[n] = 0;
    return out;
}

void report_line(const char *fmt, ...)
{
    char line[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    char *folded = report_folded(line, report_terminal() ? columns() : 1 << 20);
    fputs(folded, stdout);
    free(folded);
}

/* Terminals that have been made narrower have folded the bar onto several lines, or cut it: the
 * cursor waits at its beginning, and what goes is all up to the end of the screen. */
static const char erase[] = "\033[J";

void report_clear(void)
{
    if (bar_shown)
        printf("\r%s", erase);
    bar_shown = false;
    fflush(stdout);
}

/* One line that the next one overwrites, cut to the terminal's width. */
static void draw(const char *line)
{
    printf("\r%.*s%s\r", columns() - 1, line, erase);
    bar_shown = true;
    fflush(stdout);
}

void report_written(FILE *out)
{
    struct pollfd reader = {.fd = fileno(out), .events = POLLOUT};
    bool ok = fflush(out) == 0 && !ferror(out);
    if (!ok && !(poll(&reader, 1, 0) == 1 && reader.revents & POLLERR))
        die("free some space", "cannot write all of the output: the disk is full, or has failed");
}

void format_seconds(double s, char *out, size_t size)
{
    long n = s > 0 && s < 1e9 ? (long)(s + 0.5) : 0;
    if (n < 60)
        snprintf(out, size, "%lds", n);
    else if (n < 3600)
        snprintf(out, size, "%ldm%02lds", n / 60, n % 60);
    else
        snprintf(out, size, "%ldh%02ldm", n / 3600, n / 60 % 60);
}

void format_count(double n, char *out, size_t size)
{
    static const char *const units[] = {"", " k", " M", " G", " T", " P"};
    int i = 0;
    while (n >= 999.5 && i < COUNT(units) - 1) {
        n /= 1000;
        i++;
    }
    int digits = n < 10 ? 2 : 1;
    if (i == 0 || n >= 100)
        digits = 0;
    snprintf(out, size, "%.*f%s", digits, n, units[i]);
}

/* Whether it is worth drawing: not more often than people can read. */
static bool may_draw(bool last)
{
    static double drawn;
    if (!report_terminal() || (!last && now() - drawn < 0.1))
        return false;
    drawn = now();
    return true;
}

/* "[=====>    ] 42%  epoch 3/10 ...": parts in the order of what people look for, as many as fit;
 * the bar has what they leave. */
void report_bar_line(const StepReport *r, int columns, char *out, size_t size)
{
    enum { PARTS = 9, LEAST = 10, MOST = 60 };
    char part[PARTS][48] = {""}, left[32], took[32], bar[MOST + 4] = "", rest[512] = "";
    double share = r->total > 0 ? fmin(r->step / r->total, 1) : 0;
    int n = 0, length = 0, room = columns - 1 < (int)size - 1 ? columns - 1 : (int)size - 1;
    format_seconds(r->eta, left, sizeof left);
    format_seconds(r->elapsed, took, sizeof took);
    snprintf(part[n++], sizeof part[0], "%.0f%%", floor(100 * share));
    if (r->epochs >= 1)
        snprintf(part[n++], sizeof part[0], "epoch %.0f/%.0f",
                 fmin(floor(r->epoch) + 1, ceil(r->epochs)), ceil(r->epochs));
    else
        snprintf(part[n++], sizeof part[0], "step %.0f/%.0f", r->step, r->total);
    snprintf(part[n++], sizeof part[0], "loss %.3f", r->loss);
    snprintf(part[n++], sizeof part[0], "%s left", left);
    snprintf(part[n++], sizeof part[0], "acc %.1f%%", r->acc);
    if (r->best >= 0)
        snprintf(part[n++], sizeof part[0], "best %.1f%%", r->best);
    snprintf(part[n++], sizeof part[0], "%s", took);
    snprintf(part[n++], sizeof part[0], "%.0f images/s", r->images_per_s);
    if (r->wait >= 0.05) /* less is no matter */
        snprintf(part[n++], sizeof part[0], "wait %.0f%%", 100 * r->wait);
    else
        snprintf(part[n++], sizeof part[0], "lr %.2e", r->lr);
    int bar_least = columns >= 60 ? LEAST + 3 : 0;
    for (int i = 0; i < n; i++) {
        int more = (int)strlen(part[i]) + (i ? 2 : 0);
        if (bar_least + length + more > room)
            break;
        length +=
            snprintf(rest + length, sizeof rest - (size_t)length, "%s%s", i ? "  " : "", part[i]);
    }
    int width = room - length - 3;
    width = width < MOST ? width : MOST;
    if (width >= LEAST) {
        int full = (int)(share * (width - 1));
        memset(bar, ' ', sizeof bar);
        memset(bar + 1, '=', (size_t)full);
        bar[0] = '[';
        bar[1 + full] = '>';
        bar[1 + width] = ']';
        bar[3 + width] = 0;
    }
    snprintf(out, size, "%s%s", bar, rest);
}

void report_bar(const StepReport *r)
{
    char line[600];
    if (!may_draw(false))
        return;
    report_bar_line(r, columns(), line, sizeof line);
    draw(line);
}

void report_progress(const char *what, long done, long total, double images_per_s)
{
    alive();
    if (!may_draw(done >= total))
        return;
    char line[160], eta[32];
    int n = snprintf(line, sizeof line, "%s %ld/%ld", what, done, total);
    if (images_per_s > 0 && n < (int)sizeof line) {
        format_seconds((double)(total - done) / images_per_s, eta, sizeof eta);
        snprintf(line + n, sizeof line - (size_t)n, "  %.0f images/s  %s left", images_per_s, eta);
    }
    draw(line);
}

void report_step(const StepReport *r)
{
    log_begin("step");
#define X(number, known) \
    if (known)           \
        log_num(#number, r->number);
    STEP_NUMBERS(X)
#undef X
    log_end();
    if (report_terminal())
        return; /* the bar says it */
    char eta[32], memory[32], speed[32], gpu[32] = "", skipped[48] = "";
    format_seconds(r->eta, eta, sizeof eta);
    format_count(r->memory, memory, sizeof memory);
    if (r->mfu > 0)
        snprintf(speed, sizeof speed, "MFU %.1f%%", r->mfu);
    else
        snprintf(speed, sizeof speed, "%.0f GFLOP/s", r->gflops);
    if (r->gpu >= 0)
        snprintf(gpu, sizeof gpu, "  gpu %.0f%%", 100 * r->gpu);
    if (r->skipped)
        snprintf(skipped, sizeof skipped, "  skipped %.0f", r->skipped);
    printf("step %.0f/%.0f  epoch %.2f  loss %.4f  acc %.1f%%  norm %.3g  lr %.3e  %.1f ms  "
           "%.1f images/s  %s  %sB  cpu %.0f%%%s  wait %.0f%%  eta %s%s\n",
           r->step, r->total, r->epoch, r->loss, r->acc, r->grad_norm, r->lr, r->ms,
           r->images_per_s, speed, memory, 100 * r->cpu, gpu, 100 * r->wait, eta, skipped);
    fflush(stdout);
}
