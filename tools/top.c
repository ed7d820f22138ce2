/* top.c - ./vit top: how a run is getting on, in the terminal.
 *
 * It reads the run's log.jsonl, and goes on reading what is added to it; it asks the run for
 * nothing, so that it works for one on another machine whose folder is seen here. On a terminal a
 * screen is drawn again and again, anywhere else one that ends the program.
 *
 * Read in this order: series of numbers, the log, a screen, the terminal.
 */
#include "tools/tools.h"

#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* ---- series of numbers ---- */

/* The means of a run's numbers, each over `each` of them, which doubles when the room is full. */
enum { POINTS = 512 };
typedef struct {
    double mean[POINTS], sum;
    int n, each, in_sum;
} Series;

static void series_add(Series *s, double x)
{
    if (!isfinite(x))
        return;
    if (!s->each)
        s->each = 1;
    if (s->n == POINTS) {
        for (int i = 0; i < POINTS / 2; i++)
            s->mean[i] = (s->mean[2 * i] + s->mean[2 * i + 1]) / 2;
        s->n /= 2;
        s->each *= 2;
    }
    s->sum += x;
    if (++s->in_sum < s->each)
        return;
    s->mean[s->n++] = s->sum / s->in_sum;
    s->sum = s->in_sum = 0;
}

static bool shows_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < COUNT(names); i++) {
        const char *value = getenv(names[i]);
        if (value && *value)
            return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
    }
    return false;
}

/* A column for each share of the series, as high as its mean between the least and the most. */
static void sparkline(const Series *s, int columns, char *out, size_t size)
{
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static const char *const marks[] = {"_", ".", "-", "=", "+", "*", "%", "#"};
    const char *const *levels = shows_utf8() ? blocks : marks;
    double least = INFINITY, most = -INFINITY, column[POINTS];
    size_t at = 0;
    columns = columns < s->n ? columns : s->n;
    *out = 0;
    for (int c = 0; c < columns; c++) {
        int from = c * s->n / columns, to = (c + 1) * s->n / columns;
        column[c] = 0;
        for (int i = from; i < to; i++)
            column[c] += s->mean[i] / (to - from);
        least = fmin(least, column[c]);
        most = fmax(most, column[c]);
    }
    for (int c = 0; c < columns && at + 4 < size; c++) {
        double height = most > least ? (column[c] - least) / (most - least) : 0.5;
        at += (size_t)snprintf(out + at, size - at, "%s", levels[(int)(height * 7.999)]);
    }
}

/* ---- the log ---- */

enum { LATELY = 20 }; /* reports in which a rank's place is counted */

/* What the log has said so far; numbers that it has not are NAN. */
typedef struct {
    const char *run;
    char *path; /* of log.jsonl */
    ino_t file; /* which file that is, */
    long at;    /* and what of it has been read */
    int unread; /* lines that make no sense */
    char *device, *hosts;
    double steps, ranks, reports;
    bool ended;
    Series losses, speeds;
    /* the newest of each event */
#define X(number, known) double number;
    STEP_NUMBERS(X)
#undef X
    double eval_step, top1, best, best_step, saved_step, said_at;
    struct {
        int rank; /* -1: not known */
        double by;
    } slow[LATELY]; /* of the last reports, in turn */
} Watch;

/* Before the first line of a log: nothing is known. */
static void forget(Watch *w)
{
    free(w->device);
    free(w->hosts);
    const Watch kept = *w;
    *w = (Watch){.run = kept.run, .path = kept.path, .file = kept.file};
    w->steps = w->ranks = w->eval_step = w->top1 = w->best = w->best_step = w->saved_step = NAN;
#define X(number, known) w->number = NAN;
    STEP_NUMBERS(X)
#undef X
}

static double number(const cJSON *line, const char *key)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(line, key);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

static void take_text(char **to, const cJSON *line, const char *key)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(line, key);
    if (!cJSON_IsString(x))
        return;
    free(*to);
    *to = xstrdup(x->valuestring);
    for (char *p = *to; *p; p++) /* a log is text of others: nothing of it moves the cursor */
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
}

static void take_start(Watch *w, const cJSON *line)
{
    w->steps = number(line, "steps");
    w->ranks = fmax(number(line, "ranks"), 1);
    w->ended = false;
    w->reports = 0;
    take_text(&w->device, line, "device");
    take_text(&w->hosts, line, "hosts");
}

static void take_step(Watch *w, const cJSON *line)
{
#define X(name, known) w->name = number(line, #name);
    STEP_NUMBERS(X)
#undef X
    series_add(&w->losses, w->loss);
    series_add(&w->speeds, w->images_per_s);
    int turn = (int)w->reports % LATELY;
    w->slow[turn].rank = isnan(w->slowest) ? -1 : (int)w->slowest;
    w->slow[turn].by = w->slowest_by;
    w->reports++;
}

static void take_eval(Watch *w, const cJSON *line)
{
    w->eval_step = number(line, "step");
    w->top1 = number(line, "top1");
    if (!(w->top1 <= w->best)) {
        w->best = w->top1;
        w->best_step = w->eval_step;
    }
}

static void take_line(Watch *w, const char *text)
{
    cJSON *line = cJSON_Parse(text);
    const cJSON *event = cJSON_GetObjectItemCaseSensitive(line, "event");
    const char *name = cJSON_IsString(event) ? event->valuestring : "";
    if (strcmp(name, "start") == 0)
        take_start(w, line);
    else if (strcmp(name, "step") == 0)
        take_step(w, line);
    else if (strcmp(name, "eval") == 0)
        take_eval(w, line);
    else if (strcmp(name, "save") == 0)
        w->saved_step = number(line, "step");
    else if (strcmp(name, "end") == 0)
        w->ended = true;
    else if (!*name)
        w->unread++;
    cJSON_Delete(line);
}

/* Whole lines that were added since; false: there is no log. A shorter file, or another one, is
 * read from its beginning. */
static bool read_log(Watch *w)
{
    struct stat st;
    FILE *f = fopen(w->path, "rb");
    if (!f || fstat(fileno(f), &st) != 0) {
        if (f)
            fclose(f);
        return false;
    }
    if (st.st_ino != w->file || st.st_size < w->at) {
        forget(w);
        w->file = st.st_ino;
    }
    w->said_at = (double)st.st_mtime;
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    fseek(f, w->at, SEEK_SET);
    while ((n = getline(&line, &room, f)) > 0 && line[n - 1] == '\n') {
        w->at += n;
        take_line(w, line);
    }
    free(line);
    fclose(f);
    return true;
}

/* ---- a screen ---- */

static int columns(void)
{
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

/* A line, after its word of up to nine letters; on a terminal none is folded. */
static void put(const char *word, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void put(const char *word, const char *fmt, ...)
{
    char text[4 * POINTS + 256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    int room = isatty(STDOUT_FILENO) ? columns() - 11 : (int)sizeof text;
    char *end = text;
    for (int n = 0; *end && n < room; n++) {
        int bytes = utf8_bytes((unsigned char *)end);
        end += bytes ? bytes : 1;
    }
    printf("%-9s %.*s\n", word, (int)(end - text), text);
}

static void ago(double when, char *out, size_t size)
{
    char text[32];
    format_seconds((double)time(NULL) - when, text, sizeof text);
    snprintf(out, size, "%s ago", text);
}

/* "node2" of "node1 node1 node2": the rank's word. */
static void host_of(const Watch *w, int rank, char *out, size_t size)
{
    const char *p = w->hosts ? w->hosts : "";
    for (int r = 0; r < rank && *p; r++) {
        p += strcspn(p, " ");
        p += *p == ' ';
    }
    snprintf(out, size, "%.*s", (int)strcspn(p, " "), p);
}

static void put_progress(const Watch *w)
{
    char left[32] = "?", since[48];
    double silent = (double)time(NULL) - w->said_at, usual = 60 + 10 * w->ms / 1000;
    format_seconds(w->eta, left, sizeof left);
    ago(w->said_at, since, sizeof since);
    if (w->ended)
        put("step", "%.0f of %.0f, epoch %.2f: the run has ended, %s", w->step, w->steps, w->epoch,
            since);
    else
        put("step", "%.0f of %.0f (%.1f%%), epoch %.2f, %s left%s%s", w->step, w->steps,
            100 * w->step / w->steps, w->epoch, left,
            silent > usual ? "; nothing was said since " : "", silent > usual ? since : "");
}

/* The rank that was slowest most often lately, and by how much. */
static void put_slowest(const Watch *w)
{
    int n = w->reports < LATELY ? (int)w->reports : LATELY, most = 0, rank = -1;
    double by = 0;
    char host[64];
    for (int i = 0; i < n; i++) {
        int times = 0;
        double sum = 0;
        for (int k = 0; k < n; k++)
            if (w->slow[k].rank == w->slow[i].rank) {
                times++;
                sum += w->slow[k].by;
            }
        if (times > most && w->slow[i].rank >= 0) {
            most = times;
            rank = w->slow[i].rank;
            by = sum / times;
        }
    }
    if (rank < 0)
        return;
    host_of(w, rank, host, sizeof host);
    put("slowest",
        "rank %d (%s) of %.0f in %d of the last %d reports, by %.1f%% of a step over the mean",
        rank, host, w->ranks, most, n, 100 * by);
}

static void put_saved(const Watch *w)
{
    struct stat st;
    char since[48] = "", *latest = xasprintf("%s/latest", w->run);
    if (stat(latest, &st) == 0)
        ago((double)st.st_mtime, since, sizeof since);
    if (isnan(w->saved_step))
        put("saved", "nothing yet");
    else
        put("saved", "step %.0f, %s", w->saved_step, since);
    free(latest);
}

static void put_share(char *out, size_t size, double share, const char *of)
{
    if (isnan(share))
        snprintf(out, size, "not known %s", of);
    else
        snprintf(out, size, "%.0f%% %s", 100 * share, of);
}

static void draw(const Watch *w)
{
    char line[4 * POINTS], memory[32], data[48], ranks[64] = "", mfu[48] = "";
    int room = columns() - 32;
    put("run", "%s", w->run);
    if (w->device)
        put("device", "%s", w->device);
    if (isnan(w->step)) {
        put("step", "none yet of %.0f", w->steps);
        return;
    }
    put_progress(w);
    sparkline(&w->losses, room, line, sizeof line);
    put("loss", "%-10.4f %s", w->loss, line);
    sparkline(&w->speeds, room, line, sizeof line);
    put("images/s", "%-10.1f %s", w->images_per_s, line);
    if (w->mfu > 0)
        snprintf(mfu, sizeof mfu, ", MFU %.1f%%", w->mfu);
    put("steps", "%.1f ms each, %.0f GFLOP/s%s, lr %.3g, gradient norm %.3g", w->ms, w->gflops, mfu,
        w->lr, w->grad_norm);
    put_share(data, sizeof data, w->wait, "for data");
    if (w->ranks > 1)
        put_share(ranks, sizeof ranks, w->comm_wait, "for other ranks");
    put("waiting", "%s%s%s", data, *ranks ? ", " : "", ranks);
    if (w->ranks > 1)
        put_slowest(w);
    format_count(w->memory, memory, sizeof memory);
    put("memory", "%sB, the process's peak", memory);
    put("damaged", "%s; %s left out (gradients that are not finite)", amount(w->damaged, "image").s,
        amount(w->skipped, "step").s);
    if (!isnan(w->top1))
        put("eval", "top-1 %.2f%% at step %.0f; best %.2f%% at step %.0f", w->top1, w->eval_step,
            w->best, w->best_step);
    put_saved(w);
    if (w->unread)
        put("note", "%s of the log %s no sense", amount(w->unread, "line").s,
            w->unread == 1 ? "makes" : "make");
}

/* ---- the terminal ---- */

static volatile sig_atomic_t leaving;

static void on_signal(int sig)
{
    leaving = sig;
}

/* q, Ctrl-C or the run's end: then the last screen stays. */
static void follow(Watch *w, double every)
{
    struct termios before, raw;
    struct sigaction a = {.sa_handler = on_signal};
    bool keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &before) == 0;
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    if (keys) {
        raw = before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\033[?1049h\033[?25l", stdout); /* another screen, no cursor */
    while (!leaving && !w->ended) {
        char key = 0;
        struct pollfd input = {.fd = keys ? STDIN_FILENO : -1, .events = POLLIN};
        fputs("\033[H\033[J", stdout);
        draw(w);
        put("", "%s", "");
        put("", "q ends this; the run goes on");
        fflush(stdout);
        if (poll(&input, 1, (int)(1000 * every)) > 0 && read(STDIN_FILENO, &key, 1) == 1 &&
            key == 'q')
            break;
        read_log(w);
    }
    fputs("\033[?25h\033[?1049l", stdout);
    if (keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
    draw(w);
}

static long top_every; /* 0: not given */
static bool top_once;
static const Flag top_flags[] = {
    {"every", "N", "seconds between two looks [1]", FLAG_NUMBER, &top_every, 1, 3600},
    {"once", "", "one screen, on a terminal too", FLAG_SWITCH, &top_once, 0, 0},
};

static int run_top(const Command *c, int argc, char **argv)
{
    flags_take(c, &argc, argv);
    const char *run = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL;
    if (!run)
        flags_none_left(c, argc, argv);
    if (!run)
        die_usage("./vit top RUN, a directory that --out named", "which run?");
    flags_none_left(c, argc - 1, argv + 1);
    Watch w = {.run = run, .path = xasprintf("%s/log.jsonl", run)};
    forget(&w);
    if (!read_log(&w))
        die("name the directory of a run (its --out, runs/...): its first line appears once it has "
            "set up",
            "%s: %s", w.path, strerror(errno));
    if (isnan(w.steps))
        die("it is the log of another program, or of a run that has just begun",
            "%s has no run in it", w.path);
    if (isatty(STDOUT_FILENO) && !top_once)
        follow(&w, top_every ? (double)top_every : 1);
    else
        draw(&w);
    if (top_every && (top_once || !isatty(STDOUT_FILENO)))
        fprintf(stderr, "note: --every has no effect on one screen (--once, or no terminal)\n");
    forget(&w);
    free(w.path);
    return 0;
}

const Command command_top = {
    .name = "top",
    .summary = "watch a run in the terminal",
    .usage = "RUN [--every N] [--once]",
    .help = "Shows how a run is getting on, from its log.jsonl, until it ends or q is pressed: "
            "loss, images/s,\n"
            "what it waits for, which rank the others wait for, the time left, the last "
            "checkpoint. Where the\n"
            "output is no terminal: once.\n",
    .flags = top_flags,
    .n_flags = COUNT(top_flags),
    .run = run_top,
};
