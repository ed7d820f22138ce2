/* dali_index.c - index files of tar archives: reading and writing them. See dali_index.h.
 *
 * Order: words of a line; reading; writing.
 */
#include "datasets/dali_index.h"
#include "datasets/tar.h"
#include "util/files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- words of a line ---- */

static bool bad_line(const char *path, long line, Error *e, const char *what)
{
    return fail(e, "write the index again: ./vit index", "%s:%ld: %s", path, line, what);
}

/* The next word of a line, ended with a zero byte; NULL at the line's end. */
static char *next_word(char **line)
{
    char *word;
    while ((word = strsep(line, " \t\r")) && !*word)
        ;
    return word;
}

static bool read_decimal(const char *s, uint64_t *out)
{
    size_t digits = strspn(s, "0123456789");
    if (digits == 0 || digits > 18 || s[digits])
        return false;
    *out = strtoull(s, NULL, 10);
    return true;
}

/* ---- reading ---- */

typedef struct {
    IndexPart *at;
    int n;
} Parts;

static bool index_line(Parts *parts, char *line, bool names, const char *path, long number,
                       Error *e)
{
    parts->n = 0;
    for (char *ext; (ext = next_word(&line));) {
        /* at the end of a line, there is NULL again and again */
        char *offset = next_word(&line), *size = next_word(&line);
        const char *name = names ? next_word(&line) : "";
        IndexPart p = {.ext = ext, .name = name};
        if (!size || !name)
            return bad_line(path, number, e, "the line ends within a component");
        if (!read_decimal(offset, &p.offset) || !read_decimal(size, &p.size))
            return bad_line(path, number, e, "an offset or a size that is no number");
        if (p.offset % TAR_BLOCK || p.offset == 0)
            return bad_line(path, number, e, "an offset that is no multiple of 512");
        parts->at = xgrow(parts->at, parts->n, sizeof *parts->at);
        parts->at[parts->n++] = p;
    }
    return parts->n > 0 || bad_line(path, number, e, "a sample without components");
}

/* `v1.2 1000` */
static bool index_head(char *line, bool *names, uint64_t *samples, const char *path, Error *e)
{
    char *version = next_word(&line), *count = next_word(&line);
    if (!version || (strcmp(version, "v1.2") != 0 && strcmp(version, "v1.1") != 0))
        return bad_line(path, 1, e, "not an index of version v1.1 or v1.2");
    *names = version[3] == '2';
    if (!count || !read_decimal(count, samples) || next_word(&line))
        return bad_line(path, 1, e, "no number of samples behind the version");
    return *samples > 0 || bad_line(path, 1, e, "no samples");
}

static bool index_lines(char *text, const char *path, IndexEach *each, void *ctx, Error *e)
{
    bool names = false;
    uint64_t samples = 0, n = 0;
    if (!index_head(strsep(&text, "\n"), &names, &samples, path, e))
        return false;
    Parts parts = {0};
    bool ok = true;
    while (ok && text && *text) {
        char *line = strsep(&text, "\n");
        if (n == samples)
            ok = bad_line(path, (long)n + 2, e, "more samples than the first line says");
        else
            ok = index_line(&parts, line, names, path, (long)n + 2, e) &&
                 each(ctx, (long)n, parts.at, parts.n, e);
        n += ok;
    }
    free(parts.at);
    if (ok && n < samples)
        ok = fail(e, "write the index again: ./vit index",
                  "%s: %" PRIu64 " samples, but its first line says %" PRIu64, path, n, samples);
    return ok;
}

bool index_read(const char *path, IndexEach *each, void *ctx, Error *e)
{
    enum { MAX_INDEX = 1 << 30 };
    char *text = read_text(path, MAX_INDEX, e);
    bool ok = text && index_lines(text, path, each, ctx, e);
    free(text);
    return ok;
}

/* ---- writing ---- */

/* An index as it grows: the lines so far, and the stem of the last sample. */
typedef struct {
    const char *archive;
    FILE *lines;
    char *stem;
    long samples;
} IndexText;

static bool add_to_index(void *ctx, const TarMember *m, Error *e)
{
    IndexText *x = ctx;
    const char *before = " ";
    if (strpbrk(m->name, " \t\r\n\v\f"))
        return fail(e, "an index file has words between blanks: rename the member",
                    "%s: byte %" PRIu64 ": white space in the name '%.200s'", x->archive, m->offset,
                    m->name);
    if (!tar_same_sample(x->stem, m)) {
        before = x->samples++ ? "\n" : "";
        free(x->stem);
        x->stem = xasprintf("%.*s", (int)m->stem, m->name);
    }
    fprintf(x->lines, "%s%s %" PRIu64 " %" PRIu64 " %s", before, m->name + m->ext, m->offset,
            m->size, m->name);
    return true;
}

bool index_write(const char *archive, const char *path, long *samples, Error *e)
{
    char *lines = NULL;
    size_t size;
    IndexText x = {.archive = archive, .lines = open_memstream(&lines, &size)};
    if (!x.lines)
        die("free some memory", "out of memory: cannot index %s", archive);
    bool ok = tar_read(archive, add_to_index, &x, NULL, e);
    if (fclose(x.lines) != 0)
        die("free some memory", "out of memory: cannot index %s", archive);
    if (ok && x.samples == 0)
        ok = fail(e, "an archive of samples has files such as 0000001.jpg and 0000001.cls",
                  "%s: no samples", archive);
    if (ok) {
        char *text = xasprintf("v1.2 %ld\n%s\n", x.samples, lines);
        ok = save_text(path, text, e);
        free(text);
    }
    if (samples)
        *samples = x.samples;
    free(lines);
    free(x.stem);
    return ok;
}
