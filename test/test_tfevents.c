/* test_tfevents.c - event files: every byte of a small one, and what TensorBoard itself reads.
 *
 * TensorBoard is Python's: where that has none, its part is skipped. PYTHON names another python3.
 */
#include "files.h"

#include "util/report.h"
#include "util/tfevents.h"

#include "image/write.h"
#include "util/names.h"

static char *only_event_file(const char *dir)
{
    Names files = {0};
    Error e = {"", ""};
    CHECK(names_in(dir, "", &files, &e), "%s", e.what);
    char *path = NULL;
    for (int i = 0; i < files.n; i++)
        if (strncmp(files.at[i], "events.out.tfevents.", 20) == 0)
            path = xasprintf("%s/%s", dir, files.at[i]);
    names_free(&files);
    return path;
}

/* Vectors of RFC 3720, B.4. */
static void test_crc(void)
{
    uint8_t b[32] = {0};
    CHECK(crc32c(b, 32) == 0x8a9136aa);
    memset(b, 0xff, 32);
    CHECK(crc32c(b, 32) == 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        b[i] = (uint8_t)i;
    CHECK(crc32c(b, 32) == 0x46dd794e);
    CHECK(crc32c("123456789", 9) == 0xe3069283);
}

static uint64_t le(const uint8_t *s, int n)
{
    uint64_t v = 0;
    for (int i = n - 1; i >= 0; i--)
        v = v << 8 | s[i];
    return v;
}

static uint32_t masked(const uint8_t *s, size_t n)
{
    uint32_t c = crc32c(s, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

/* The records' framing; and of the third, a scalar, the bytes by hand behind its time. */
static void test_bytes(void)
{
    static const uint8_t scalar[] = {0x10, 0x96, 0x01,              /* step 150 */
                                     0x2a, 0x0a, 0x0a, 0x08,        /* summary, value */
                                     0x0a, 0x01, 'x',               /* tag */
                                     0x15, 0x00, 0x00, 0xc0, 0x3f}; /* 1.5 */
    const char *dir = at(temporary, "bytes");
    Error e = {"", ""};
    CHECK(make_dirs(dir, &e) && events_open(dir, 7, &e), "%s", e.what);
    events_scalars(150, &(EventScalar){"x", 1.5}, 1);
    events_close();
    uint8_t bytes[512];
    char *path = only_event_file(dir);
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(bytes, 1, sizeof bytes, f) : 0, at = 0;
    int records = 0;
    while (at + 16 <= n) {
        const uint8_t *r = bytes + at;
        size_t length = (size_t)le(r, 8);
        if (!CHECK(at + 16 + length <= n && le(r + 8, 4) == masked(r, 8) &&
                       le(r + 12 + length, 4) == masked(r + 12, length),
                   "record %d", records))
            break;
        CHECK(r[12] == 0x09, "wall_time comes first");
        if (records == 2)
            CHECK(length == 9 + sizeof scalar && memcmp(r + 21, scalar, sizeof scalar) == 0);
        at += 16 + length;
        records++;
    }
    CHECK(records == 3 && at == n, "%d records, %zu of %zu bytes", records, at, n);
    if (f)
        fclose(f);
    free(path);
}

static const char reader[] =
    "import sys\n"
    "try:\n"
    "    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
    "    from tensorboard.util import tensor_util\n"
    "except ImportError:\n"
    "    sys.exit(77)\n"
    "a = EventAccumulator(sys.argv[1]); a.Reload()\n"
    "t = a.Tags()\n"
    "assert sorted(t['scalars']) == ['eval/top1', 'train/loss', 'train/lr'], t\n"
    "assert [(s.step, s.value) for s in a.Scalars('train/loss')] == [(1, 2.5), (2, 1.25)]\n"
    "assert [(s.step, s.value) for s in a.Scalars('eval/top1')] == [(2, 75.0)]\n"
    "i = a.Images('worst')[0]\n"
    "assert (i.width, i.height, i.encoded_image_string[:3]) == (8, 4, b'\\xff\\xd8\\xff')\n"
    "x = tensor_util.make_ndarray(a.Tensors('settings')[0].tensor_proto)\n"
    "assert a.summary_metadata['settings'].plugin_data.plugin_name == 'text'\n"
    "assert x.shape == (1,) and x[0].decode() == 'lr = \\u00bd', x\n";

/* What a run logs, as TensorBoard's own reader sees it. */
static void test_tensorboard(void)
{
    const char *dir = at(temporary, "board"), *log = at(temporary, "log.jsonl");
    const char *python = getenv("PYTHON"), *script = at(temporary, "read.py");
    Error e = {"", ""};
    uint8_t rgb[8 * 4 * 3] = {0}, *jpeg;
    size_t n;
    CHECK(make_dirs(dir, &e) && log_open(log, false, &e) && events_open(dir, 0, &e), "%s", e.what);
    CHECK(save_text(script, reader, &e), "%s", e.what);
    const struct {
        const char *event, *key;
        double step, value;
    } lines[] = {{"step", "loss", 1, 2.5},
                 {"step", "loss", 2, 1.25},
                 {"step", "lr", 2, 0.125},
                 {"eval", "top1", 2, 75},
                 {"save", "seconds", 2, 9}};
    for (int i = 0; i < COUNT(lines); i++) {
        log_begin(lines[i].event);
        log_num("step", lines[i].step);
        log_num(lines[i].key, lines[i].value);
        log_end();
    }
    events_text(2, "settings", "lr = \xc2\xbd");
    if (CHECK(image_encode_jpeg(rgb, 8, 4, 90, &jpeg, &n, &e), "%s", e.what)) {
        events_jpeg(2, "worst", jpeg, n, 8, 4);
        free(jpeg);
    }
    events_close();
    log_close();
    char *command = xasprintf("%s %s %s", python ? python : "python3", script, dir);
    int status = system(command);
    if (status == 77 << 8)
        SKIP("no TensorBoard in %s: pip install tensorboard, and PYTHON=...",
             python ? python : "python3");
    else
        CHECK(status == 0, "%s: status %d", command, status);
    free(command);
}

int main(int argc, char **argv)
{
    if (files_begin(argc, argv)) {
        test_crc();
        test_bytes();
        test_tensorboard();
        files_end();
    }
    return check_report();
}
