/* reader.c - pictures that are named, decoded ahead. See reader.h.
 *
 * A ring of places: a thread takes the next name and the next place, decodes, and marks the place
 * as ready; who reads takes places in their order. A damaged picture is a place too. A list on
 * standard input may be slow, so names have a lock of their own: whoever waits for one holds up no
 * picture that is ready.
 *
 * Read in this order: names, threads, reading.
 */
#include "train/reader.h"

#include "datasets/source.h"
#include "image/decoder.h"
#include "util/files.h"
#include "util/names.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FREE, TAKEN, READY };

struct Reader {
    Preprocess images;
    /* names, under `naming` */
    pthread_mutex_t naming;
    char **names;
    int n, next; /* names[next] is the next to be looked at */
    bool list;   /* standard input is being read */
    Names below; /* files of the folder that is being read, and the next of them */
    int at;
    Visited visited; /* folders in it */
    long passed;
    /* places [room], under `lock`, which is taken after `naming` */
    Picture *pictures;
    int *state, room;
    long taken, given; /* by the threads, to who reads */
    bool over, closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t *threads;
    int n_threads;
};

/* ---- names ---- */

static bool is_picture(const char *path)
{
    const char *dot = strrchr(path, '.');
    return (dot && image_extension(dot + 1)) || picture_file(path);
}

/* The pictures in a folder, then those in its folders, each once; litter is passed over. */
static void add_folder(Reader *r, const char *dir)
{
    Names entries = {0};
    Error e = {"", ""};
    if (!visit(&r->visited, dir))
        return;
    if (!names_in(dir, "", &entries, &e))
        warn("%s", e.what);
    for (int folders = 0; folders < 2; folders++)
        for (int i = 0; i < entries.n; i++) {
            if (is_litter(entries.at[i]))
                continue;
            char *path = xasprintf("%s/%s", dir, entries.at[i]);
            bool folder = is_dir(path);
            if (folder && folders)
                add_folder(r, path);
            else if (!folder && !folders && is_picture(path))
                names_add(&r->below, path);
            else
                r->passed += !folder && !folders;
            free(path);
        }
    names_free(&entries);
}

/* A name of the list without its end, which is a line's or (find -print0) a zero; empty ones are
 * passed over, and so is the mark that Windows' editors begin with. NULL at the end. */
static char *next_line(void)
{
    static const char mark[] = "\xef\xbb\xbf";
    char *line = NULL;
    size_t n = 0;
    for (int c; (c = getchar()) != EOF || n;) {
        bool end = c == EOF || c == '\n' || c == '\0';
        if (n % 256 == 0)
            line = xrealloc(line, n + 256);
        line[n++] = (char)(end ? 0 : c);
        if (!end)
            continue;
        line[strcspn(line, "\r")] = 0;
        size_t skip = strncmp(line, mark, sizeof mark - 1) == 0 ? sizeof mark - 1 : 0;
        memmove(line, line + skip, strlen(line + skip) + 1);
        if (*line)
            return line;
        n = 0;
    }
    free(line);
    return NULL;
}

/* The next file to read, or NULL; free() it. */
static char *next_path(Reader *r)
{
    for (;;) {
        if (r->at < r->below.n)
            return xstrdup(r->below.at[r->at++]);
        char *line = r->list ? next_line() : NULL;
        if (line)
            return line;
        r->list = false;
        if (r->next == r->n)
            return NULL;
        const char *name = r->names[r->next++];
        if (strcmp(name, "-") == 0) {
            r->list = true;
        } else if (is_dir(name)) {
            names_free(&r->below);
            r->at = r->visited.n = 0;
            add_folder(r, name);
        } else {
            return xstrdup(name);
        }
    }
}

/* ---- threads ---- */

/* A free place with the next name on it, once there are both. NULL: there are no more. */
static Picture *take_place(Reader *r)
{
    Picture *p = NULL;
    pthread_mutex_lock(&r->naming); /* until the name has its place, so that they stay in order */
    char *path = r->over ? NULL : next_path(r);
    pthread_mutex_lock(&r->lock);
    while (path && !r->closing && r->state[r->taken % r->room] != FREE)
        pthread_cond_wait(&r->changed, &r->lock);
    if (path && !r->closing) {
        p = &r->pictures[r->taken % r->room];
        p->path = path;
        r->state[r->taken++ % r->room] = TAKEN;
    } else {
        free(path);
        r->over = true;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    pthread_mutex_unlock(&r->naming);
    return p;
}

static void decode(const Reader *r, Decoder *d, Picture *p)
{
    Error why = {"", ""};
    p->trouble = (Error){"", ""};
    if (!decoder_open_file(d, p->path, &why) || !decoder_eval(d, &r->images, p->pixels, &why))
        fail(&p->trouble, why.hint, "%s: %s", p->path, why.what);
}

static void *work(void *arg)
{
    Reader *r = arg;
    Decoder *d = decoder_new();
    for (Picture *p; (p = take_place(r));) {
        decode(r, d, p);
        pthread_mutex_lock(&r->lock);
        r->state[p - r->pictures] = READY;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
    }
    decoder_free(d);
    return NULL;
}

/* ---- reading ---- */

Reader *reader_open(char **names, int n, const Preprocess *p, int threads, int room)
{
    Reader *r = xcalloc(1, sizeof *r);
    *r = (Reader){.images = *p, .names = names, .n = n, .room = room + 1, .n_threads = threads};
    r->images.augment = false;
    r->pictures = xcalloc((size_t)r->room, sizeof *r->pictures);
    r->state = xcalloc((size_t)r->room, sizeof *r->state);
    for (int i = 0; i < r->room; i++)
        r->pictures[i].pixels = xmalloc((size_t)p->out_h * (size_t)p->out_w * 3);
    pthread_mutex_init(&r->naming, NULL);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->threads = xcalloc((size_t)threads, sizeof *r->threads);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&r->threads[i], NULL, work, r) != 0)
            die("use fewer --workers, or raise ulimit -u", "cannot start a thread");
    return r;
}

static void leave_place(Reader *r, long number)
{
    Picture *p = &r->pictures[number % r->room];
    free(p->path);
    p->path = NULL;
    r->state[number % r->room] = FREE;
    pthread_cond_broadcast(&r->changed);
}

/* The lock is held. */
static bool is_ready(const Reader *r)
{
    return r->given < r->taken && r->state[r->given % r->room] == READY;
}

static bool is_over(const Reader *r)
{
    return r->over && r->given == r->taken;
}

bool reader_soon(Reader *r, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    long ns = until.tv_nsec + (long)(seconds * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    bool late = false;
    pthread_mutex_lock(&r->lock);
    while (!is_ready(r) && !is_over(r) && !(late && r->given == r->taken))
        if (late)
            pthread_cond_wait(&r->changed, &r->lock);
        else
            late = pthread_cond_timedwait(&r->changed, &r->lock, &until) != 0;
    bool soon = is_ready(r) || is_over(r);
    pthread_mutex_unlock(&r->lock);
    return soon;
}

const Picture *reader_next(Reader *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->given > 0 && r->pictures[(r->given - 1) % r->room].path)
        leave_place(r, r->given - 1);
    while (!is_ready(r) && !is_over(r))
        pthread_cond_wait(&r->changed, &r->lock);
    const Picture *p = r->given < r->taken ? &r->pictures[r->given++ % r->room] : NULL;
    pthread_mutex_unlock(&r->lock);
    return p;
}

long reader_passed(Reader *r)
{
    pthread_mutex_lock(&r->naming);
    long passed = r->passed;
    pthread_mutex_unlock(&r->naming);
    return passed;
}

void reader_close(Reader *r)
{
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < r->n_threads; i++)
        pthread_join(r->threads[i], NULL);
    for (int i = 0; i < r->room; i++) {
        free(r->pictures[i].path);
        free(r->pictures[i].pixels);
    }
    names_free(&r->below);
    free(r->visited.seen);
    pthread_mutex_destroy(&r->naming);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    free(r->pictures);
    free(r->state);
    free(r->threads);
    free(r);
}
