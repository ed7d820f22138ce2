/* source.c - what all kinds of data sets share: the list of their samples, a subset of it, threads
 * that read a disk, and the end of a program whose data set is gone. See source.h.
 *
 * Nothing here knows a kind; what a sample's item means is its kind's business.
 * Order: samples; what is said of them; threads; small things.
 */
#include "datasets/source.h"
#include "datasets/splits.h"
#include "util/text.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- samples ---- */

void source_add(Source *s, uint64_t item, int label)
{
    s->item = xgrow(s->item, s->n, sizeof *s->item);
    s->labels = xgrow(s->labels, s->n, sizeof *s->labels);
    s->item[s->n] = item;
    s->labels[s->n++] = label;
}

Source *source_opened(Source *s, bool ok)
{
    if (ok)
        return s;
    source_close(s);
    return NULL;
}

void source_close(Source *s)
{
    if (!s)
        return;
    if (s->kind->close)
        s->kind->close(s);
    names_free(&s->classes);
    names_free(&s->passed);
    names_free(&s->notes);
    free(s->place);
    free(s->labels);
    free(s->item);
    free(s);
}

/* Of a class with n images, how many stay: at least one. */
static long share_of(double per_class, long n)
{
    if (per_class <= 0)
        return n;
    double keep = floor(per_class > 1 ? per_class : per_class * (double)n + 1e-9);
    if (keep >= (double)n)
        return n;
    return keep < 1 ? 1 : (long)keep;
}

void source_subset(Source *s, const DataOptions *o)
{
    int K = s->classes.n;
    if (o->classes_fraction > 0 && o->classes_fraction < 1)
        K = (int)ceil(o->classes_fraction * s->classes.n - 1e-9);
    double per_class = o->train ? o->per_class : 0;
    long n = s->n, *left = xcalloc((size_t)s->classes.n, sizeof *left);
    for (long i = 0; i < n; i++)
        left[s->labels[i]]++;
    for (int k = 0; k < s->classes.n; k++)
        left[k] = k < K ? share_of(per_class, left[k]) : 0;
    s->n = 0;
    for (long i = 0; i < n; i++) {
        if (left[s->labels[i]]-- <= 0)
            continue;
        s->item[s->n] = s->item[i];
        s->labels[s->n++] = s->labels[i];
    }
    while (s->classes.n > K)
        free(s->classes.at[--s->classes.n]);
    free(left);
}

/* ---- a share for validation ---- */

typedef struct {
    uint64_t hash;
    const char *name;
    int label;
    long i;
} Drawn;

/* FNV-1a, and MurmurHash3's last step: names that differ in one digit are far apart. */
static uint64_t hash_of(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 33;
}

static int by_class_and_hash(const void *a, const void *b)
{
    const Drawn *x = a, *y = b;
    if (x->label != y->label)
        return x->label < y->label ? -1 : 1;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Of n images of a class. */
static long validation_share(double fraction, long n)
{
    long share = lround(fraction * (double)n);
    share = share < 1 ? 1 : share;
    return share < n ? share : n - 1;
}

/* Which images of s are for validation, is_val [n]; returns how many. */
static long draw_validation(const Source *s, const char *text, double fraction, bool *is_val)
{
    Drawn *all = xcalloc((size_t)s->n, sizeof *all);
    long total = 0;
    for (long i = 0; i < s->n; i++) {
        const char *name = text + s->item[i];
        all[i] = (Drawn){hash_of(name), name, s->labels[i], i};
    }
    qsort(all, (size_t)s->n, sizeof *all, by_class_and_hash);
    for (long at = 0, end; at < s->n; at = end) {
        for (end = at; end < s->n && all[end].label == all[at].label;)
            end++;
        long share = validation_share(fraction, end - at);
        for (long i = at; i < at + share; i++)
            is_val[all[i].i] = true;
        total += share;
    }
    free(all);
    return total;
}

void source_divide(Source *s, const char *text, const DataOptions *o)
{
    bool *is_val = xcalloc((size_t)s->n + 1, sizeof *is_val);
    long all = s->n, val = draw_validation(s, text, o->val_fraction, is_val);
    s->n = 0;
    for (long i = 0; i < all; i++) {
        if (is_val[i] == o->train)
            continue;
        s->item[s->n] = s->item[i];
        s->labels[s->n++] = s->labels[i];
    }
    s->split = o->train ? SPLIT_TRAIN : SPLIT_VAL;
    source_note(s,
                "%s has no validation images: %ld of its %ld are kept for that, chosen in each "
                "class by a hash of their names (--val-fraction %g)",
                s->place, val, all, o->val_fraction);
    free(is_val);
}

/* ---- what is said of them ---- */

void source_note(Source *s, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    names_add(&s->notes, text);
}

/* Images of each class, [classes]; free() it. */
static long *count_classes(const Source *s, int *with)
{
    long *n = xcalloc((size_t)s->classes.n + 1, sizeof *n);
    *with = 0;
    for (long i = 0; i < s->n; i++)
        *with += n[s->labels[i]]++ == 0;
    return n;
}

char *source_summary(const Source *s)
{
    char *text = NULL;
    size_t size;
    int with;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        die("free some memory", "out of memory");
    free(count_classes(s, &with));
    fprintf(f, "%s: %s of %s", s->place, amount((double)s->n, "image").s, amount(with, "class").s);
    for (int i = 0, n; i < s->passed.n; i += n) { /* it is sorted */
        for (n = 1; i + n < s->passed.n && strcmp(s->passed.at[i], s->passed.at[i + n]) == 0;)
            n++;
        fprintf(f, "%s%d %s", i ? ", " : "; passed over: ", n, s->passed.at[i]);
    }
    fclose(f);
    return text;
}

void source_note_classes(Source *s)
{
    enum { NAMED = 5 };
    char list[256] = "";
    int with, K = s->classes.n, named = 0;
    long *n = count_classes(s, &with);
    if (K == 1)
        source_note(s, "there is one class, '%.100s': every answer is right, and the loss is 0",
                    s->classes.at[0]);
    if (with == K - 1 && K > 1 && !n[0] && strcmp(s->classes.at[0], "0") == 0)
        source_note(
            s, "no image has label 0: labels from 1 to %d make %s, of which class 0 is never seen",
            K - 1, amount(K, "class").s);
    else if (with < K) {
        for (int k = 0; k < K && named < NAMED; k++)
            if (!n[k])
                snprintf(list + strlen(list), sizeof list - strlen(list), "%s%.40s",
                         named++ ? ", " : "", s->classes.at[k]);
        source_note(s, "no images of %d of %d classes here: %s%s", K - with, K, list,
                    K - with > NAMED ? ", ..." : "");
    }
    free(n);
}

/* ---- threads ---- */

typedef struct {
    bool (*each)(void *ctx, int i, Error *e);
    void *ctx;
    int n;
    atomic_int next; /* they are begun in order, so the first that fails is always met */
    pthread_mutex_t lock;
    int failed; /* the first so far, n: none; */
    Error e;    /* why */
} Parallel;

static void *parallel_work(void *arg)
{
    Parallel *p = arg;
    for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->n;) {
        Error e = {"", ""};
        alive();
        if (p->each(p->ctx, i, &e))
            continue;
        atomic_store(&p->next, p->n);
        pthread_mutex_lock(&p->lock);
        if (i < p->failed) {
            p->failed = i;
            p->e = e;
        }
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

/* Plain threads: OpenMP's do not work in a process that was forked. */
bool source_parallel(int n, bool (*each)(void *ctx, int i, Error *e), void *ctx, Error *e)
{
    enum { THREADS = 16 };
    pthread_t thread[THREADS];
    sigset_t all, before;
    int started = 0;
    Parallel p = {.each = each, .ctx = ctx, .n = n, .failed = n};
    pthread_mutex_init(&p.lock, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    while (started < THREADS && started < n - 1 &&
           pthread_create(&thread[started], NULL, parallel_work, &p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    parallel_work(&p);
    while (started)
        pthread_join(thread[--started], NULL);
    pthread_mutex_destroy(&p.lock);
    if (p.failed < n)
        *e = p.e;
    return p.failed == n;
}

/* ---- small things ---- */

_Noreturn void source_lost(const char *hint, const char *fmt, ...)
{
    static pthread_mutex_t last_words = PTHREAD_MUTEX_INITIALIZER; /* one thread's are enough */
    char *what;
    va_list args;
    pthread_mutex_lock(&last_words);
    va_start(args, fmt);
    if (vasprintf(&what, fmt, args) < 0)
        what = NULL;
    va_end(args);
    die(hint, "%s", what ? what : "the data set is lost");
}

bool image_extension(const char *ext)
{
    static const char *const known[] = {"jpg", "jpeg", "jpe", "jfif", "jif",  "png", "ppm",
                                        "pgm", "bmp",  "gif", "tif",  "tiff", "webp"};
    for (int i = 0; i < COUNT(known); i++)
        if (strcasecmp(ext, known[i]) == 0)
            return true;
    return false;
}
