/* test_checkpoint: safetensors files, damaged ones above all, and checkpoints of small models.
 *
 *   test_checkpoint [SHARED]    SHARED/data/weights/... is used where it is there
 *
 * Everything is written into a temporary directory, which is removed at the end. Read in this
 * order: round trip, damaged headers, fuzzing, weights, resuming, the run's directory, full disk.
 */
#include "checkpoint.h"
#include "check.h"
#include "util/files.h"
#include "util/rng.h"
#include "vit.h"
#include "weights/weights.h"

#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[256]; /* the temporary directory */

/* A path below it; the last four results stay valid. */
PRINTF_LIKE(1, 2)
static const char *below(const char *fmt, ...)
{
    static char paths[4][1024];
    static int next;
    char *path = paths[next++ % 4], name[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool contains(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        die(NULL, "%s: cannot write", path);
}

static void write_string(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

/* ---- round trip ---- */

static const float floats[] = {1.5f, -2.25f, 1e-40f, 3e38f, 0.f, -0.f};
static const double doubles[] = {1.0 / 3, -1e300};
static const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x7bff,
                                  0x7c00};                  /* 1, -2, 2^-24, 65504, inf */
static const uint16_t bfloats[] = {0x3f80, 0xc040, 0x0001}; /* 1, -3, 2^-133 */
static const int64_t longs[] = {-5, INT64_MAX};
static const int8_t bytes[] = {-128, 127, 3};

/* A file with one tensor of several types each, in an order that leaves some unaligned. */
static bool write_sample(const char *path, Error *e)
{
    StWriter *w = st_create(path);
    st_add_meta(w, "format", "pt");
    st_add_meta(w, "odd \"key\"\n", "value with \\ and \u00e9");
    st_add_tensor(w, "bytes", ST_I8, 1, (int[]){3});
    st_add_tensor(w, "blocks.0.floats", ST_F32, 2, (int[]){2, 3});
    st_add_tensor(w, "doubles", ST_F64, 1, (int[]){2});
    st_add_tensor(w, "halves \u00fc", ST_F16, 1, (int[]){5});
    st_add_tensor(w, "bfloats", ST_BF16, 3, (int[]){1, 3, 1});
    st_add_tensor(w, "longs", ST_I64, 1, (int[]){2});
    st_add_tensor(w, "empty", ST_F32, 2, (int[]){0, 7});
    st_add_tensor(w, "scalar", ST_F32, 0, NULL);
    const struct {
        const void *data;
        size_t bytes;
    } all[] = {{bytes, sizeof bytes},   {floats, sizeof floats},   {doubles, sizeof doubles},
               {halves, sizeof halves}, {bfloats, sizeof bfloats}, {longs, sizeof longs},
               {floats, sizeof *floats}}; /* the scalar */
    uint64_t at = 0;
    bool ok = st_begin(w, 0, e);
    for (int i = 0; ok && i < COUNT(all); at += all[i++].bytes)
        ok = st_write(w, at, all[i].data, all[i].bytes, e);
    if (ok)
        return st_finish(w, 0, e);
    st_abandon(w);
    return false;
}

/* A tensor's elements. */
static bool read_all(const SafeTensors *f, const char *name, real *out, Error *e)
{
    const StTensor *t = st_find(f, name);
    return st_read_real(f, t, 0, t->n, out, e);
}

static void check_values(const SafeTensors *f)
{
    Error e = {0};
    real x[8];
    int64_t n[4];
    CHECK(read_all(f, "blocks.0.floats", x, &e), "%s", e.what);
    for (int i = 0; i < COUNT(floats); i++)
        CHECK(x[i] == (real)floats[i] && !signbit(x[i]) == !signbit(floats[i]), "element %d", i);
    CHECK(read_all(f, "doubles", x, &e), "%s", e.what);
    CHECK(x[0] == (real)doubles[0] && x[1] == (real)doubles[1], "%g %g", (double)x[0],
          (double)x[1]);
    CHECK(read_all(f, "halves \u00fc", x, &e), "%s", e.what);
    CHECK(x[0] == 1 && x[1] == -2 && x[2] == (real)ldexp(1, -24) && x[3] == 65504 && isinf(x[4]));
    CHECK(read_all(f, "bfloats", x, &e), "%s", e.what);
    CHECK(x[0] == 1 && x[1] == -3 && x[2] == (real)ldexp(1, -133));
    CHECK(st_read_real(f, st_find(f, "bfloats"), 1, 1, x, &e) && x[0] == -3);
    CHECK(st_read_real(f, st_find(f, "doubles"), 1, 1, x, &e) && x[0] == (real)doubles[1]);
    x[2] = 7;
    CHECK(st_read_real(f, st_find(f, "blocks.0.floats"), 4, 2, x, &e) && x[0] == 0 && x[2] == 7);
    CHECK(st_read_i64(f, st_find(f, "longs"), n, &e) && n[0] == -5 && n[1] == INT64_MAX);
    CHECK(st_read_i64(f, st_find(f, "bytes"), n, &e) && n[0] == -128 && n[1] == 127 && n[2] == 3);
    CHECK(!read_all(f, "longs", x, &e) && contains(e.what, "longs") && contains(e.what, "I64"),
          "%s", e.what);
    CHECK(!st_read_i64(f, st_find(f, "doubles"), n, &e) && contains(e.what, "F64"), "%s", e.what);
}

static void test_round_trip(void)
{
    Error e = {0};
    const char *path = below("sample.safetensors");
    CHECK(write_sample(path, &e), "%s", e.what);
    CHECK(!path_exists(below("sample.safetensors.%ld.tmp", (long)getpid())));
    SafeTensors *f = st_open(path, &e);
    if (!CHECK(f, "%s", e.what))
        return;
    CHECK(f->count == 8 && f->metas == 2 && strcmp(f->path, path) == 0);
    CHECK(st_meta(f, "odd \"key\"\n") &&
          strcmp(st_meta(f, "odd \"key\"\n"), "value with \\ and \u00e9") == 0);
    CHECK(!st_meta(f, "absent") && !st_find(f, "absent") && !st_find(f, "zzz") && !st_find(f, ""));
    const StTensor *t = st_find(f, "blocks.0.floats");
    CHECK(t && t->type == ST_F32 && strcmp(t->dtype, "F32") == 0 && t->ndim == 2 && t->n == 6 &&
          t->shape[0] == 2 && t->shape[1] == 3 && t->bytes == 24);
    CHECK(st_find(f, "empty") && st_find(f, "empty")->n == 0 && st_find(f, "scalar")->ndim == 0);
    CHECK(strcmp(f->tensor[0].name, "bytes") == 0 && f->tensor[0].begin % 8 == 0);
    CHECK(memcmp(st_data(f, t), floats, sizeof floats) == 0);
    check_values(f);
    st_close(f);
}

static void test_writer_errors(void)
{
    Error e = {0};
    CHECK(!write_sample(below("no/such/dir.safetensors"), &e) &&
              contains(e.what, "dir.safetensors"),
          "%s", e.what);

    const char *path = below("kept.safetensors");
    CHECK(write_sample(path, &e), "%s", e.what);
    StWriter *w = st_create(path);
    st_add_tensor(w, "x", ST_F32, 1, (int[]){4});
    CHECK(st_begin(w, 0, &e), "%s", e.what);
    struct stat begun; /* in its full length at once: others may open it now */
    CHECK(stat(below("kept.safetensors.%ld.tmp", (long)getpid()), &begun) == 0 &&
              begun.st_size % 8 == 0 && begun.st_size > 16 + 60,
          "%ld bytes", (long)begun.st_size);
    CHECK(st_write(w, 0, doubles, 16, &e), "%s", e.what);
    off_t size = begun.st_size;
    CHECK(stat(below("kept.safetensors.%ld.tmp", (long)getpid()), &begun) == 0 &&
              begun.st_size == size,
          "%ld bytes", (long)begun.st_size);
    CHECK(!st_write(w, 16, floats, 1, &e) && contains(e.what, "declared"), "%s", e.what);
    CHECK(!st_write(w, 17, floats, 0, &e) && !st_write(w, UINT64_MAX, floats, 2, &e));
    CHECK(!st_write(w, 15, floats, 2, &e) && st_written(w) == 16);
    st_abandon(w);
    w = st_create(path);
    st_add_tensor(w, "x", ST_F32, 1, (int[]){4});
    CHECK(st_begin(w, 0, &e) && st_write(w, 8, floats, 8, &e) && !st_finish(w, 0, &e) &&
              contains(e.what, "8 of 16"),
          "%s", e.what);
    w = st_create(path);
    st_add_tensor(w, "x", ST_F32, 8,
                  (int[]){65536, 65536, 65536, 65536, 65536, 65536, 65536, 65536});
    CHECK(!st_begin(w, 0, &e) && contains(e.what, "impossible shapes"), "%s", e.what);
    st_abandon(w);
    SafeTensors *f = st_open(path, &e);
    CHECK(f && f->count == 8, "an unfinished writer touched the old file: %s", e.what);
    st_close(f);
    CHECK(!path_exists(below("kept.safetensors.%ld.tmp", (long)getpid())));

    make_dirs(below("a.safetensors"), &e);
    CHECK(!write_sample(below("a.safetensors"), &e) && contains(e.what, "is a directory"), "%s", e.what);
}

/* ---- damaged headers ---- */

/* A file with this header and `data` zero bytes; `length` -1: the header's own. */
static const char *write_file(const char *header, long long length, size_t data)
{
    static unsigned char buffer[1 << 20];
    const char *path = below("damaged.safetensors");
    size_t n = strlen(header);
    uint64_t stated = length < 0 ? n : (uint64_t)length;
    memcpy(buffer, &stated, 8);
    memcpy(buffer + 8, header, n);
    memset(buffer + 8 + n, 0, data);
    write_bytes(path, buffer, 8 + n + data);
    return path;
}

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define TENSOR(dtype, shape, offsets) \
    "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
    const char *header;
    long long length;
    size_t data;
    const char *says;
} damaged[] = {
    {"", 0, 0, "header of 0 bytes"},
    {"{" A "}", 1000, 8, "header length 1000"},
    {"{" A "}", 100000001, 8, "100000001"},
    {"{" A "}", INT64_MAX, 8, "limit"},
    {"[1,2]", -1, 0, "does not start with {"},
    {"{" A, -1, 8, "not valid JSON"},
    {"{" A "} x", -1, 8, "not valid JSON"},
    {"{" A "}{}", -1, 8, "not valid JSON"},
    {"{\"a\":[0,", -1, 8, "not valid JSON"},
    {"{\"a\":1}", -1, 0, "tensor a: not described by an object"},
    {"{\"a\":null}", -1, 0, "tensor a: not described by an object"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, "tensor a: dtype is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", -1, 8, "tensor a: shape is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", -1, 8, "tensor a: data_offsets is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8,
     "tensor a: dtype is there twice"},
    {"{" A "," A "}", -1, 8, "tensor a: is there twice"},
    {TENSOR("4", "[2]", "[0,8]"), -1, 8, "tensor a: dtype is not a string"},
    {TENSOR("\"F31\"", "[2]", "[0,8]"), -1, 8, "unknown dtype \"F31\""},
    {TENSOR("\"f32\"", "[2]", "[0,8]"), -1, 8, "unknown dtype \"f32\""},
    {TENSOR("\"F32\"", "2", "[0,8]"), -1, 8, "tensor a: shape is not an array"},
    {TENSOR("\"F32\"", "[-2]", "[0,8]"), -1, 8, "a dimension is -2"},
    {TENSOR("\"F32\"", "[1.5]", "[0,8]"), -1, 8, "a dimension is 1.5"},
    {TENSOR("\"F32\"", "[\"2\"]", "[0,8]"), -1, 8, "a dimension is not a number"},
    {TENSOR("\"F32\"", "[1e999]", "[0,8]"), -1, 8, "a dimension is inf"},
    {TENSOR("\"F32\"", "[9007199254740993]", "[0,8]"), -1, 8, "2^53"},
    {TENSOR("\"F32\"", "[4294967296,4294967296]", "[0,8]"), -1, 8, "too large"},
    {TENSOR("\"F32\"", "[4294967296,4294967296,0]", "[0,0]"), -1, 0, "too large"},
    {TENSOR("\"F64\"", "[4503599627370496,1024]", "[0,0]"), -1, 0, "too many"},
    {TENSOR("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), -1, 8, "9 dimensions"},
    {TENSOR("\"F32\"", "[2]", "8"), -1, 8, "data_offsets is not a pair"},
    {TENSOR("\"F32\"", "[2]", "[8]"), -1, 8, "data_offsets is not a pair"},
    {TENSOR("\"F32\"", "[2]", "[0,8,8]"), -1, 8, "data_offsets is not a pair"},
    {TENSOR("\"F32\"", "[2]", "[-8,0]"), -1, 8, "data_offsets[0] is -8"},
    {TENSOR("\"F32\"", "[2]", "[0,null]"), -1, 8, "data_offsets[1] is not a number"},
    {TENSOR("\"F32\"", "[2]", "[8,0]"), -1, 8, "begin at 8 and end at 0"},
    {TENSOR("\"F32\"", "[2]", "[0,16]"), -1, 8, "end at 16, the data at 8"},
    {TENSOR("\"F32\"", "[2]", "[0,9007199254740991]"), -1, 8, "end at 9007199254740991"},
    {TENSOR("\"F32\"", "[3]", "[0,8]"), -1, 8, "span 8 bytes, dtype F32 and shape need 12"},
    {TENSOR("\"F32\"", "[0]", "[0,8]"), -1, 8, "need 0"},
    {TENSOR("\"F32\"", "[2]", "[8,16]"), -1, 16, "8 bytes before tensor a"},
    {"{" A "}", -1, 12, "4 bytes after the last tensor"},
    {"{}", -1, 4, "4 bytes after the last tensor"},
    {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", -1, 12,
     "tensor b: overlaps tensor a"},
    {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}", -1, 8, "overlaps"},
    {"{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}", -1, 10,
     "1 bytes before tensor b"},
    {"{\"__metadata__\":5," A "}", -1, 8, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"step\":5}," A "}", -1, 8, "\"step\" is not a string"},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," A "}", -1, 8, "\"k\" is there twice"},
    {"{\"__metadata__\":{}," A ",\"__metadata__\":{}}", -1, 8, "__metadata__ is there twice"},
    {"{\"a\\u001b[31m\":{}}", -1, 0, "control characters"},
};

static void test_damaged(void)
{
    for (int i = 0; i < COUNT(damaged); i++) {
        Error e = {0};
        SafeTensors *f =
            st_open(write_file(damaged[i].header, damaged[i].length, damaged[i].data), &e);
        CHECK(!f && contains(e.what, damaged[i].says) && contains(e.what, "damaged.safetensors") &&
                  *e.hint,
              "case %d, %s: \"%s\"", i, damaged[i].says, e.what);
        st_close(f);
    }
}

/* Headers that are legal though unusual, and things that are not files of this kind at all. */
static void test_unusual(void)
{
    static const char *const legal[] = {"{}", "{}   ", "{\"__metadata__\":{}}",
                                        TENSOR("\"F32\"", "[0]", "[0,0]"),
                                        TENSOR("\"U64\",\"extra\":[1,{}]", "[3,0]", "[0,0]")};
    Error e = {0};
    for (int i = 0; i < COUNT(legal); i++) {
        SafeTensors *f = st_open(write_file(legal[i], -1, 0), &e);
        CHECK(f, "%s: %s", legal[i], e.what);
        st_close(f);
    }
    CHECK(!st_open(below("absent"), &e) && contains(e.what, "absent") && contains(e.hint, "path"),
          "%s", e.what);
    e.hint[0] = 0;
    CHECK(!st_open(root, &e) && contains(e.what, "directory"), "%s", e.what);
    CHECK(!st_open("/dev/null", &e) && contains(e.what, "regular"), "%s", e.what);
    write_string(below("short"), "1234567");
    CHECK(!st_open(below("short"), &e) && contains(e.what, "7 bytes"), "%s", e.what);
    write_string(below("text"), "PK\003\004 this is a zip file, more or less");
    CHECK(!st_open(below("text"), &e) && contains(e.hint, "safetensors"), "%s", e.what);
    write_bytes(below("zero"), "\5\0\0\0\0\0\0\0{\0\0\0}", 13);
    CHECK(!st_open(below("zero"), &e) && contains(e.what, "zero bytes"), "%s", e.what);

    static char deep[200008]; /* a hundred thousand opening brackets */
    strcpy(deep, "{\"a\":");
    memset(deep + 5, '[', 200000);
    CHECK(!st_open(write_file(deep, -1, 0), &e) && contains(e.what, "not valid JSON"), "%s",
          e.what);
}

/* ---- fuzzing ---- */

/* Touch everything of a file that was accepted: sanitizers see reads outside it. */
static uint64_t touch_all(const SafeTensors *f)
{
    uint64_t sum = 0;
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        const uint8_t *p = st_data(f, t);
        for (uint64_t k = 0; k < t->bytes; k++)
            sum += p[k];
        sum += st_find(f, t->name) != NULL;
    }
    for (int i = 0; i < f->metas; i++)
        sum += strlen(f->meta[i].key) + strlen(f->meta[i].value);
    return sum;
}

/* 1 to 8 changes: a random byte, a byte that means something in JSON, or a cut. */
static size_t damage(uint8_t *file, size_t n, RngStream *rng)
{
    static const char telling[] = "0123456789{}[]\",:-eE\\u ";
    int changes = 1 + (int)(rng_next(rng) * 8);
    for (int i = 0; i < changes && n > 0; i++) {
        size_t at = (size_t)(rng_next(rng) * (double)(n < 700 ? n : 700));
        double kind = rng_next(rng);
        if (kind < 0.4)
            file[at] = (uint8_t)(rng_next(rng) * 256);
        else if (kind < 0.9)
            file[at] = (uint8_t)telling[(int)(rng_next(rng) * (sizeof telling - 1))];
        else
            n = (size_t)(rng_next(rng) * (double)(n + 1));
    }
    return n;
}

static uint8_t *read_bytes(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    static uint8_t buffer[1 << 20];
    *n = f ? fread(buffer, 1, sizeof buffer, f) : 0;
    if (f)
        fclose(f);
    return buffer;
}

static void fuzz(const char *source, int variants, bool as_weights)
{
    size_t n;
    uint8_t *whole = read_bytes(source, &n), *copy = xmalloc(n + 1);
    RngStream rng = {.seed = 20, .purpose = RNG_SHUFFLE};
    int accepted = 0, silent = 0;
    uint64_t sum = 0;
    for (int i = 0; i < variants; i++) {
        Error e = {0};
        Config c;
        char assumed[256];
        memcpy(copy, whole, n);
        write_bytes(below("fuzzed"), copy, damage(copy, n, &rng));
        SafeTensors *f = st_open(below("fuzzed"), &e);
        silent += !f && !e.what[0];
        if (!f)
            continue;
        accepted++;
        sum += touch_all(f);
        st_close(f);
        if (as_weights && !weights_config(below("fuzzed"), &c, assumed, sizeof assumed, &e))
            silent += !e.what[0];
    }
    CHECK(silent == 0, "%d files refused without a reason", silent);
    CHECK(accepted > 0 && accepted < variants && sum > 0, "%d of %d accepted", accepted, variants);
    free(copy);
}

/* ---- models ---- */

static Config small_config(void)
{
    Config c = vit_config_default();
    c.image_h = c.image_w = 16;
    c.patch = 4;
    c.width = 24;
    c.layers = 2;
    c.heads = 3;
    c.mlp = 40;
    c.classes = 5;
    return c;
}

static Model *make_model(const Config *c, int optimiser, bool ema, uint64_t seed)
{
    Plan plan = {.max_batch = 2, .training = true, .ema = ema, .decay = DECAY_NO_1D, .clip = 1};
    plan.opt = (OptConfig){optimiser, 0.9, 0.999, 1e-8, 0.9, 0.05, 0.99};
    plan.scaling = (LossScaling){SCALING_DYNAMIC, 1, 1000, 2};
    plan.float_images = true;
    Model *m = vit_create(c, &plan, backend_cpu());
    Error e;
    if (!vit_init(m, "timm", seed, 0, 0.1, &e))
        die(e.hint, "%s", e.what);
    return m;
}

/* Steps [from, to) on images that are a function of the step. */
static void train(Model *m, uint32_t from, uint32_t to)
{
    const Config *c = &m->config;
    size_t pixels = 2 * (size_t)(3 * c->image_h * c->image_w);
    real *images = xmalloc(pixels * sizeof *images),
         *targets = xcalloc((size_t)(2 * c->classes), sizeof *targets);
    for (uint32_t step = from; step < to; step++) {
        RngStream rng = {.seed = 3, .step = step, .purpose = RNG_AUGMENT};
        for (size_t i = 0; i < pixels; i++)
            images[i] = (real)(2 * rng_next(&rng) - 1);
        for (int i = 0; i < 2 * c->classes; i++)
            targets[i] = i == (int)step % c->classes || i == c->classes + 1;
        vit_set_batch(m, 2, images, false, targets, NULL);
        vit_begin_step(m, step, 1e-3, 7);
        vit_micro_step(m, 0, 2, true);
        vit_update(m);
    }
    free(images);
    free(targets);
}

static bool save(Model *m, const char *dir, RunState run, int keep, Error *e)
{
    run.counters = *vit_state(m);
    run.scaled = m->plan.scaling.kind != SCALING_NONE;
    return ckpt_save(&m->own, dir, &run, keep, NULL, e);
}

static bool resume(Model *m, const char *dir, RunState *run, Error *e)
{
    run->counters = *vit_state(m);
    run->scaled = m->plan.scaling.kind != SCALING_NONE;
    if (!ckpt_resume(&m->own, dir, run, e))
        return false;
    vit_set_state(m, &run->counters);
    return true;
}

/* Buffers of tensors that differ in any bit: weights, moments, average. */
static int differences(Model *a, Model *b)
{
    dev *const in_a[] = {a->own.weights, a->own.exp_avg, a->own.exp_avg_sq, a->own.ema};
    dev *const in_b[] = {b->own.weights, b->own.exp_avg, b->own.exp_avg_sq, b->own.ema};
    int differ = 0;
    for (int t = 0; t < a->layout->tensors; t++) {
        const Param *p = &a->layout->param[t];
        size_t bytes = (size_t)p->n * sizeof(real);
        real *of_a = xmalloc(bytes), *of_b = xmalloc(bytes);
        for (int i = 0; i < COUNT(in_a); i++) {
            if (!in_a[i] || !in_b[i])
                continue;
            units_read(&a->own, in_a[i], p->offset, p->n, of_a);
            units_read(&b->own, in_b[i], p->offset, p->n, of_b);
            differ += memcmp(of_a, of_b, bytes) != 0;
        }
        free(of_a);
        free(of_b);
    }
    return differ;
}

/* Train 3 steps, save, train 2 more; a fresh model resumes and trains the same 2: all bits agree.
 */
static void check_resume(const char *name, const Config *c, int optimiser, bool ema)
{
    Error e = {0};
    char found[1024];
    RunState run = {.step = 3,
                    .samples = 6,
                    .seed = 0xfedcba9876543210u,
                    .best_metric = 1.0 / 3,
                    .best_step = 3},
             back = {0};
    const char *dir = below("resume-%s", name);
    Model *a = make_model(c, optimiser, ema, 1), *b = make_model(c, optimiser, ema, 2);
    train(a, 0, 3);
    StepState s = *vit_state(a);
    s.skipped = 5, s.skipped_in_row = 2, s.loss_scale = 1.0 / 7;
    vit_set_state(a, &s);
    CHECK(save(a, dir, run, 3, &e), "%s: %s", name, e.what);
    CHECK(differences(a, b) > 0);
    CHECK(ckpt_find(dir, found, sizeof found, &e) && resume(b, found, &back, &e), "%s: %s", name,
          e.what);
    CHECK(back.step == run.step && back.samples == run.samples && back.seed == run.seed &&
          back.best_metric == run.best_metric && back.best_step == run.best_step);
    CHECK(differences(a, b) == 0, "%s: %d buffers differ", name, differences(a, b));
    const StepState *t = vit_state(b);
    CHECK(t->t == 3 && t->skipped == 5 && t->skipped_in_row == 2 && t->loss_scale == 1.0 / 7,
          "%s: t %u, skipped %u, %u in a row, scale %g", name, t->t, t->skipped, t->skipped_in_row,
          t->loss_scale);
    train(a, 3, 5);
    train(b, 3, 5);
    CHECK(differences(a, b) == 0 && vit_state(b)->t == 5, "%s: %d buffers differ after resuming",
          name, differences(a, b));
    vit_free(a);
    vit_free(b);
}

/* Checkpoints once had the average in the state, as `ema.`, and the others as the model. Renaming
 * `raw.` makes one of those, in which the two have changed places. */
static void test_older_average(void)
{
    Config c = small_config();
    Error e = {0};
    RunState run = {.step = 3, .samples = 6, .seed = 1, .best_metric = -1}, back = {0};
    const char *dir = below("older-average");
    Model *a = make_model(&c, OPT_ADAMW, true, 1), *b = make_model(&c, OPT_ADAMW, true, 2);
    train(a, 0, 3);
    CHECK(save(a, dir, run, 3, &e), "%s", e.what);
    char *at = xasprintf("%s/step_00000003", dir);
    char *state = xasprintf("%s/train_state.safetensors", at);
    CHECK(ckpt_load_raw(&b->own, at, POS_TIMM) && ckpt_load_average(&b->own, at, POS_TIMM));
    size_t size;
    char *bytes = (char *)read_bytes(state, &size);
    int renamed = 0;
    for (size_t i = 0; i + 5 < size; i++)
        if (memcmp(bytes + i, "\"raw.", 5) == 0) {
            memcpy(bytes + i, "\"ema.", 5);
            renamed++;
        }
    CHECK(renamed == a->layout->tensors, "%d", renamed);
    CHECK(save_file(state, bytes, size, false, &e), "%s", e.what);
    CHECK(resume(b, at, &back, &e), "%s", e.what);
    units_swap_ema(&b->own);
    CHECK(differences(a, b) == 0, "%d buffers differ", differences(a, b));
    free(state);
    free(at);
    vit_free(a);
    vit_free(b);
}

static void test_resume(void)
{
    Config c = small_config(), all = small_config();
    all.cls_tokens = 2, all.patch_bias = false, all.representation = 9,
    all.layer_scale = all.norm_pre = true;
    all.image_w = 24, all.dropout = 0.1, all.drop_path = 0.1, all.act = ACT_GELU_TANH,
    all.loss = LOSS_SIGMOID;
    all.eps = 1e-5 / 3, all.mean_r = 1.0 / 3;
    check_resume("adamw-ema", &c, OPT_ADAMW, true);
    check_resume("adam", &c, OPT_ADAM, false);
    check_resume("sgd", &c, OPT_SGD, false);
    check_resume("sgd-ema", &c, OPT_SGD, true);
    check_resume("lamb", &c, OPT_LAMB, false);
    check_resume("every-tensor", &all, OPT_ADAMW, true);

    Config back;
    Error e = {0};
    char assumed[256] = "?";
    CHECK(weights_config(below("resume-every-tensor/step_00000003/model.safetensors"), &back,
                         assumed, sizeof assumed, &e),
          "%s", e.what);
    CHECK(assumed[0] == 0, "%s", assumed);
    for (int i = 0; i < vit_config_count; i++) {
        char was[64], is[64];
        vit_config_get(&all, &vit_config_fields[i], was, sizeof was);
        vit_config_get(&back, &vit_config_fields[i], is, sizeof is);
        CHECK(strcmp(was, is) == 0, "%s: %s became %s", vit_config_fields[i].name, was, is);
    }
}

/* Resuming into another run than the saved one: an error that says what differs, a model untouched.
 */
static void refuse_resume(const char *dir, const Config *c, int optimiser, bool ema,
                          const char *says)
{
    Error e = {0};
    RunState run = {.step = 99};
    Model *m = make_model(c, optimiser, ema, 4), *same = make_model(c, optimiser, ema, 4);
    CHECK(!resume(m, dir, &run, &e) && contains(e.what, says), "%s: \"%s\"", says, e.what);
    CHECK(run.step == 99 && differences(m, same) == 0);
    CHECK(*e.hint && !contains(e.hint, "head"), "%s: hint \"%s\"", says, e.hint);
    vit_free(m);
    vit_free(same);
}

static void copy_state(const char *from, const char *to, const char *find, const char *replace)
{
    size_t n;
    Error e;
    make_dirs(to, &e);
    char path[1200];
    for (int i = 0; i < 2; i++) {
        const char *file = i ? "train_state.safetensors" : "model.safetensors";
        snprintf(path, sizeof path, "%s/%s", from, file);
        uint8_t *data = read_bytes(path, &n), *hit = i ? memmem(data, n, find, strlen(find)) : NULL;
        if (i && CHECK(hit, "%s is not in the file", find))
            memcpy(hit, replace, strlen(replace));
        snprintf(path, sizeof path, "%s/%s", to, file);
        write_bytes(path, data, n);
    }
}

static void test_refused_resume(void)
{
    Config c = small_config(), other = c;
    char dir[1024];
    snprintf(dir, sizeof dir, "%s", below("resume-adamw-ema/step_00000003"));
    refuse_resume(dir, &c, OPT_SGD, true, "state of adamw, the run uses sgd");
    refuse_resume(dir, &c, OPT_ADAM, true, "state of adamw, the run uses adam");
    refuse_resume(dir, &c, OPT_ADAMW, false, "with an average");
    refuse_resume(below("resume-adam/step_00000003"), &c, OPT_ADAM, true, "without an average");
    other.heads = 4;
    refuse_resume(dir, &other, OPT_ADAMW, true, "heads = 3, the model has 4");
    other = c, other.width = 48;
    refuse_resume(dir, &other, OPT_ADAMW, true, "width = 24, the model has 48");
    refuse_resume(below("nothing"), &c, OPT_ADAMW, true, "nothing/model.safetensors");
    static const char *const changes[][3] = {
        {"\"step\":\"3\"", "\"step\":\"x\"", "step is \"x\""},
        {"\"t\":\"3\"", "\"t\":\"-\"", "t is \"-\""},
        {"\"samples\":\"6\"", "\"sampled\":\"6\"", "has no samples"},
        {"\"optimizer\"", "\"optimiser\"", "has no optimizer"},
        {"0.14285714285714285", "-.14285714285714285", "loss_scale"},
        {"exp_avg.blocks.1.", "exp_avg.blocks.2.", "no tensor exp_avg.blocks.1."},
        {"exp_avg.head.w", "exp_avg.hand.w", "no tensor exp_avg.head.weight"}};
    for (int i = 0; i < COUNT(changes); i++) {
        char changed[1024];
        snprintf(changed, sizeof changed, "%s", below("changed"));
        copy_state(dir, changed, changes[i][0], changes[i][1]);
        refuse_resume(changed, &c, OPT_ADAMW, true, changes[i][2]);
    }
    other = c, other.dropout = 0.3; /* this one may change */
    Model *m = make_model(&other, OPT_ADAMW, true, 4);
    Error e = {0};
    RunState run;
    CHECK(resume(m, dir, &run, &e), "%s", e.what);
    vit_free(m);
}

/* ---- weights ---- */

static void refuse_weights(const char *path, const Config *c, const char *says, const char *hint)
{
    Error e = {0};
    char report[256] = "?";
    Model *m = make_model(c, OPT_SGD, false, 4), *same = make_model(c, OPT_SGD, false, 4);
    CHECK(!ckpt_load_weights(&m->own, path, false, report, sizeof report, &e) &&
              contains(e.what, says) && contains(e.hint, hint),
          "%s: \"%s\", \"%s\"", says, e.what, e.hint);
    CHECK(differences(m, same) == 0, "a refused file changed the model");
    vit_free(m);
    vit_free(same);
}

/* A file of another grid: its positions are resized, and the report says so. */
static void check_resized(const char *path, const Config *c, const char *says)
{
    Model *m = make_model(c, OPT_SGD, false, 4);
    char report[256] = "";
    Error e = {0};
    CHECK(ckpt_load_weights(&m->own, path, false, report, sizeof report, &e) &&
              contains(report, says),
          "%s %s", e.what, report);
    vit_free(m);
}

typedef struct {
    Model *m;
    bool head_kept, rest_loaded;
    const SafeTensors *f;
    Model *fresh;
} HeadCheck;

static void head_check_one(HeadCheck *x, const Param *p)
{
    const char *name = p->name;
    real *a = xmalloc((size_t)p->n * sizeof *a), *b = xmalloc((size_t)p->n * sizeof *b);
    const StTensor *t = st_find(x->f, name);
    Error e;
    bool head = strncmp(name, "head.", 5) == 0 || strncmp(name, "pre_logits.", 11) == 0;
    units_read(&x->m->own, x->m->own.weights, p->offset, p->n, a);
    if (head)
        units_read(&x->fresh->own, x->fresh->own.weights, p->offset, p->n, b);
    else if (!t || !st_read_real(x->f, t, 0, t->n, b, &e))
        x->rest_loaded = false;
    bool same = memcmp(a, b, (size_t)p->n * sizeof *a) == 0;
    x->head_kept = x->head_kept && (!head || same);
    x->rest_loaded = x->rest_loaded && (head || same);
    free(a);
    free(b);
}

/* With a new head: the head stays as initialised as a whole, the rest is the file's. */
static void check_new_head(const char *path, const Config *c, const char *says)
{
    Error e = {0};
    char report[256] = "?";
    HeadCheck x = {make_model(c, OPT_SGD, true, 4), true, true, st_open(path, &e), NULL};
    x.fresh = make_model(c, OPT_SGD, false, 4);
    CHECK(ckpt_load_weights(&x.m->own, path, true, report, sizeof report, &e), "%s", e.what);
    CHECK(contains(report, says), "\"%s\" is not in \"%s\"", says, report);
    for (int i = 0; i < x.m->layout->tensors; i++)
        head_check_one(&x, &x.m->layout->param[i]);
    CHECK(x.head_kept, "the new head was touched");
    CHECK(x.rest_loaded, "not everything else was loaded");
    st_close((SafeTensors *)x.f);
    vit_free(x.m);
    vit_free(x.fresh);
}

static void test_weights(void)
{
    Config c = small_config(), other = c;
    Error e = {0};
    char report[256] = "?", path[1024];
    snprintf(path, sizeof path, "%s", below("resume-sgd/step_00000003/model.safetensors"));
    Model *m = make_model(&c, OPT_SGD, true, 4);
    CHECK(ckpt_load_weights(&m->own, path, false, report, sizeof report, &e) && report[0] == 0,
          "%s %s", e.what, report);
    CHECK(ckpt_load_weights(&m->own, path, true, report, sizeof report, &e) && report[0] == 0,
          "%s %s", e.what, report);
    vit_free(m);

    other.classes = 7;
    refuse_weights(path, &other, "head.weight has shape [5, 24]; the model's is [7, 24]",
                   "--num-classes 5");
    check_new_head(path, &other, "7 classes; the file's has 5");
    other = c, other.representation = 24; /* head.weight alone would fit */
    refuse_weights(path, &other, "no tensor pre_logits.fc.weight", "new head");
    check_new_head(path, &other, "5 classes");
    other = c, other.mlp = 44;
    refuse_weights(path, &other,
                   "blocks.0.mlp.fc1.weight has shape [40, 24]; the model's is [44, 24]",
                   "dimensions");
    other = c, other.layers = 3;
    refuse_weights(path, &other, "no tensor blocks.2.norm1.weight", "");
    other = c, other.layers = 1;
    refuse_weights(path, &other, "tensor blocks.1.norm1.weight has no place", "");
    other = c, other.image_w = 32;
    check_resized(path, &other, "from 4x4 to 4x8 patches");
    other = c, other.image_h = 8, other.image_w = 32; /* as many patches */
    check_resized(path, &other, "from 4x4 to 2x8 patches");
    other.cls_tokens = 2;
    refuse_weights(path, &other, "cls_token has shape [1, 1, 24]", "dimensions");
    other = c, other.heads = 4;
    refuse_weights(path, &other, "has 3 heads, the model 4", "--heads");
    refuse_weights(below("resume-sgd/step_00000003/train_state.safetensors"), &c,
                   "the state of an optimiser", "model.safetensors");
}

/* ---- foreign files ---- */

typedef struct {
    int width, patch, layers, mlp, classes, representation, cls, positions;
    const char *extra; /* a tensor more */
    int skip_block;    /* a block left out; -1: none */
} Foreign;

static void add_zero(StWriter *w, size_t *bytes_of, const char *name, int a, int b, int c, int d)
{
    int shape[4] = {a, b, c, d}, ndim = 0;
    size_t n = sizeof(float);
    while (ndim < 4 && shape[ndim])
        n *= (size_t)shape[ndim++];
    st_add_tensor(w, name, ST_F32, ndim, shape);
    *bytes_of += n;
}

/* The tensors that inference looks at, under timm's names, all zero. */
static const char *write_foreign(const Foreign *v)
{
    Error e;
    size_t n = 0;
    char name[64];
    const char *path = below("foreign.safetensors");
    StWriter *w = st_create(path);
    st_add_meta(w, "format", "pt");
    if (v->cls)
        add_zero(w, &n, "cls_token", 1, v->cls, v->width, 0);
    add_zero(w, &n, "pos_embed", 1, v->positions, v->width, 0);
    add_zero(w, &n, "patch_embed.proj.weight", v->width, 3, v->patch, v->patch);
    for (int i = 0; i < v->layers; i++) {
        if (i == v->skip_block)
            continue;
        snprintf(name, sizeof name, "blocks.%d.norm1.weight", i);
        add_zero(w, &n, name, v->width, 0, 0, 0);
        snprintf(name, sizeof name, "blocks.%d.norm1.bias", i);
        add_zero(w, &n, name, v->width, 0, 0, 0);
        snprintf(name, sizeof name, "blocks.%d.mlp.fc1.weight", i);
        add_zero(w, &n, name, v->mlp, v->width, 0, 0);
        snprintf(name, sizeof name, "blocks.%d.mlp.fc2.weight", i);
        add_zero(w, &n, name, v->width, v->mlp, 0, 0);
    }
    bool norm = !v->extra || strcmp(v->extra, "norm.weight") != 0;
    for (int i = 0; norm && i < 2; i++)
        add_zero(w, &n, i ? "norm.bias" : "norm.weight", v->width, 0, 0, 0);
    if (v->representation)
        add_zero(w, &n, "pre_logits.fc.weight", v->representation, v->width, 0, 0);
    if (v->classes)
        add_zero(w, &n, "head.weight", v->classes, v->width, 0, 0);
    if (v->extra)
        add_zero(w, &n, v->extra, 1, 0, 0, 0);
    void *zeros = xcalloc(1, n);
    if (!st_begin(w, 0, &e) || !st_write(w, 0, zeros, n, &e) || !st_finish(w, 0, &e))
        die(NULL, "%s", e.what);
    free(zeros);
    return path;
}

static void refuse_foreign(Foreign v, const char *says)
{
    Error e = {0};
    Config c;
    char assumed[256];
    CHECK(!weights_config(write_foreign(&v), &c, assumed, sizeof assumed, &e) &&
              contains(e.what, says),
          "%s: \"%s\"", says, e.what);
}

static void test_foreign(void)
{
    const Foreign plain = {192, 16, 12, 768, 10, 0, 1, 50, NULL, -1};
    Foreign v = plain;
    Config c;
    Error e = {0};
    char assumed[256] = "?";
    CHECK(weights_config(write_foreign(&v), &c, assumed, sizeof assumed, &e), "%s", e.what);
    CHECK(c.width == 192 && c.layers == 12 && c.heads == 3 && c.mlp == 768 && c.patch == 16 &&
          c.classes == 10 && c.image_h == 112 && c.image_w == 112 && c.cls_tokens == 1 &&
          c.pool == POOL_CLS && !c.patch_bias && !c.norm_pre && !c.layer_scale && c.eps == 1e-6 &&
          c.act == ACT_GELU && c.representation == 0);
    CHECK(contains(assumed, "3 heads") && contains(assumed, "Ti/16"), "%s", assumed);

    v.width = 128, v.layers = 2, v.cls = 0, v.positions = 9, v.classes = 0, v.representation = 6;
    CHECK(weights_config(write_foreign(&v), &c, assumed, sizeof assumed, &e), "%s", e.what);
    CHECK(c.heads == 2 && c.pool == POOL_GAP && c.cls_tokens == 0 && c.classes == 0 &&
          c.representation == 6 && c.image_h == 48);
    CHECK(contains(assumed, "width / 64"), "%s", assumed);

    v = plain, v.extra = "dist_token";
    refuse_foreign(v, "tensors cls_token and dist_token do not fit together");
    v.extra = "stem.weight";
    refuse_foreign(v, "tensor stem.weight does not belong to a plain ViT");
    v.extra = "blocks.3.attn.norm.weight";
    refuse_foreign(v, "norms inside attention");
    v.extra = "blocks.999999.norm2.weight";
    refuse_foreign(v, "blocks.12.norm1.weight is missing, though there is a block 999999");
    v = plain, v.skip_block = 5;
    refuse_foreign(v, "blocks.5.norm1.weight is missing");
    v = plain, v.skip_block = 0;
    refuse_foreign(v, "blocks.0.norm1.weight is missing");
    v = plain, v.positions = 51;
    refuse_foreign(v, "pos_embed has 51 positions, with 1 class tokens");
    v = plain, v.positions = 49; /* as in DeiT III, the class token has none */
    CHECK(weights_config(write_foreign(&v), &c, assumed, sizeof assumed, &e) && c.image_h == 112 &&
              c.cls_tokens == 1,
          "%s", e.what);
    v = plain, v.width = 1, v.patch = 1024, v.mlp = 1, v.layers = 1, v.positions = 65 * 65 + 1;
    refuse_foreign(v, "no square grid"); /* 66560 pixels: too many */
    v = plain, v.layers = 0;
    refuse_foreign(v, "no tensor blocks.0.mlp.fc1.weight");
    v = plain, v.extra = "norm.weight";
    refuse_foreign(v, "norms without a bias (tensor norm.weight)");
    CHECK(!weights_config(below("sample.safetensors"), &c, assumed, sizeof assumed, &e) &&
          contains(e.what, "patch_embed"));
}

/* Metadata against tensors: the file of a run whose text was edited. */
static void test_edited_metadata(void)
{
    static const char *const changes[][3] = {
        {"\"width\":\"24\"", "\"width\":\"99\"", "width = 99, but the tensors say 24"},
        {"\"layers\":\"2\"", "\"layers\":\"9\"", "layers = 9"},
        {"\"heads\":\"3\"", "\"heads\":\"5\"", "5 heads"},
        {"\"heads\":\"3\"", "\"heads\":\"x\"", "'x'"},
        {"\"pool\":\"cls\"", "\"pool\":\"sum\"", "'sum'"},
        {"\"image_h\":\"16\"", "\"image_h\":\"-4\"", "image-height"}};
    for (int i = 0; i < COUNT(changes); i++) {
        size_t n;
        Error e = {0};
        Config c;
        char assumed[256];
        uint8_t *data = read_bytes(below("resume-sgd/step_00000003/model.safetensors"), &n);
        uint8_t *hit = memmem(data, n, changes[i][0], strlen(changes[i][0]));
        if (!CHECK(hit, "%s is not in the file", changes[i][0]))
            continue;
        memcpy(hit, changes[i][1], strlen(changes[i][1]));
        write_bytes(below("edited.safetensors"), data, n);
        CHECK(!weights_config(below("edited.safetensors"), &c, assumed, sizeof assumed, &e) &&
                  contains(e.what, changes[i][2]) && contains(e.what, "edited.safetensors"),
              "%s: \"%s\"", changes[i][2], e.what);
    }
}

/* A real file from elsewhere: DeiT-Tiny, 5.7 million parameters. */
static void test_deit(const char *shared)
{
    char path[1024], assumed[256] = "?", report[256];
    Error e = {0};
    Config c;
    snprintf(path, sizeof path, "%s/data/weights/deit_tiny_patch16_224.safetensors",
             shared ? shared : "");
    if (!shared || !path_exists(path)) {
        SKIP("foreign weights: no %s", shared ? path : "folder of shared data was given");
        return;
    }
    if (!CHECK(weights_config(path, &c, assumed, sizeof assumed, &e), "%s", e.what))
        return;
    CHECK(c.width == 192 && c.layers == 12 && c.heads == 3 && c.mlp == 768 && c.patch == 16 &&
          c.image_h == 224 && c.image_w == 224 && c.classes == 1000 && c.cls_tokens == 1 &&
          c.patch_bias && !c.layer_scale);
    Plan plan = {.max_batch = 1};
    Model *m = vit_create(&c, &plan, backend_cpu());
    CHECK(m->layout->n_params == 5717416, "%ld parameters", m->layout->n_params);
    CHECK(ckpt_load_weights(&m->own, path, false, report, sizeof report, &e), "%s", e.what);
    RunState run = {0};
    CHECK(!save(m, below("inference"), run, 1, &e) && contains(e.what, "optimiser"), "%s", e.what);
    vit_free(m);
    c.classes = 2;
    refuse_weights(path, &c, "head.weight has shape [1000, 192]", "--num-classes 1000");
    check_new_head(path, &c, "2 classes; the file's has 1000");
    c.classes = 1000, c.image_h = 112, c.image_w = 448;
    check_resized(path, &c, "from 14x14 to 7x28 patches");
}

/* ---- the run's directory ---- */

static bool has_step(const char *run, int step)
{
    return is_dir(below("%s/step_%08d", run, step));
}

static bool points_at(const char *run, const char *which, const char *text)
{
    Error e;
    char *is = read_text(below("%s/%s", run, which), 100, &e);
    bool same = is && strcmp(is, text) == 0;
    free(is);
    return same;
}

static bool save_at(Model *m, const char *run, int step, int best, int keep)
{
    Error e = {0};
    RunState r = {.step = (uint64_t)step,
                  .seed = 1,
                  .best_metric = best < 0 ? -1 : 50,
                  .best_step = best < 0 ? 0 : (uint64_t)best};
    return CHECK(save(m, below("%s", run), r, keep, &e), "step %d: %s", step, e.what);
}

static void test_pruning(Model *m)
{
    char found[1024];
    Error e = {0};
    save_at(m, "run", 10, -1, 2);
    CHECK(points_at("run", "latest", "step_00000010\n") && !path_exists(below("run/best")));
    save_at(m, "run", 20, 20, 2);
    CHECK(points_at("run", "best", "step_00000020\n"));
    save_at(m, "run", 30, 20, 2);
    CHECK(!has_step("run", 10) && has_step("run", 20) && has_step("run", 30));
    save_at(m, "run", 40, 20, 2);
    save_at(m, "run", 50, 20, 2);
    CHECK(has_step("run", 20) && !has_step("run", 30) && has_step("run", 40) &&
          has_step("run", 50));
    CHECK(points_at("run", "latest", "step_00000050\n") &&
          points_at("run", "best", "step_00000020\n"));
    save_at(m, "run", 60, 55, 2); /* the best step was never saved: the old best stays */
    CHECK(has_step("run", 20) && points_at("run", "best", "step_00000020\n"));
    save_at(m, "run", 70, 70, 1);
    CHECK(has_step("run", 70) && !has_step("run", 20) && !has_step("run", 50) &&
          !has_step("run", 60));

    save_at(m, "run", 65, 70,
            1); /* the run went back: later checkpoints are not its own to remove */
    CHECK(has_step("run", 65) && has_step("run", 70) &&
          points_at("run", "latest", "step_00000065\n"));
    CHECK(ckpt_find(below("run"), found, sizeof found, &e) && contains(found, "step_00000065"),
          "%s %s", e.what, found);
    save_at(m, "run", 70, 70, 1); /* over an existing one */
    CHECK(has_step("run", 70) && !has_step("run", 65));
    for (int step = 71; step < 75; step++)
        save_at(m, "run", step, -1, 0); /* keep all */
    CHECK(has_step("run", 71) && has_step("run", 74));
}

/* Pointer files may have been written by anyone: only a plain name of a checkpoint is followed. */
static void test_best(Model *m)
{
    static const char *const bad[] = {"../run/step_00000001",
                                      "step_00000001/",
                                      "/etc",
                                      "step_00000001/../step_00000001",
                                      "step_1",
                                      "",
                                      "step_00000009",
                                      "step_00000001.tmp"};
    char found[1024];
    Error e = {0};
    save_at(m, "best", 1, 1, 0);
    save_at(m, "best", 2, 1, 0);
    CHECK(ckpt_best(below("best"), found, sizeof found, &e) && contains(found, "step_00000001"),
          "%s", found);
    CHECK(ckpt_best(below("best/step_00000002"), found, sizeof found, &e) &&
          contains(found, "step_00000002"));
    CHECK(!ckpt_best(below("best"), found, 8, &e) && contains(e.what, "too long") && *e.hint);
    CHECK(!ckpt_best(below("never"), found, sizeof found, &e) && contains(e.what, "never"));
    for (int i = 0; i < COUNT(bad); i++) {
        write_string(below("best/best"), bad[i]);
        CHECK(ckpt_best(below("best"), found, sizeof found, &e) &&
                  contains(found, "best/step_00000002"),
              "'%s' led to %s", bad[i], found);
    }
    write_string(below("best/best"), "step_00000001\n");
    unlink(below("best/step_00000001/train_state.safetensors")); /* the weights alone suffice */
    CHECK(ckpt_best(below("best"), found, sizeof found, &e) && contains(found, "step_00000001"));
    unlink(below("best/step_00000001/model.safetensors"));
    CHECK(ckpt_best(below("best"), found, sizeof found, &e) && contains(found, "step_00000002"));
}

static void test_find(Model *m)
{
    char found[1024];
    Error e = {0};
    CHECK(ckpt_find(below("run/step_00000072"), found, sizeof found, &e) &&
          contains(found, "step_00000072"));
    CHECK(!ckpt_find(below("run"), found, 8, &e) && contains(e.what, "too long"), "%s", e.what);
    CHECK(!ckpt_find(below("never"), found, sizeof found, &e) && contains(e.what, "never"), "%s",
          e.what);
    make_dirs(below("hollow"), &e);
    CHECK(!ckpt_find(below("hollow"), found, sizeof found, &e) && contains(e.what, "no checkpoint"),
          "%s", e.what);
    write_string(below("hollow/latest"), "../run/step_00000074\n");
    CHECK(!ckpt_find(below("hollow"), found, sizeof found, &e),
          "latest led out of the directory: %s", found);

    /* without `latest`, or where it leads nowhere, the highest complete one counts */
    write_string(below("run/latest"), "step_00009999\n");
    unlink(below("run/step_00000074/train_state.safetensors"));
    CHECK(ckpt_find(below("run"), found, sizeof found, &e) && contains(found, "step_00000073"),
          "%s", found);
    unlink(below("run/latest"));
    CHECK(ckpt_find(below("run"), found, sizeof found, &e) && contains(found, "step_00000073"),
          "%s", found);

    /* what an interrupted save left is swept, or put back where nothing replaced it */
    make_dirs(below("run/step_00000080.tmp"), &e);
    write_string(below("run/step_00000080.tmp/model.safetensors.tmp"), "half");
    make_dirs(below("run/step_00000073.old"), &e);
    rename(below("run/step_00000072"), below("run/step_00000072.old"));
    make_dirs(below("run/step_notes.tmp"), &e);
    save_at(m, "run", 81, -1, 0);
    CHECK(!path_exists(below("run/step_00000080.tmp")) && has_step("run", 72) &&
          has_step("run", 73));
    CHECK(!path_exists(below("run/step_00000073.old")) && path_exists(below("run/step_notes.tmp")));
    write_string(below("file"), "");
    RunState r = {0};
    CHECK(!save(m, below("file/run"), r, 1, &e) && contains(e.what, "file"), "%s", e.what);
}

/* ---- full disk ---- */

static int entries, temporaries;

static int count_entries(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    entries++;
    temporaries += contains(path, ".tmp");
    return 0;
}

/* A limit on the size of files stands in for a full disk: write() fails half-way through. Wherever
 * it strikes, the earlier checkpoint stays what it was and nothing unfinished remains. */
static void test_full_disk(void)
{
    Config c = small_config();
    Model *m = make_model(&c, OPT_ADAMW, false, 1), *back = make_model(&c, OPT_ADAMW, false, 2);
    struct rlimit old, limit;
    RunState run = {.step = 1, .samples = 2, .seed = 3, .best_metric = -1}, later = run, found_run;
    Error e = {0};
    char found[1024];
    later.step = 2;
    train(m, 0, 1);
    CHECK(save(m, below("full"), run, 1, &e), "%s", e.what);
    struct stat model, state;
    stat(below("full/step_00000001/model.safetensors"), &model);
    stat(below("full/step_00000001/train_state.safetensors"), &state);
    const long sizes[] = {
        0, 100, 4096, (long)model.st_size - 1, (long)model.st_size, (long)state.st_size - 1};
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (int i = 0; i < COUNT(sizes); i++) {
        limit = old;
        limit.rlim_cur = (rlim_t)sizes[i];
        fflush(stdout);
        setrlimit(RLIMIT_FSIZE, &limit);
        e.what[0] = 0;
        bool saved = save(m, below("full"), later, 1, &e);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK(!saved && contains(e.what, "cannot write") && contains(e.what, ".safetensors"),
              "%ld bytes: \"%s\"", sizes[i], e.what);
        entries = temporaries = 0;
        nftw(below("full"), count_entries, 16, FTW_PHYS);
        CHECK(entries == 5 && temporaries == 0, "%d entries, %d of them temporary", entries,
              temporaries);
    }
    CHECK(ckpt_find(below("full"), found, sizeof found, &e) && resume(back, found, &found_run, &e),
          "%s", e.what);
    CHECK(found_run.step == 1 && differences(m, back) == 0);
    CHECK(save(m, below("full"), later, 1, &e) && has_step("full", 2) && !has_step("full", 1), "%s",
          e.what);
    vit_free(m);
    vit_free(back);
}

int main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%.200s/test_checkpoint.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(root))
        die("set TMPDIR to a writable directory", "%s: cannot create", root);
    backend_cpu()->init(&(Device){.threads = 1, .ranks = 1});

    test_round_trip();
    test_writer_errors();
    test_damaged();
    test_unusual();
    fuzz(below("sample.safetensors"), 4000, false);
    test_resume();
    test_older_average();
    test_refused_resume();
    test_weights();
    test_foreign();
    test_edited_metadata();
    fuzz(below("resume-sgd/step_00000003/model.safetensors"), 2000, true);
    test_deit(argc > 1 ? argv[1] : NULL);

    Config c = small_config();
    Model *m = make_model(&c, OPT_ADAMW, false, 1);
    test_pruning(m);
    test_best(m);
    test_find(m);
    vit_free(m);
    test_full_disk();
    remove_tree(root);
    return check_report();
}
