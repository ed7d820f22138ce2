/* setup_data.c - the images of a run. See setup_data.h.
 *
 * Read in this order: one split, what must hold between splits, model and run, the calls.
 */
#include "train/setup_data.h"

#include "datasets/classes.h"
#include "datasets/shapes.h"
#include "train/hosts.h"
#include "train/rundir.h"
#include "util/files.h"
#include "util/machine.h"
#include "util/report.h"
#include "util/text.h"
#include "weights/hub.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SHAPES_TRAIN = 500, SHAPES_VAL = 100 }; /* images per class */

/* ---- one split ---- */

/* One per core, shared with the other ranks of this machine; a launcher may have shared them out
 * already. */
static int workers_of(const Session *s)
{
    if (s->o.workers > 0)
        return (int)s->o.workers;
    long share = sysconf(_SC_NPROCESSORS_ONLN) / s->world.local_ranks, cores = machine_cores();
    long workers = cores < share ? cores : share;
    if (workers < 1)
        return 1;
    return workers < 64 ? (int)workers : 64;
}

/* `shapes` and `shapes:DIR` are a folder in data/, or in DIR, that is drawn the first time. */
static char *data_spec(Session *s, const char *spec)
{
    Error e;
    bool named = strncmp(spec, "shapes:", 7) == 0, plain = strcmp(spec, "shapes") == 0;
    const char *parent = named ? spec + 7 : "data";
    if ((plain || strcmp(spec, "fake") == 0) && is_dir(spec) && s->world.rank == 0)
        warn("%s is made by the program; the folder of that name is --data ./%s", spec, spec);
    if (!named && !plain)
        return xstrdup(spec);
    if (!*parent)
        die("the folder to draw in follows the colon: shapes:DIR", "%s names no place", spec);
    int size = s->config.image_h > s->config.image_w ? s->config.image_h : s->config.image_w;
    char *dir = xasprintf("%s/shapes-%d", parent, size), *stamp = xasprintf("%s/shapes.txt", dir);
    if (!path_exists(stamp))
        printf("data      drawing %d images into %s (--data shapes:DIR draws elsewhere)\n",
               10 * (SHAPES_TRAIN + SHAPES_VAL), dir);
    fflush(stdout);
    if (!make_dirs(dir, &e))
        die("--data shapes:DIR and --out DIR name places that you may write to", "%s", e.what);
    setup_check(shapes_write(dir, SHAPES_TRAIN, SHAPES_VAL, size, 0, &e), &e);
    free(stamp);
    return dir;
}

static bool is_training(const Session *s)
{
    return strcmp(s->o.command, "train") == 0;
}

/* Lines of a run's classes.txt, onto `names`: none where there is no such file. */
static void read_run_classes(const char *run, Names *names)
{
    Error e;
    char *path = xasprintf("%s/classes.txt", run), *line;
    char *text = path_exists(path) ? read_text(path, 64 << 20, &e) : NULL, *rest = text;
    setup_check(text || !path_exists(path), &e);
    while (rest && (line = strsep(&rest, "\n")))
        if (*line)
            names_add(names, line);
    free(text);
    free(path);
}

/* The classes of the run, in label order. NULL: there is no run, or --classes says it. */
static const Names *run_classes(Session *s)
{
    if (!s->run_dir || *s->o.classes)
        return NULL;
    names_free(&s->classes);
    read_run_classes(s->run_dir, &s->classes);
    return s->classes.n == s->config.classes ? &s->classes : NULL;
}

/* Classes of the weights' head, in label order, and who names them: classes.txt of the run that
 * they are of, or config.json beside them. False where nobody names all K. */
static bool head_classes(const Session *s, int K, Names *names, char from[static 16])
{
    char *run = NULL;
    if (s->run_dir)
        run = xstrdup(s->run_dir);
    else if (*s->o.weights)
        run = run_of(s->o.weights);
    snprintf(from, 16, "%s", run ? "classes.txt" : "config.json");
    if (run)
        read_run_classes(run, names);
    else if (s->weights)
        hub_labels(s->weights, K, names, NULL);
    free(run);
    return K > 0 && names->n == K;
}

/* How many of the data's classes a list has. Names that it has twice say nothing. */
static int known_among(const Names *list, const Dataset *d)
{
    Error e;
    ClassKeys *keys = class_keys(list, "the weights' classes", &e);
    int known = 0;
    for (int k = 0; keys && k < data_classes(d); k++)
        known += class_label(keys, data_class_name(d, k)) >= 0;
    class_keys_free(keys);
    return known;
}

/* What training makes of a head of as many classes, when some or all have other names. */
static void warn_of_names(const Session *s, const Names *names, const char *from, int known)
{
    if (known == 0)
        warn_of(s,
                "the weights' head is of as many classes by other names, such as '%s' (%s): "
                "training starts from it",
                names->at[0], from);
    else
        warn_of(s,
                "the weights' head is of as many classes, %d of them by other names (%s), and "
                "training starts from it: class folders are numbered by their sorted names; "
                "--classes FILE says which is which",
                names->n - known, from);
}

/* Class folders are numbered as the weights' classes of the same names are, not by their sorted
 * names: trained on, if the head is kept and has all of them; evaluated, if all are among the
 * weights'. */
static Dataset *number_as_weights(Session *s, DataOptions *d, Dataset *data)
{
    Error e;
    const Options *o = &s->o;
    char from[16];
    names_free(&s->classes);
    if (!head_classes(s, s->config.classes, &s->classes, from) || o->class_order != ORDER_BYTE) {
        names_free(&s->classes);
        return data;
    }
    const Names *names = &s->classes;
    int n = data_classes(data), known = known_among(names, data);
    bool kept = !is_training(s) || n == names->n || options_config_given(o, "classes");
    bool same = n == names->n;
    for (int k = 0; same && k < n; k++)
        same = strcmp(names->at[k], data_class_name(data, k)) == 0;
    if (same)
        return data;
    if (known == n && kept) {
        data_close(data);
        d->like = names;
        data = data_open(d, &e);
        setup_check(data != NULL, &e);
        return data;
    }
    if (is_training(s) && kept && !s->checkpoint)
        warn_of_names(s, names, from, known);
    if (known == 0 && !is_training(s))
        warn_of(s,
                "the weights' %s names other classes, such as '%s', than the folders: these are "
                "numbered by their sorted names; --classes FILE says which is which",
                from, names->at[0]);
    if (known > 0 && !is_training(s)) {
        char *hint = xasprintf("name the folders as %s does, or give --classes the file with the "
                               "model's classes, in order",
                               from);
        die(hint, "%d of %d class folders are among the classes that the weights' %s names", known,
            n, from);
    }
    names_free(&s->classes);
    return data;
}

Dataset *setup_split(Session *s, const char *spec, bool train)
{
    const Options *o = &s->o;
    const Config *c = &s->config;
    Error e = {"", ""};
    char *where = data_spec(s, spec);
    /* The validation images are in their own shards, or else in those of --data. */
    bool own = !train && *o->val_data && strcmp(spec, o->val_data) == 0;
    own |= !train && strncmp(spec, "wds:", 4) == 0 && webdataset_divided(spec + 4);
    const char *index = own ? o->val_index_dir : o->index_dir;
    if (o->classes_fraction < 1 && !*o->classes &&
        (strncmp(spec, "wds:", 4) == 0 || strncmp(spec, "fake", 4) == 0))
        die_usage("give --classes the file with all classes, one a line",
                  "--classes-fraction: %s does not say how many classes there are", spec);
    /* Training on with new data makes a new head, for as many classes as its labels say. */
    bool known = options_config_given(o, "classes") || s->run_dir || s->checkpoint ||
                 (s->weights && strcmp(o->command, "train") != 0);
    int classes = s->train ? data_classes(s->train) : 0;
    if (known)
        classes = c->classes;
    const Names *like = s->train ? data_class_names(s->train) : NULL;
    if (!s->train && !is_training(s))
        like = run_classes(s);
    if (o->classes_fraction < 1)
        like = NULL;
    DataOptions d = {.spec = where,
                     .classes = *o->classes ? o->classes : NULL,
                     .index_dir = *index ? index : NULL,
                     .wds_label = o->wds_label,
                     .class_order = o->class_order,
                     .like = like,
                     .train = train,
                     .num_classes = classes,
                     .classes_fraction = o->classes_fraction,
                     .val_fraction = *o->val_data ? 0 : o->val_fraction,
                     .per_class = o->data_per_class,
                     .window = (int)o->shuffle_shards,
                     .max_damaged = o->max_damaged > 0 ? o->max_damaged : -1,
                     .images = s->images,
                     .fake_classes = c->classes ? c->classes : vit_config_default().classes,
                     .fake_count = train ? 1280 : 256,
                     .seed = (uint64_t)o->seed};
    d.images.augment &= train;
    Dataset *data = data_open(&d, &e);
    if (!data && s->run_dir && !options_asked(o, own ? "val-data" : "data"))
        die(xasprintf("%s; the place is of the run's config.ini: --%s names another", e.hint,
                      own ? "val-data" : "data"),
            "%s", e.what);
    setup_check(data != NULL, &e);
    if (!like && d.classes_fraction >= 1 && data_classes_sorted(data))
        data = number_as_weights(s, &d, data);
    free(where);
    return data;
}

/* ---- what must hold ---- */

/* Two names of a file, or two paths to it; samples without a file have names alone. */
static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (strcmp(a, b) == 0)
        return true;
    bool there = stat(a, &x) == 0 && stat(b, &y) == 0;
    return there && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Both splits must number their classes alike: labels come from sorted folder names. */
static void check_splits(const Session *s)
{
    const Dataset *a = s->train, *b = s->val;
    const char *hint = "give --classes a file with all classes, one a line";
    if (data_classes(a) != data_classes(b))
        die(hint, "the training images have %s, the validation images %d",
            amount(data_classes(a), "class").s, data_classes(b));
    for (int k = 0; k < data_classes(a); k++)
        if (strcmp(data_class_name(a, k), data_class_name(b, k)) != 0)
            die(hint, "class %d is '%s' in the training images and '%s' in the validation images",
                k, data_class_name(a, k), data_class_name(b, k));
    char *first = data_sample_path(a, 0), *second = data_sample_path(b, 0);
    if (data_count(a) == data_count(b) && same_file(first, second) &&
        strcmp(s->o.data, "fake") != 0)
        warn_of(s, "evaluating on the training images: the data has no split of its own, see "
                   "--val-data and --val-fraction 0.1");
    free(first);
    free(second);
}

/* A run that is evaluated or continued keeps its classes: labels are positions in that list. */
static void check_run_classes(const Session *s, const Dataset *d)
{
    Error e;
    char *path = xasprintf("%s/classes.txt", s->run_dir), *line;
    char *text = path_exists(path) ? read_text(path, 64 << 20, &e) : NULL, *rest = text;
    for (int k = 0; text && k < data_classes(d) && (line = strsep(&rest, "\n")); k++)
        if (strcmp(line, data_class_name(d, k)) != 0)
            die("give --classes the file with the model's classes, in order",
                "class %d is '%s' in the data and '%s' in %s", k, data_class_name(d, k), line,
                path);
    free(text);
    free(path);
}

/* Whoever asks for another order of the classes that the head has, and keeps the head, trains each
 * of its rows anew. */
static void check_head_order(const Session *s, const Dataset *d, int heads)
{
    Names names = {0};
    char from[16];
    int n = data_classes(d), k = 0;
    bool kept = s->train && s->weights && !s->checkpoint && n == heads;
    if (kept && head_classes(s, heads, &names, from) && known_among(&names, d) == n) {
        while (k < n && strcmp(names.at[k], data_class_name(d, k)) == 0)
            k++;
        if (k < n)
            warn_of(s,
                    "the weights' head is kept, but class %d is '%s' in it (%s) and '%s' in the "
                    "data: leave %s out to keep the weights' order",
                    k, names.at[k], from, data_class_name(d, k),
                    *s->o.classes ? "--classes" : "--class-order");
    }
    names_free(&names);
}

/* What to evaluate on; NULL: nothing, while training. */
static const char *validation_spec(const Options *o, bool train)
{
    if (strcmp(o->val_data, "none") == 0)
        return train ? NULL : o->data;
    if (*o->val_data)
        return o->val_data;
    if (train && strncmp(o->data, "wds:", 4) == 0 && !webdataset_divided(o->data + 4))
        die("name the validation shards with --val-data wds:PATTERN, or --val-data none",
            "%s has no validation split of its own", o->data);
    return o->data;
}

/* Sorted names are labels only where the weights' classes were sorted alike. `heads` is how many
 * classes the weights know. */
static void check_class_order(const Session *s, const Dataset *d, int heads)
{
    const Options *o = &s->o;
    if (!s->weights || s->run_dir || s->world.rank || options_given(o, "class-order") ||
        s->classes.n || !data_order_matters(d) || data_classes(d) != heads)
        return;
    warn_of(
        s,
        "classes are numbered in byte order (10 before 2, B before a); if the weights were trained "
        "with another, labels are wrong: --class-order natural (2 before 10), --class-order timm "
        "(and a before B), or --classes FILE");
}

/* Whoever trained without validation images has none to evaluate on. */
static void check_evaluated(const Session *s)
{
    if (!s->train && s->run_dir && strcmp(s->o.val_data, "none") == 0 &&
        data_split(s->val) < SPLIT_VAL)
        warn_of(
            s, "these are the run's training images, it had no others: name validation images with "
               "--data or --val-data");
}

/* The first rank opens its splits before the others do: it draws `shapes`. */
static void open_splits(Session *s, bool train, const char *val)
{
    if (s->world.rank > 0)
        hosts_barrier();
    hosts_at("opening the data", 0);
    if (train)
        s->train = setup_split(s, s->o.data, true);
    if (val)
        s->val = setup_split(s, val, false);
    if (s->world.rank == 0)
        hosts_barrier();
}

/* K classes of the data against those of the model. A model may be trained with more classes than
 * there are; evaluated with fewer, its labels would be those of another list. */
static void check_class_count(const Session *s, bool train, int K)
{
    const Options *o = &s->o;
    const char *hint = "raise --num-classes, or leave it out";
    if (s->weights && !options_config_given(o, "classes"))
        hint = "give --classes the file with the model's classes, in order";
    if (K > s->config.classes)
        die(hint, "the data has %s, the model %d", amount(K, "class").s, s->config.classes);
    if (!train && K < s->config.classes)
        die("labels would be wrong: give --classes the file with the model's classes, in order",
            "%s has %s, the model %d", *o->classes ? o->classes : "the data", amount(K, "class").s,
            s->config.classes);
}

/* "data      flowers: 1020 training images, 1020 validation images, 102 classes, 224x224 pixels" */
static void describe_data(const Session *s, const char *spec, int K)
{
    char train[80] = "", val[80] = "";
    if (s->train)
        snprintf(train, sizeof train, "%s, ",
                 amount((double)data_count(s->train), "training image").s);
    if (s->val)
        snprintf(val, sizeof val, "%s, ", amount((double)data_count(s->val), "validation image").s);
    report_line("data      %s: %s%s%s, %dx%d pixels", spec, train, val, amount(K, "class").s,
                s->config.image_h, s->config.image_w);
    if (s->train)
        data_describe(s->train, "          training    ", NULL);
    if (s->val)
        data_describe(s->val, "          validation  ", s->train);
}

/* ---- the calls ---- */

/* The number of classes, where it was not given, is the training data's; evaluation keeps the
 * model's. */
void setup_data(Session *s, bool train)
{
    const char *val = validation_spec(&s->o, train);
    s->max_workers = workers_of(s);
    open_splits(s, train, val);
    if (s->train && s->val)
        check_splits(s);
    const Dataset *any = s->train ? s->train : s->val;
    int K = data_classes(any), heads = s->config.classes;
    if (train && !options_config_given(&s->o, "classes"))
        s->config.classes = K;
    check_class_count(s, train, K);
    if (s->run_dir && (!train || s->checkpoint))
        check_run_classes(s, any);
    describe_data(s, train ? s->o.data : val, K);
    if (K <= 5 && s->val)
        printf("          with %s, top5 is always 100\n", amount(K, "class").s);
    check_class_order(s, any, heads);
    check_head_order(s, any, heads);
    check_evaluated(s);
}

/* The loader makes micro-batches where they divide the batch, else whole batches to cut up. With
 * several data parallel ranks it makes this rank's part of each batch: `mine` images at a stride of
 * the whole. */
Loader *setup_loader(const Session *s)
{
    const Axis *dp = &s->split.dp;
    int mine = (int)s->o.batch_size / dp->ranks;
    int chunk = mine % s->micro ? mine : s->micro;
    bool alone = dp->ranks == 1;
    LoaderOptions options = {.batch = alone ? chunk : mine,
                             .shuffle = true,
                             .start = (long)s->state.samples + (long)mine * dp->rank,
                             .stride = alone ? chunk : s->o.batch_size,
                             .repeats = (int)s->o.repeats,
                             .workers = (int)s->o.workers,
                             .max_workers = s->max_workers,
                             .neighbours = s->world.local_ranks - 1};
    return split_reads(&s->split) ? loader_open(s->train, &options) : NULL;
}
