/* test_weights.c - weights of other forms and families: test_weights [SHARED].
 *
 * test/weights has tiny models of the libraries that people use, with the logits that these compute
 * (make.py there): each must load and give the same. Then what is refused, and how it is named;
 * what lies beside the weights; damaged archives; positions of other grids.
 *
 * Read in this order: models, runs of elements, registers, folders, export, refusals, damage,
 * positions, cases.
 */
#include "vit.h"

#include "checkpoint.h"
#include "files.h"
#include "weights/export_hf.h"
#include "weights/names.h"
#include "weights/open.h"
#include "weights/weights.h"
#include "weights/zip.h"

static const char here[] = "test/weights";

/* ---- models ---- */

static bool contains(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

static bool assumes(const WeightsInfo *w, const char *setting)
{
    bool found = false;
    for (int i = 0; i < w->assumptions; i++)
        found |= strcmp(w->assumed[i].setting, setting) == 0;
    return found;
}

/* A hub's folder stands for the file in it. */
static char *file_of(const char *path)
{
    return is_dir(path) ? weights_in_folder(path, &(Error){0}) : xstrdup(path);
}

/* The model of a file, for images of S x S pixels. Heads leave no trace: those of make.py are 2. */
static Model *load(const char *path, int size, char *report, size_t n, Error *e)
{
    WeightsInfo w;
    char *file = file_of(path);
    Model *m = NULL;
    if (file && weights_describe(file, 0, 0, &w, e)) {
        if (assumes(&w, "heads"))
            w.config.heads = 2;
        int how = w.config.classes ? 0 : LOAD_NEW_HEAD;
        w.config.image_h = w.config.image_w = size;
        w.config.classes = w.config.classes ? w.config.classes : 5;
        Plan plan = {.max_batch = 1, .float_images = true};
        m = vit_create(&w.config, &plan, backend_cpu());
        if (!ckpt_load_weights(&m->own, file, how, report, n, e)) {
            vit_free(m);
            m = NULL;
        }
    }
    free(file);
    return m;
}

/* Relative distance of what the model says to what the library said. */
static double distance(Model *m, const SafeTensors *f, const StTensor *want)
{
    const StTensor *image = st_find(f, "image");
    real x[3 * 12 * 12], out[8], right[8];
    double far = 0, all = 0;
    st_read_real(f, image, 0, image->n, x, NULL);
    st_read_real(f, want, 0, want->n, right, NULL);
    vit_set_batch(m, 1, x, false, NULL, NULL);
    vit_forward(m, false);
    if (want->n == m->config.classes)
        vit_logits(m, out);
    else /* of a model without a head: what it would read */
        vit_read_act(m, m->now->pooled, 0, want->n, out);
    for (int k = 0; k < want->n; k++) {
        far += (double)(out[k] - right[k]) * (double)(out[k] - right[k]);
        all += (double)right[k] * (double)right[k];
    }
    return sqrt(far / all);
}

static void test_models(void)
{
    Error e;
    SafeTensors *f = st_open(at(here, "logits.safetensors"), &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        char report[256] = "";
        if (strcmp(t->name, "image") == 0)
            continue;
#ifndef HAVE_ZLIB
        if (contains("bigvision.npz zip64.npz", t->name)) {
            SKIP("%s is compressed, and there is no zlib", t->name);
            continue;
        }
#endif
        Model *m = load(at(here, t->name), 12, report, sizeof report, &e);
        if (!CHECK(m != NULL, "%s: %s", t->name, e.what))
            continue;
        double far = distance(m, f, t);
        CHECK(far < 1e-5, "%s: logits differ by %.1e", t->name, far);
        CHECK(contains(report, "from 6x6 to 3x3") == contains(t->name, "resized"), "%s: %s",
              t->name, report);
        vit_free(m);
    }
    st_close(f);
}

/* ---- runs of elements ---- */

/* Tensors are read in pieces of any length from any place: all must be the same values. */
static void test_runs(void)
{
    static const char *const names[] = {"google.npz", "strided.pth", "registers.safetensors",
                                        "deit3.safetensors", "hf-deit/model.safetensors"};
    for (int i = 0; i < COUNT(names); i++) {
        Error e;
        NamesReport report;
        SafeTensors *f = weights_open_file(at(here, names[i]), &e);
        f = f ? names_view(f, &NAMES_UNKNOWN, &report, &e) : NULL;
        if (!CHECK(f != NULL, "%s", e.what))
            continue;
        for (int k = 0; k < f->count; k++) {
            const StTensor *t = &f->tensor[k];
            real *whole = xcalloc((size_t)t->n, sizeof *whole), part[7];
            bool same = st_read_real(f, t, 0, t->n, whole, &e);
            for (long at = 0; same && at < t->n; at += 5) {
                long n = t->n - at < COUNT(part) ? t->n - at : COUNT(part);
                same = st_read_real(f, t, at, n, part, &e) &&
                       memcmp(part, whole + at, (size_t)n * sizeof *part) == 0;
            }
            CHECK(same, "%s: %s", names[i], t->name);
            free(whole);
        }
        st_close(f);
    }
}

/* What was read of a file does not stay this process's memory: while any tensor is copied, no more
 * than that tensor is. */
static long mapped_most;

static long mapped_now(void) /* kB */
{
    char line[128];
    long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssFile: %ld", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb;
}

static long all_of_it(const TensorSet *set, const Param *p, bool once, long *begin, long *end)
{
    (void)set, (void)once;
    *begin = 0;
    *end = p->n;
    return 0;
}

static void look(const TensorSet *set, long at, long n, real *values)
{
    (void)set, (void)at, (void)values;
    long kb = n > 0 ? mapped_now() : 0;
    mapped_most = kb > mapped_most ? kb : mapped_most;
}

static void test_memory(void)
{
    Error e = {"", ""};
    char report[256];
    Config c = vit_config_default();
    c.width = 512, c.heads = 8, c.layers = 4, c.mlp = 2048, c.image_h = c.image_w = 32;
    c.classes = 10;
    Layout *l = layout_new(&c, DECAY_ALL, &WHOLE_MODEL);
    const TensorSet set = {"", NULL, NULL, all_of_it, look};
    const char *path = at(temporary, "large.safetensors");
    StWriter *w = weights_create(path, l);
    weights_declare(w, l, &set, 1);
    bool ok = st_begin(w, 0, &e) && weights_write(w, l, &set, 1, &e) && st_finish(w, 0, &e);
    long before = mapped_now(), all = 0, largest = 0;
    for (int i = 0; i < l->tensors; i++) {
        long kb = (long)sizeof(real) * l->param[i].n / 1024;
        all += kb;
        largest = kb > largest ? kb : largest;
    }
    mapped_most = 0;
    ok = ok && weights_load(path, l, &set, 1, 0, report, sizeof report, &e);
    long more = mapped_most - before;
    CHECK(ok && all > 8 * largest && more < 2 * largest, "%s; %ld kB of %ld, the largest %ld",
          e.what, more, all, largest);
    unlink(path);
    layout_free(l);
}

/* Registers stand between the class token and the patches, and have no position. */
static void test_registers(void)
{
    static const char name[] = "dinov2_with_registers.embeddings.position_embeddings";
    enum { C = 8, PATCHES = 9, REGISTERS = 3 };
    real theirs[(1 + PATCHES) * C] = {0}, ours[(1 + REGISTERS + PATCHES) * C] = {0};
    Error e;
    NamesReport report;
    SafeTensors *f = weights_open_file(at(here, "hf-dinov2/model.safetensors"), &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    const StTensor *t = NULL;
    for (int i = 0; i < f->count && !t; i++)
        t = strstr(name, f->tensor[i].name) ? &f->tensor[i] : NULL;
    bool ok = CHECK(t && t->n == COUNT(theirs)) && st_read_real(f, t, 0, t->n, theirs, &e);
    f = names_view(f, &NAMES_UNKNOWN, &report, &e);
    t = f ? st_find(f, "pos_embed") : NULL;
    ok = CHECK(t && t->n == COUNT(ours)) && ok && st_read_real(f, t, 0, t->n, ours, &e);
    for (int i = 0; ok && i < COUNT(ours); i++) {
        int row = i / C, from = row ? row - REGISTERS : 0;
        bool zero = row >= 1 && row <= REGISTERS;
        CHECK(ours[i] == (zero ? 0 : theirs[from * C + i % C]), "element %d", i);
    }
    st_close(f);
}

/* ---- folders ---- */

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-9;
}

static bool describe(const char *name, WeightsInfo *w)
{
    Error e;
    char *file = file_of(at(here, name));
    bool ok = CHECK(file != NULL, "%s", name) &&
              CHECK(weights_describe(file, 0, 0, w, &e), "%s: %s", name, e.what);
    free(file);
    return ok;
}

static void test_folders(void)
{
    WeightsInfo w;
    if (describe("timm-hub", &w)) {
        const Config *c = &w.config;
        CHECK(c->heads == 2 && c->pool == POOL_CLS && c->act == ACT_GELU && near(c->eps, 1e-6));
        CHECK(near(c->mean_r, 0.5) && near(c->mean_b, 0.3) && near(c->std_g, 0.3));
        CHECK(near(w.hub.crop_pct, 0.9) && w.hub.interpolation == 0);
        CHECK(w.assumptions == 0, "%d assumed", w.assumptions);
    }
    if (describe("timm-heads", &w)) /* 64 / 64, did its name not say 64 / 32 */
        CHECK(w.config.heads == 2 && w.assumptions == 0, "%d heads, %d assumed", w.config.heads,
              w.assumptions);
    if (describe("hf-vit", &w)) {
        const Config *c = &w.config;
        CHECK(c->heads == 2 && c->act == ACT_GELU_TANH && near(c->eps * 1e12, 1) &&
              near(c->eps_final * 1e12, 1) && near(c->mean_g, 0.5) && near(c->std_r, 0.25));
        CHECK(w.hub.crop == 1 && w.hub.interpolation == 0 && w.assumptions == 0, "%d assumed",
              w.assumptions);
        CHECK(contains(w.form, "transformers'") && contains(w.form, "preprocessor"), "%s", w.form);
    }
    if (describe("wide", &w))
        CHECK(w.config.image_h == 12 && w.config.image_w == 24, "%dx%d", w.config.image_h,
              w.config.image_w);
    char *copy = xasprintf("cp %s/wide/model.safetensors %s/alone.safetensors", here, temporary);
    const char *alone = at(temporary, "alone.safetensors");
    Error e;
    CHECK(system(copy) == 0 && !weights_describe(alone, 0, 0, &w, &e) &&
              contains(e.what, "no square grid") && contains(e.hint, "--image-size"),
          "%s", e.what);
    CHECK(weights_describe(alone, 12, 24, &w, &e) && w.config.image_w == 24, "%s", e.what);
    free(copy);
    if (describe("hf-dinov2", &w))
        CHECK(w.config.classes == 0 && w.config.cls_tokens == 4 && w.config.layer_scale &&
                  contains(w.notes, "3 of 4 tokens") && contains(w.form, "no head"),
              "%s; %s", w.form, w.notes);
    if (describe("registers.safetensors", &w))
        CHECK(w.config.image_h == 12 && w.config.cls_tokens == 5, "%d", w.config.image_h);
    if (describe("hf-mae", &w))
        CHECK(w.config.classes == 0 && w.config.mlp == 12 && contains(w.notes, "a decoder"), "%s",
              w.notes);
    if (describe("distilled.safetensors", &w))
        CHECK(w.config.cls_tokens == 2 && w.config.pool == POOL_CLS_DIST &&
                  contains(w.notes, "two heads are one"),
              "%s", w.notes);
    if (describe("nested.pth", &w))
        CHECK(contains(w.form, "model_ema") && contains(w.notes, "of 2 models") &&
                  !contains(w.notes, "head of another kind"),
              "%s; %s", w.form, w.notes);
    if (describe("wrapped.pth", &w))
        CHECK(contains(w.form, "swa_model") && contains(w.notes, "its head is swa_model"), "%s; %s",
              w.form, w.notes);
    if (describe("probe.safetensors", &w))
        CHECK(w.config.classes == 0 && contains(w.notes, "a head of another kind"), "%s", w.notes);
    if (describe("gap.safetensors", &w))
        CHECK(w.config.pool == POOL_GAP && w.config.cls_tokens == 0);
}

/* Of files of three classes; where not each of them is named, which says so. */
static void test_labels(void)
{
    static const struct {
        const char *json, *names, *says;
    } cases[] = {
        {"\"id2label\": {\"1\": \"b\", \"0\": \"a\", \"2\": \"c\"}", "a b c", ""},
        {"\"label_names\": [\"a\", \"b\", \"c\"]", "a b c", ""},
        {"\"label2id\": {\"c\": 2, \"a\": 0, \"b\": 1}", "a b c", ""},
        {"\"id2label\": {\"0\": \"LABEL_0\"}, \"label2id\": {\"c\": 2, \"a\": 0, \"b\": 1}",
         "a b c", ""},
        {"\"id2label\": {\"0\": \"LABEL_0\", \"1\": \"LABEL_1\"}", "", ""},
        {"\"id2label\": {\"0\": \"a\", \"1\": \"b\"}", "",
         "id2label names 2 classes, the head has 3"},
        {"\"id2label\": {\"1\": \"a\", \"2\": \"b\", \"3\": \"c\"}", "",
         "id2label does not name class 0"},
        {"\"label2id\": {\"a\": 0, \"b\": 1, \"c\": 1}", "", "label2id does not name class 2"},
        {"\"label2id\": {\"a\": \"0\", \"b\": 1, \"c\": 2}", "", "label2id does not name class 0"},
        {"\"id2label\": {\"0\": \"a\"}, \"label2id\": {\"a\": 0}", "",
         "id2label names 1 class, the"},
    };
    Error e;
    for (int i = 0; i < COUNT(cases); i++) {
        Names names = {0};
        char *json = xasprintf("{%s}", cases[i].json), all[32] = "";
        CHECK(save_text(at(temporary, "config.json"), json, &e), "%s", e.what);
        bool found = hub_labels(at(temporary, "model.safetensors"), 3, &names, &e);
        for (int k = 0; k < names.n; k++)
            snprintf(all + strlen(all), sizeof all - strlen(all), k ? " %s" : "%s", names.at[k]);
        CHECK(found == (*cases[i].names != 0) && strcmp(all, cases[i].names) == 0, "%s: %s", json,
              all);
        CHECK(found || (*cases[i].says ? contains(e.what, cases[i].says) : !*e.what), "%s: %s",
              json, e.what);
        names_free(&names);
        free(json);
    }
    Names names = {0};
    CHECK(hub_labels(at(here, "hf-vit/model.safetensors"), 5, &names, NULL) &&
          strcmp(names.at[4], "elk") == 0);
    names_free(&names);
    unlink(at(temporary, "config.json"));
}

/* What timm says of the images, by its own resolve_data_config: args before the architecture. */
static void test_timm_args(void)
{
#define TIMM "{\"architecture\": \"%s\", \"model_args\": {%s}, \"pretrained_cfg\": {%s}}"
    static const struct {
        const char *model, *args, *images;
        double mean[3], std, crop_pct; /* 0: not known; std of red */
        int interpolation, crop, side, heads;
    } cases[] = {
        {"vit_tiny_patch16_224", "", "", {0.5, 0.5, 0.5}, 0.5, 0.9, 1, 0, 0, 0},
        {"vit_base_patch16_384", "", "", {0.5, 0.5, 0.5}, 0.5, 1, 1, 0, 0, 0},
        {"deit_base_distilled_patch16_384", "", "", {0.485, 0.456, 0.406}, 0.229, 1, 1, 0, 0, 0},
        {"vit_tiny_patch16_224",
         "\"num_heads\": 5",
         "\"mean\": [0.1, 0.2, 0.3], \"std\": [0.25], \"crop_pct\": 0.95, \"interpolation\": "
         "\"bilinear\", \"crop_mode\": \"squash\", \"img_size\": 32",
         {0.1, 0.2, 0.3},
         0.25,
         0.95,
         0,
         2,
         32,
         5},
        {"vit_tiny_patch16_224",
         "",
         "\"std\": [0.2, 0.3, 0.4], \"input_size\": [3, 48, 48]",
         {0.5, 0.5, 0.5},
         0.2,
         0.9,
         1,
         0,
         48,
         0},
        {"vit_tiny_patch16_224.mae", "", "\"crop_pct\": 0.8", {0}, 0, 0.8, -1, -1, 0, 0},
        {"vit_tiny_patch16_224.mae",
         "",
         "\"mean\": [0], \"std\": [1]",
         {0, 0, 0},
         1,
         0,
         -1,
         -1,
         0,
         0},
        {"vit_medium_patch16_gap_240", "", "\"mean\": [0.1, 0.2, 0.3]", {0}, 0, 0, -1, -1, 0, 0},
    };
    Error e;
    for (int i = 0; i < COUNT(cases); i++) {
        char *json = xasprintf(TIMM, cases[i].model, cases[i].args, cases[i].images);
        Hub h = {.eps = -1, .pool = -1, .interpolation = -1, .crop = -1};
        CHECK(hub_args("x.pth", json, &h, &e), "%s: %s", json, e.what);
        bool mean = h.has_mean == (cases[i].std > 0);
        for (int k = 0; h.has_mean && k < 3; k++)
            mean = mean && near(h.mean[k], cases[i].mean[k]);
        CHECK(mean && (!h.has_mean || near(h.std[0], cases[i].std)), "%s: mean %g std %g", json,
              h.mean[0], h.std[0]);
        CHECK(near(h.crop_pct, cases[i].crop_pct) && h.interpolation == cases[i].interpolation &&
                  h.crop == cases[i].crop && h.image_h == cases[i].side &&
                  h.heads == cases[i].heads && contains(h.from, "timm args"),
              "%s: crop %d of %g, filter %d, %d pixels, %d heads, %s", json, h.crop, h.crop_pct,
              h.interpolation, h.image_h, h.heads, h.from);
        free(json);
    }
    Hub h = {.eps = -1};
    char *json = xasprintf(TIMM, "vit_base_patch16_rope_224", "", "");
    CHECK(!hub_args("x.pth", json, &h, &e) && contains(e.what, "its timm args says"), "%s", e.what);
    free(json);
    WeightsInfo w;
    if (describe("timm-args.pth.tar", &w))
        CHECK(w.config.heads == 2 && near(w.config.mean_g, 0.25) && near(w.config.std_b, 0.225) &&
                  near(w.hub.crop_pct, 0.9) && w.assumptions == 0 && contains(w.form, "timm args"),
              "%d heads, mean %g, std %g, %d assumed, %s", w.config.heads, w.config.mean_g,
              w.config.std_b, w.assumptions, w.form);
}

/* A file of these dimensions and one block, of zeros; nobody says how many heads it has. */
static const char *write_shapes(int C, int F)
{
    char *json = NULL;
    size_t size;
    long at_byte = 0;
    FILE *f = open_memstream(&json, &size);
    const struct {
        const char *name;
        long shape[4];
    } tensors[] = {{"pos_embed", {1, 4, C}},
                   {"patch_embed.proj.weight", {C, 3, 2, 2}},
                   {"patch_embed.proj.bias", {C}},
                   {"blocks.0.norm1.weight", {C}},
                   {"blocks.0.norm1.bias", {C}},
                   {"blocks.0.attn.qkv.weight", {3L * C, C}},
                   {"blocks.0.attn.qkv.bias", {3L * C}},
                   {"blocks.0.attn.proj.weight", {C, C}},
                   {"blocks.0.attn.proj.bias", {C}},
                   {"blocks.0.norm2.weight", {C}},
                   {"blocks.0.norm2.bias", {C}},
                   {"blocks.0.mlp.fc1.weight", {F, C}},
                   {"blocks.0.mlp.fc1.bias", {F}},
                   {"blocks.0.mlp.fc2.weight", {C, F}},
                   {"blocks.0.mlp.fc2.bias", {C}},
                   {"fc_norm.weight", {C}},
                   {"fc_norm.bias", {C}},
                   {"head.weight", {2, C}},
                   {"head.bias", {2}}};
    for (int i = 0; i < COUNT(tensors); i++) {
        long n = 1;
        fprintf(f, "%c\"%s\":{\"dtype\":\"F16\",\"shape\":[", i ? ',' : '{', tensors[i].name);
        for (int d = 0; d < 4 && tensors[i].shape[d]; n *= tensors[i].shape[d++])
            fprintf(f, d ? ",%ld" : "%ld", tensors[i].shape[d]);
        fprintf(f, "],\"data_offsets\":[%ld,%ld]}", at_byte, at_byte + 2 * n);
        at_byte += 2 * n;
    }
    fputc('}', f);
    CHECK(fclose(f) == 0);
    uint64_t length = size;
    const char *path = at(temporary, "shapes.safetensors");
    f = fopen(path, "wb");
    CHECK(f && fwrite(&length, 8, 1, f) == 1 && fwrite(json, size, 1, f) == 1 && fclose(f) == 0);
    CHECK(truncate(path, (long)(8 + size) + at_byte) == 0); /* takes no room on the disk */
    free(json);
    return path;
}

static void test_heads(void)
{
    static const struct {
        int C, F, heads;
        const char *as;
    } cases[] = {{1152, 4304, 16, "so400m"}, {1536, 6144, 16, "giantopt"}, {192, 64, 3, "width"}};
    for (int i = 0; i < COUNT(cases); i++) {
        WeightsInfo w;
        Error e;
        const char *path = write_shapes(cases[i].C, cases[i].F);
        CHECK(weights_describe(path, 0, 0, &w, &e), "%s", e.what);
        CHECK(w.config.heads == cases[i].heads && contains(w.assumed[0].text, cases[i].as),
              "%d heads: %s", w.config.heads, w.assumed[0].text);
        unlink(path);
    }
}

/* ---- export ---- */

/* Each network in each form that can hold it, read again: the same logits. Forms that cannot say
 * why; test/zoo.py asks the libraries themselves. */
static void test_export(void)
{
    static const struct {
        const char *out;
        bool (*write)(Export *x, const char *path, Error *e);
    } forms[] = {{"timm", export_timm}, {"hf", export_hf}, {"google.npz", export_npz}};
    Error e;
    int written[COUNT(forms) + 1] = {0};
    SafeTensors *f = st_open(at(here, "logits.safetensors"), &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        WeightsInfo w;
        char report[256] = "", *file = file_of(at(here, t->name));
        bool skip = strcmp(t->name, "image") == 0 || contains(t->name, "resized");
#ifndef HAVE_ZLIB
        skip |= contains("bigvision.npz zip64.npz", t->name);
#endif
        SafeTensors *model = skip ? NULL : weights_open(file, 0, 0, &w, &e);
        if (!skip && CHECK(model != NULL, "%s", e.what)) {
            if (assumes(&w, "heads"))
                w.config.heads = 2;
            Export x = {.c = &w.config, .f = model, .crop_pct = 0.9};
            for (int k = 0; k <= COUNT(forms); k++) {
                const char *out =
                    at(temporary, k < COUNT(forms) ? forms[k].out : "ours.safetensors");
                e = (Error){"", ""};
                bool ok = k < COUNT(forms) ? forms[k].write(&x, out, &e) : export_ours(&x, out, &e);
                CHECK(ok || (*e.what && *e.hint), "%s", t->name);
                bool said = k < 2 || k == COUNT(forms) || w.config.act == ACT_GELU;
                Model *m = ok && said ? load(out, 12, report, sizeof report, &e) : NULL;
                if (!ok || !said || !CHECK(m != NULL, "%s as %s: %s", t->name, out, e.what))
                    continue;
                double far = distance(m, f, t);
                bool eps = contains(x.notes, "eps") && k == 0; /* a little, as it says */
                CHECK(far < (eps ? 2e-2 : 2e-5), "%s as %s: logits differ by %.1e", t->name, out,
                      far);
                vit_free(m);
                written[k]++;
            }
        }
        st_close(model);
        free(file);
    }
    st_close(f);
    for (int k = 0; k <= COUNT(forms); k++)
        CHECK(written[k] >= 10, "form %d: %d", k, written[k]);
}

/* transformers resizes by the shorter side, whatever the crop's shape. */
static void test_processor(void)
{
    static const char *const names[] = {"wide", "timm-hub"};
    for (int i = 0; i < 6; i++) {
        Error e;
        WeightsInfo w;
        Hub h;
        double share = i / 2 == 1 ? 1 : 0.75;
        char *file = file_of(at(here, names[i % 2]));
        SafeTensors *f = weights_open(file, 0, 0, &w, &e);
        Export x = {.c = &w.config, .f = f, .crop_pct = 0.75, .crop = i / 2};
        CHECK(f && export_hf(&x, at(temporary, "processor"), &e), "%s", e.what);
        CHECK(contains(x.notes, "cannot crop 12 x 24") == (i == 0), "%d: %s", i, x.notes);
        for (int timm = 0; timm < 2; timm++) {
            const char *dir = at(temporary, timm ? "timm" : "processor");
            bool ok = !timm || export_timm(&x, dir, &e);
            CHECK(ok && hub_read(at(dir, "model.safetensors"), &h, &e), "%s", e.what);
            CHECK(h.crop == i / 2 && near(h.crop_pct, share), "%d, %s: crop %d of %g", i, dir,
                  h.crop, h.crop_pct);
        }
        st_close(f);
        free(file);
    }
}

/* ---- refusals ---- */

static void refuse(const char *path, const char *says, const char *hint)
{
    Error e = {"", ""};
    WeightsInfo w;
    CHECK(!weights_describe(path, 0, 0, &w, &e) && contains(e.what, says) && contains(e.hint, hint),
          "%s: %s; %s", path, e.what, e.hint);
}

static const char *write_temporary(const char *name, const void *bytes, size_t n)
{
    Error e;
    const char *path = at(temporary, name);
    CHECK(save_file(path, bytes, n, false, &e), "%s", e.what);
    return path;
}
/* Of one of the files here, to put others beside it; NULL: there is none */
static const char *a_copy_of(const char *name)
{
    Error e;
    SafeTensors *f = st_map(at(here, name), &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return NULL;
    const char *path = write_temporary("model.safetensors", f->map, f->size);
    st_close(f);
    return path;
}

static void test_refusals(void)
{
    static const char *const files[][3] = {
        {"refused-rms-norm.safetensors", "norms without a bias", "such a ViT"},
        {"refused-inner-norm.safetensors", "norms inside attention", "such a ViT"},
        {"refused-eva02.safetensors", "EVA-02, with rotary positions", "such a ViT"},
        {"refused-map-tokens.safetensors", "attention over the patches alone", "over all tokens"},
        {"refused-big-endian.npz", "big-endian", "newbyteorder"},
        {"refused-lora.safetensors", "adapters that are not merged", "such a ViT"},
        {"refused-owlvit/model.safetensors", "vision_model.pre_layernorm", "such a ViT"},
        {"refused-module.pth", "a Python object, not a dict", "state_dict"},
        {"refused-numpy.pth", "state_dict.w is an array of numpy's", "savez"},
        {"refused-sparse.pth", "state_dict.w is a sparse tensor", "to_dense"},
        {"refused-quantised.pth", "state_dict.w is a quantised tensor", "dequantize"},
        {"refused-own.pth", "state_dict.w is a tensor of a class of its own", "full_tensor"},
        {"refused-inner.pth", "state_dict.w is a Python object", "state_dict()"},
        {"refused-optimizer.pth", "the state of an optimiser", "the model's file"},
        {"refused-script.pt", "is TorchScript", "torch.jit.load"},
        {"refused-no-blocks.npz", "no blocks", "all parameters"},
        {"logits.safetensors", "no Vision Transformer", "timm"}};
    static const struct {
        const char *bytes, *says, *hint;
    } texts[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 22883348\n",
         "Git LFS pointer", "git lfs pull"},
        {"\n  <!DOCTYPE html><html>", "a web page", "raw"},
        {"<HTML><head></head>", "a web page", "raw"},
        {"{\"hidden_size\": 768}", "no index of weights", ".index.json"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "no file of its folder", "download"},
        {"{\"weight_map\": {\"a\": \"gone.safetensors\"}}", "not beside it", "download"},
        {"PK\3\4 and nothing more", "no directory", "completely"},
        {"\x80\x04\x95 pickled", "a bare pickle", "torch.save("},
        {"\x1f\x8b compressed", "a gzip file", "gunzip"},
        {"\x82\xa6params", "no file of weights of a form", "safetensors"},
    };
    for (int i = 0; i < COUNT(files); i++)
        refuse(at(here, files[i][0]), files[i][1], files[i][2]);
    for (int i = 0; i < COUNT(texts); i++) {
        const char *path = write_temporary("text", texts[i].bytes, strlen(texts[i].bytes));
        refuse(path, texts[i].says, texts[i].hint);
    }
    CHECK(weights_in_folder("test", &(Error){0}) == NULL);
    Error e;
    SafeTensors *f = weights_open_file(at(here, "refused-float8.pth"), &e);
    const StTensor *t = f ? st_find(f, "state_dict.w") : NULL;
    CHECK(t && t->type == ST_F8_E4M3 && t->n == 4 && !st_is_real(f, t, &e) &&
              contains(e.what, "F8_E4M3, which is not read") && contains(e.hint, "v.float()"),
          "%s; %s", e.what, e.hint);
    st_close(f);
    refuse(write_temporary("__0_0.distcp", "PK\3\4", 4), "a piece of a checkpoint", "dcp_to_torch");
    ZipEntry format = {.name = "model/archive_format", .rest = "pt2", .n = 3};
    CHECK(zip_write(at(temporary, "program.pt2"), &format, 1, &e), "%s", e.what);
    refuse(at(temporary, "program.pt2"), "a program of torch.export", "torch.export.load");
    refuse("model-00002-of-00003.safetensors", "one of several parts", ".index.json");
    static const char empty[] =
        "{\"patch_embed.proj.weight\":{\"dtype\":\"F32\",\"shape\":[0,9007199254740991,"
        "9007199254740991],\"data_offsets\":[0,0]},\"blocks.0.norm1.weight\":{\"dtype\":\"F32\","
        "\"shape\":[0],\"data_offsets\":[0,0]}}";
    char bytes[8 + sizeof empty] = {(char)(sizeof empty - 1)};
    memcpy(bytes + 8, empty, sizeof empty);
    refuse(write_temporary("empty", bytes, 8 + sizeof empty - 1), "is empty", "");
}

/* Beside PyTorch's pickle may lie what is only called nearly so. */
static void test_members(void)
{
    Error e = {"", ""};
    Zip z;
    SafeTensors *f = st_map(at(here, "strided.pth"), &e);
    if (!CHECK(f && zip_read(f->map, f->size, f->path, &z, &e), "%s", e.what))
        return;
    ZipEntry *entry = xcalloc((size_t)z.count + 1, sizeof *entry);
    entry[0] = (ZipEntry){.name = "strided/data.pkl.orig", .rest = "no pickle", .n = 9};
    for (int i = 0; i < z.count; i++)
        entry[i + 1] = (ZipEntry){
            .name = z.member[i].name, .rest = z.member[i].bytes, .n = (size_t)z.member[i].size};
    CHECK(zip_write(at(temporary, "members.pth"), entry, z.count + 1, &e), "%s", e.what);
    free(entry);
    zip_free(&z);
    st_close(f);
    f = weights_open_file(at(temporary, "members.pth"), &e);
    CHECK(f && f->count > 0, "%s", e.what);
    st_close(f);
}

/* Folders of trainers: what is there instead of weights, and which step leads to them. */
static void test_no_weights(void)
{
    static const struct {
        const char *const files[4];
        const char *says, *hint;
    } cases[] = {
        {{"readme.md"}, "holds no weights", "pytorch_model.bin"},
        {{"last.pth.tar", "model_best.pth.tar"}, "2 files of weights, such as last", "one of them"},
        {{"checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "all_results.json"},
         "its folder checkpoint-500 does",
         "name that folder"},
        {{"adapter_config.json", "adapter_model.safetensors"}, "adapters", "merge_and_unload"},
        {{"__0_0.distcp", "__1_0.distcp", ".metadata"}, "in pieces", "dcp_to_torch"}};
    for (int i = 0; i < COUNT(cases); i++) {
        char name[64], path[128];
        Error e = {"", ""};
        snprintf(name, sizeof name, "trainer%d", i);
        for (int k = 0; k < COUNT(cases[i].files) && cases[i].files[k]; k++) {
            snprintf(path, sizeof path, "%s/%s", name, cases[i].files[k]);
            char *dir = xasprintf("%s/%.*s", temporary, (int)(strrchr(path, '/') - path), path);
            CHECK(make_dirs(dir, &e), "%s", e.what);
            free(dir);
            write_temporary(path, "text", 4);
        }
        char *file = weights_in_folder(at(temporary, name), &e);
        CHECK(!file && contains(e.what, cases[i].says) && contains(e.hint, cases[i].hint), "%s; %s",
              e.what, e.hint);
        free(file);
    }
}

/* Hugging Face's cache: links into blobs/, in a folder that refs/main names. */
static void test_cache(void)
{
    char *make = xasprintf("cd '%s' && mkdir -p models--a--b/refs models--a--b/snapshots/0f1e/ && "
                           "printf 0f1e >models--a--b/refs/main && ln -s \"$OLDPWD\"/%s/hf-vit/* "
                           "models--a--b/snapshots/0f1e/",
                           temporary, here);
    WeightsInfo w;
    Error e = {"", ""};
    CHECK(system(make) == 0);
    char *file = weights_in_folder(at(temporary, "models--a--b"), &e);
    CHECK(file && weights_describe(file, 0, 0, &w, &e) && contains(w.form, "preprocessor"), "%s",
          e.what);
    free(file);
    CHECK(unlink(at(temporary, "models--a--b/refs/main")) == 0);
    CHECK(!weights_in_folder(at(temporary, "models--a--b"), &e) && *e.hint, "%s", e.what);
    free(make);
}

/* What transformers does to a byte x is x * factor, then less the mean, by the deviation: each step
 * may be left out. So many of our pixels' mean and deviation that is. */
static void test_rescale(void)
{
    static const struct {
        const char *json;
        double mean, std;
    } cases[] = {
        {"{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.25, 0.25, 0.25]}", 0.5, 0.25},
        {"{\"image_mean\": 0.5, \"image_std\": 0.25}", 0.5, 0.25},
        {"{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.25, 0.25, 0.25], "
         "\"do_normalize\": false}",
         0, 1},
        {"{\"image_mean\": [127.5, 127.5, 127.5], \"image_std\": [51, 51, 51], "
         "\"do_rescale\": false}",
         0.5, 0.2},
        {"{\"image_mean\": [1, 1, 1], \"image_std\": [1, 1, 1], \"rescale_factor\": "
         "0.00784313725490196}",
         0.5, 0.5},
        {"{\"do_normalize\": false, \"do_rescale\": false}", 0, 1 / 255.0}};
    Error e;
    const char *path = a_copy_of("hf-vit/model.safetensors");
    if (!path)
        return;
    for (int i = 0; i < COUNT(cases); i++) {
        WeightsInfo w;
        write_temporary("preprocessor_config.json", cases[i].json, strlen(cases[i].json));
        bool ok = weights_describe(path, 0, 0, &w, &e);
        CHECK(ok && near(w.config.mean_g, cases[i].mean) && near(w.config.std_g, cases[i].std),
              "%d: %s: %g %g", i, e.what, w.config.mean_g, w.config.std_g);
    }
    unlink(at(temporary, "preprocessor_config.json"));
}

/* What transformers' and timm's files say of a picture's way to the network, and where they are
 * silent their classes: files of google/vit-base-patch16-224, facebook/deit-base-patch16-224,
 * openai/clip-vit-base-patch16 and of today's save_pretrained(). test/zoo.py compares pixels. */
static void test_pictures(void)
{
    static const struct {
        const char *model, *name, *json;
        int crop;
        double crop_pct;
        int interpolation;
        const char *unknown;
    } cases[] = {
        {"vit", "preprocessor_config.json", "{\"size\": 224}", 1, 1, 0, ""},
        {"deit", "preprocessor_config.json",
         "{\"size\": 256, \"crop_size\": 224, \"do_center_crop\": true, "
         "\"feature_extractor_type\": \"DeiTFeatureExtractor\", \"resample\": 3}",
         2, 0.875, 1, ""},
        {"clip", "preprocessor_config.json",
         "{\"size\": 224, \"crop_size\": 224, \"do_center_crop\": true, "
         "\"feature_extractor_type\": \"CLIPFeatureExtractor\", \"resample\": 3}",
         0, 1, 1, ""},
        {"dinov2", "preprocessor_config.json",
         "{\"size\": {\"shortest_edge\": 256}, \"crop_size\": {\"height\": 224, \"width\": 224}, "
         "\"image_processor_type\": \"BitImageProcessor\"}",
         0, 0.875, 1, ""},
        {"vit", "preprocessor_config.json",
         "{\"size\": {\"height\": 256, \"width\": 256}, \"crop_size\": {\"height\": 224, "
         "\"width\": 224}, \"do_center_crop\": false, \"image_processor_type\": "
         "\"DeiTImageProcessor\"}",
         1, 1, 1, ""},
        {"clip", "processor_config.json",
         "{\"processor_class\": \"CLIPProcessor\", \"image_processor\": {\"size\": "
         "{\"shortest_edge\": 37}, \"crop_size\": {\"height\": 32, \"width\": 32}, "
         "\"do_center_crop\": true, \"resample\": 2, \"image_processor_type\": "
         "\"CLIPImageProcessor\"}}",
         0, 32.0 / 37, 0, ""},
        {"clip", "preprocessor_config.json",
         "{\"size\": {\"shortest_edge\": 24}, \"crop_size\": 32, \"do_center_crop\": true}", -1, 0,
         1, "crop_size"},
        {"", "config.json", "{\"pretrained_cfg\": {\"crop_mode\": \"squash\", \"crop_pct\": 0.95}}",
         2, 0.95, -1, ""},
        {"", "config.json", "{\"pretrained_cfg\": {\"crop_mode\": \"squash\", \"crop_pct\": 1.0}}",
         1, 1, -1, ""},
        {"", "config.json", "{\"pretrained_cfg\": {\"crop_mode\": \"border\", \"crop_pct\": 0.9}}",
         0, 0.9, -1, "crop_mode = border"}};
    for (int i = 0; i < COUNT(cases); i++) {
        Hub h;
        Error e = {"", ""};
        char *config = xasprintf("{\"model_type\": \"%s\"}", cases[i].model);
        if (*cases[i].model)
            write_temporary("config.json", config, strlen(config));
        const char *path = write_temporary(cases[i].name, cases[i].json, strlen(cases[i].json));
        CHECK(hub_read(path, &h, &e) && h.crop == cases[i].crop &&
                  near(h.crop_pct, cases[i].crop_pct) &&
                  h.interpolation == cases[i].interpolation &&
                  contains(h.unknown, cases[i].unknown) && !*h.unknown == !*cases[i].unknown,
              "%d: crop %d of %g, filter %d, %s%s", i, h.crop, h.crop_pct, h.interpolation,
              h.unknown, e.what);
        unlink(path);
        unlink(at(temporary, "config.json"));
        free(config);
    }
}

/* What open_clip's configurations of ViT-B-32, ViT-B-16-SigLIP, EVA02-E-14 and ViT-L-14-CLIPA say,
 * as its push_to_hf_hub writes them. */
static void test_open_clip(void)
{
    static const struct {
        const char *vision, *images;
        double eps;
        int act, pool, crop, interpolation;
        const char *says; /* refused, or not known */
    } cases[] = {
        {"\"image_size\": 224, \"layers\": 12, \"width\": 768, \"patch_size\": 32", "", 1e-5,
         ACT_GELU, -1, 0, 1, ""},
        {"\"image_size\": 224, \"timm_model_name\": \"vit_base_patch16_siglip_224\", "
         "\"timm_model_pretrained\": false, \"timm_pool\": \"map\", \"timm_proj\": \"none\"",
         "\"interpolation\": \"bilinear\", \"resize_mode\": \"squash\"", -1, ACT_GELU, POOL_MAP, 1,
         0, ""},
        {"\"image_size\": 256, \"timm_model_name\": \"vit_so400m_patch16_siglip_256\", "
         "\"timm_pool\": "
         "\"map\"",
         "\"resize_mode\": \"longest\"", -1, ACT_GELU_TANH, POOL_MAP, 0, 1, "resize_mode"},
        {"\"width\": 768, \"norm_kwargs\": {\"eps\": 1e-6}, \"act_kwargs\": {\"approximate\": "
         "\"tanh\"}, \"pool_type\": \"avg\"",
         "\"resize_mode\": \"shortest\"", 1e-6, ACT_GELU_TANH, POOL_GAP, 0, 1, ""},
        {"\"timm_model_name\": \"eva02_enormous_patch14_clip_224\", \"timm_pool\": \"token\"", "",
         -1, 0, 0, 0, 0, "norms behind"},
        {"\"width\": 1024, \"no_ln_pre\": true, \"pool_type\": \"avg\", \"final_ln_after_pool\": "
         "true",
         "", -1, 0, 0, 0, 0, "final_ln_after_pool"}};
    for (int i = 0; i < COUNT(cases); i++) {
        Hub h;
        Error e = {"", ""};
        char *json = xasprintf("{\"model_cfg\": {\"vision_cfg\": {%s}}, \"preprocess_cfg\": {%s}}",
                               cases[i].vision, cases[i].images);
        const char *path = write_temporary("open_clip_config.json", json, strlen(json));
        if (hub_read(path, &h, &e))
            CHECK(near(h.eps, cases[i].eps) && h.act == cases[i].act && h.pool == cases[i].pool &&
                      h.crop == cases[i].crop && near(h.crop_pct, 1) &&
                      h.interpolation == cases[i].interpolation && !*h.unknown == !*cases[i].says &&
                      contains(h.unknown, cases[i].says),
                  "%d: eps %g act %d pool %d crop %d of %g, filter %d, %s", i, h.eps, h.act, h.pool,
                  h.crop, h.crop_pct, h.interpolation, h.unknown);
        else
            CHECK(*cases[i].says && contains(e.what, cases[i].says), "%d: %s", i, e.what);
        CHECK(!*e.what == (i < 4), "%d: %s", i, e.what);
        unlink(path);
        free(json);
    }
}

/* A config.json that asks for another activation, is damaged, or is of another model. */
static void test_beside(void)
{
    static const struct {
        const char *json, *refused, *note;
    } cases[] = {{"{\"architecture\": \"vit_base_patch16_rope_ape_224\"}", "rotary", NULL},
                 {"{\"architecture\": \"eva02_tiny_patch14_224\"}", "rotary", NULL},
                 {"{\"architecture\": \"vit_base_patch16_rpn_224\"}", "norms behind", NULL},
                 {"{\"model_args\": {\"global_pool\": \"avg\", \"pool_include_prefix\": true}}",
                  "a mean of all tokens", NULL},
                 {"{\"hidden_act\": \"relu\"}", "the activation is relu", NULL},
                 {"{\"hidden_act\": \"silu\"}", "the activation is silu", NULL},
                 {"{\"global_pool\": \"map\"}", "no tensor attn_pool.latent", NULL},
                 {"{\"global_pool\": \"avgmax\"}", "global_pool = avgmax", NULL},
                 {"{\"hidden_size\": ", "is no JSON object", NULL},
                 {"[]", "is no JSON object", NULL},
                 {"{\"hidden_size\": 768, \"num_attention_heads\": 12}", NULL, "of another model"},
                 {"{\"num_attention_heads\": 3}", NULL, "heads 3 does not go"},
                 {"{\"pretrained_cfg\": {\"interpolation\": \"lanczos\"}}", NULL, ""},
                 {"{\"pretrained_cfg\": {\"mean\": [0, 0, 0], \"std\": [0, 0, 0]}}", NULL, ""},
                 {"{\"layer_norm_eps\": \"small\", \"id2label\": 7}", NULL, ""}};
    Error e;
    const char *path = a_copy_of("timm-hub/model.safetensors");
    if (!path)
        return;
    for (int i = 0; i < COUNT(cases); i++) {
        WeightsInfo w;
        write_temporary("config.json", cases[i].json, strlen(cases[i].json));
        if (cases[i].refused)
            refuse(path, cases[i].refused, "");
        else
            CHECK(weights_describe(path, 0, 0, &w, &e) && contains(w.notes, cases[i].note) &&
                      assumes(&w, "heads") && assumes(&w, "mean_r") &&
                      contains(cases[i].json, "lanczos") == contains(w.hub.unknown, "lanczos"),
                  "%s: %s", cases[i].json, w.notes);
    }
    CHECK(unlink(at(temporary, "config.json")) == 0);
}

/* ---- damage ---- */

/* Every tensor of a file that is taken can be read. */
static void touch(const char *path)
{
    Error e = {"", ""};
    NamesReport report;
    SafeTensors *f = weights_open_file(path, &e);
    f = f ? names_view(f, &NAMES_UNKNOWN, &report, &e) : NULL;
    if (!f) {
        CHECK(*e.what && *e.hint, "%s: %s", path, e.what);
        return;
    }
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        real *x = xcalloc((size_t)t->n + 1, sizeof *x);
        st_read_real(f, t, 0, t->n, x, &e);
        free(x);
    }
    st_close(f);
}

static void test_damage(void)
{
    static const char *const names[] = {"nested.pth", "half.pt", "google.npz", "bigvision.npz"};
    uint64_t seed = 1;
    for (int i = 0; i < COUNT(names); i++) {
        Error e;
        SafeTensors *f = st_map(at(here, names[i]), &e);
        if (!CHECK(f != NULL, "%s", e.what))
            continue;
        uint8_t *bytes = xmalloc(f->size);
        for (int k = 0; k < 150; k++) {
            memcpy(bytes, f->map, f->size);
            size_t n = f->size - (k < 50 ? (size_t)k * f->size / 50 : 0);
            for (int flips = 0; k >= 50 && flips < 3; flips++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                bytes[(seed >> 33) % f->size] = (uint8_t)(seed >> 25);
            }
            touch(write_temporary("damaged", bytes, n));
        }
        free(bytes);
        st_close(f);
    }
}

/* ---- positions ---- */

/* PyTorch's interpolate on a 14 x 14 grid. */
static void test_fixtures(void)
{
    static const char *const modes[] = {[POS_TIMM] = "bicubic_antialias",
                                        [POS_GOOGLE] = "bilinear_corners",
                                        [POS_BILINEAR] = "bilinear",
                                        [POS_BICUBIC] = "bicubic"};
    static const int grids[][2] = {{24, 24}, {7, 7}, {10, 16}};
    enum { OLD = 14, C = 24, MOST = 24 * 24 * C };
    static real values[MOST];
    static double in[OLD * OLD * C], out[MOST];
    Error e;
    SafeTensors *f = shared ? st_open(at(shared, "fixtures/preprocess.safetensors"), &e) : NULL;
    const StTensor *input = f ? st_find(f, "pos.input") : NULL;
    if (!input) {
        SKIP("no fixtures of positions");
        return;
    }
    st_read_real(f, input, 0, input->n, values, &e);
    for (int i = 0; i < COUNT(in); i++)
        in[i] = (double)values[i];
    for (int how = 0; how < COUNT(modes); how++)
        for (int g = 0; g < COUNT(grids); g++) {
            char name[64];
            int h = grids[g][0], w = grids[g][1];
            snprintf(name, sizeof name, "pos.%s.%dx%d", modes[how], h, w);
            const StTensor *want = st_find(f, name);
            if (!CHECK(want && want->n == h * w * C, "%s", name))
                continue;
            positions_resize(in, OLD, OLD, C, out, h, w, how);
            st_read_real(f, want, 0, want->n, values, &e);
            double worst = 0;
            for (long k = 0; k < want->n; k++)
                worst = fmax(worst, fabs(out[k] - (double)values[k]));
            CHECK(worst < 1e-5, "%s: off by %.1e", name, worst);
        }
    st_close(f);
}

/* What needs no fixtures: a slope stays one inside, a constant everywhere, one patch is enough. */
static void test_positions(void)
{
    double in[3 * 5 * 2], out[6 * 10 * 2];
    for (int i = 0; i < COUNT(in); i++)
        in[i] = i % 2 ? 7 : i / 2 % 5; /* channel 0: the column; 1: a constant */
    for (int how = POS_TIMM; how <= POS_BICUBIC; how++) {
        positions_resize(in, 3, 5, 2, out, 6, 10, how);
        for (int i = 0; i < 60; i++) {
            double at = how == POS_GOOGLE ? i % 10 * 4.0 / 9 : (i % 10 + 0.5) / 2 - 0.5;
            CHECK(fabs(out[2 * i + 1] - 7) < 1e-12, "way %d: a constant changes", how);
            bool inside = i % 10 >= 4 && i % 10 <= 5 && how != POS_BICUBIC; /* a = -1/2 */
            CHECK(!inside || fabs(out[2 * i] - at) < 1e-12, "way %d: %g in place of %g", how,
                  out[2 * i], at);
        }
        positions_resize(in, 3, 5, 2, out, 3, 5, how);
        for (int i = 0; i < COUNT(in); i++)
            CHECK(fabs(out[i] - in[i]) < 1e-12, "way %d: the same grid changes", how);
        positions_resize(in, 3, 5, 2, out, 1, 1, how);
        CHECK(isfinite(out[0]) && fabs(out[1] - 7) < 1e-12);
    }
}

/* ---- cases ---- */

static void test_cases(void)
{
    static const struct {
        const char *name, *says; /* NULL: must load */
    } cases[] = {{"plain.safetensors", NULL},
                 {"fp16.safetensors", NULL},
                 {"prefix-module.safetensors", NULL},
                 {"deit.pth", NULL},
                 {"hf", NULL},
                 {"hub-dir", NULL},
                 {"distilled.safetensors", NULL},
                 {"registers.safetensors", NULL},
                 {"grid6.safetensors", NULL},
                 {"headless.safetensors", NULL},
                 {"gap-fc-norm.safetensors", NULL},
                 {"google.npz", "no blocks"},
                 {"../15-lfs-pointer-weights/model.safetensors", "Git LFS pointer"}};
    const char *dir = shared ? at(shared, "cases/20-weights") : "";
    if (!is_dir(dir)) {
        SKIP("no cases");
        return;
    }
    for (int i = 0; i < COUNT(cases); i++) {
        Error e;
        WeightsInfo w;
        char *file = file_of(at(dir, cases[i].name));
        if (cases[i].says)
            refuse(file, cases[i].says, "");
        else
            CHECK(weights_describe(file, 0, 0, &w, &e), "%s: %s", cases[i].name, e.what);
        free(file);
    }
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    if (!files_begin(argc, argv))
        return check_report();
    backend_cpu()->init(&(Device){0});
    test_models();
    test_runs();
    test_memory();
    test_labels();
    test_timm_args();
    test_heads();
    test_registers();
    test_folders();
    test_export();
    test_processor();
    test_refusals();
    test_members();
    test_no_weights();
    test_cache();
    test_rescale();
    test_pictures();
    test_open_clip();
    test_beside();
    test_damage();
    test_fixtures();
    test_positions();
    test_cases();
    files_end();
    return check_report();
}
