/* test_data.c - images in: datasets, order and batches.
 *
 * It runs anywhere, on files it writes into a temporary folder.
 */
#include <sys/stat.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "data.h"
#include "datasets/classes.h"
#include "datasets/shapes.h"
#include "files.h"
#include "said.h"
#include "image/decoder.h"
#include "util/files.h"

/* ---- order ---- */

static void test_shuffle(void)
{
    static const long sizes[] = {1, 2, 3, 4, 5, 10, 97, 1000, 4096, 4097};
    for (int k = 0; k < COUNT(sizes); k++) {
        long n = sizes[k], moved = 0, same = 0;
        char *seen = xcalloc(n, 1);
        bool exact = true;
        for (long p = 0; p < n; p++) {
            long i = rng_shuffle(5, 3, 0, n, p);
            exact &= i >= 0 && i < n && !seen[i];
            if (i >= 0 && i < n)
                seen[i] = 1;
            moved += i != p;
            same += i == rng_shuffle(5, 4, 0, n, p);
        }
        free(seen);
        CHECK(exact, "a bijection on [0, %ld)", n);
        CHECK(n < 97 || (moved > n - n / 10 && same < n / 10),
              "n %ld: %ld moved, %ld as next epoch", n, moved, same);
    }
    /* Every sample is as likely in every place: chi-squared, 49 degrees of freedom. */
    int count[8][8] = {{0}};
    for (int epoch = 0; epoch < 8000; epoch++)
        for (int p = 0; p < 8; p++)
            count[p][rng_shuffle(1, epoch, 0, 8, p)]++;
    double chi2 = 0;
    for (int p = 0; p < 8; p++)
        for (int i = 0; i < 8; i++)
            chi2 += (count[p][i] - 1000.0) * (count[p][i] - 1000.0) / 1000;
    CHECK(chi2 < 100, "chi-squared %.1f", chi2);
    CHECK(rng_shuffle(1, 0, 0, 1L << 40, 12345) < 1L << 40);
}

/* ---- datasets ---- */

static Decoder *decoder;

static Loader *open_strided(Dataset *d, int batch, bool shuffle, long start, long stride, long end,
                            int workers)
{
    return loader_open(d, &(LoaderOptions){.batch = batch,
                                           .shuffle = shuffle,
                                           .start = start,
                                           .stride = stride,
                                           .end = end,
                                           .workers = workers});
}

static Loader *open_loader(Dataset *d, int batch, bool shuffle, long start, long end, int workers)
{
    return open_strided(d, batch, shuffle, start, batch, end, workers);
}

static const DataOptions defaults = {.train = true,
                                     .images.out_h = 16,
                                     .images.out_w = 16,
                                     .fake_classes = 10,
                                     .fake_count = 50,
                                     .images.augment = true,
                                     .images.filter = FILTER_BICUBIC,
                                     .images.area_min = 0.3,
                                     .images.area_max = 1,
                                     .images.ratio_min = 0.75,
                                     .images.ratio_max = 4 / 3.0,
                                     .images.flip = 0.5,
                                     .seed = 3};

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "%s", path);
}

static void write_text(const char *path, const char *text)
{
    write_file(path, text, strlen(text));
}

/* dir/a/0.ppm .. : grey levels that tell the sample; sample 3*folder + file has level 10 + that. */
static const char *make_folders(const char *name, int folders)
{
    const char *dir = at(temporary, name);
    for (int k = 0; k < folders; k++)
        for (int i = 0; i < 3; i++) {
            char path[512], ppm[11 + 3 * 4];
            Error e;
            snprintf(path, sizeof path, "%s/%c", dir, 'a' + k);
            CHECK(make_dirs(path, &e));
            snprintf(path, sizeof path, "%s/%c/%d.PPM", dir, 'a' + k, i);
            memcpy(ppm, "P6 2 2 255 ", 11);
            memset(ppm + 11, 10 + 3 * k + i, 12);
            write_file(path, ppm, sizeof ppm);
        }
    return dir;
}

static Dataset *open_dir(const char *dir, bool train, const char *classes, Error *e)
{
    DataOptions o = defaults;
    o.spec = dir;
    o.train = train;
    o.classes = classes;
    return data_open(&o, e);
}

static void refuse(const char *dir, bool train, const char *classes, const char *say)
{
    Error e = {"", ""};
    Dataset *d = open_dir(dir, train, classes, &e);
    CHECK(!d && strstr(e.what, say), "expected '...%s...', got '%s'", say, d ? "success" : e.what);
    CHECK(d || e.hint[0], "a hint for '%s'", e.what);
    data_close(d);
}

/* Class files of other programs, which say in their own ways which label a name has. */
static void test_class_lists(void)
{
    static const struct {
        const char *text, *says; /* NULL: read */
    } cases[] = {
        {"[\"ant\", \"bee\"]", "JSON or Python"},
        {"\n {'ant': 0, 'bee': 1}", "JSON or Python"},
        {"id,name\n0,ant\n1,bee\n", "'id,name', is a heading"},
        {"names:\n  0: ant\n  1: bee\n", "'names:', is a heading"},
        {"bee,1\nant,0\n", "line 1, 'bee,1', carries another number"},
        {"1: ant\n3: cat\n2: bee\n", "line 2, '3: cat', carries another number"},
        {"0: ant\n1: bee\n", NULL},
        {"1 ant\n2 bee\n", NULL},
        {"ant,0\nbee,1\n", NULL},
        {"10 ant\n2 bee\n", NULL},
        {"background\nclass 1\nclass 2\n", NULL},
        {"5\n4\n3\n2\n1\n", NULL},
        {"2 stars\n1 star\n", NULL}, /* warned of */
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Error e = {"", ""};
        Names names = {0};
        const char *path = at(temporary, "list.txt");
        write_text(path, cases[i].text);
        bool ok = classes_read(path, &names, &e);
        CHECK(cases[i].says ? !ok && strstr(e.what, cases[i].says) && *e.hint : ok, "%d: %s", i,
              e.what);
        names_free(&names);
    }
}

static void test_folders(void)
{
    Error e = {"", ""};
    const char *dir = make_folders("set", 4), *classes = at(temporary, "classes.txt");
    Dataset *d = open_dir(dir, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 12 && data_classes(d) == 4);
        CHECK(strcmp(data_class_name(d, 2), "c") == 0);
        CHECK(data_sample(d, decoder, 7, 0, 0, out) == 2 && out[0] == 17 && data_label(d, 7) == 2);
        char *one = data_sample_path(d, 7), *other = data_sample_path(d, 8);
        CHECK(strstr(one, "/c/1.PPM") && strstr(other, "/c/2.PPM"), "%s, %s", one, other);
        free(one);
        free(other);
        data_close(d);
    }
    write_text(classes, "z zebra\r\nd\nc third one\na\nb b\n\n");
    d = open_dir(dir, true, classes, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        CHECK(data_classes(d) == 5 && data_label(d, 0) == 3 && data_label(d, 6) == 2);
        data_close(d);
    }
    write_text(classes, "a\nb\nd\n");
    refuse(dir, true, classes, "/c is not in");
    write_text(classes, "0,a\n1,b\n2,c\n3,d\n");
    CHECK(!open_dir(dir, true, classes, &e) && strstr(e.hint, "the first one is '0,a'"), "%s",
          e.hint);
    write_text(classes, "a\nb\n\nc\nd\n");
    refuse(dir, true, classes, "line 3 is empty");
    write_text(classes, "a\nb\na\nc\nd\n");
    refuse(dir, true, classes, "lines 1 and 3");
    refuse(dir, true, at(temporary, "none.txt"), "none.txt: cannot open");
    refuse(dir, true, temporary, "cannot read");
    write_file(classes, "a\0b", 3);
    refuse(dir, true, classes, "not a text file");
    write_text(classes, "\n");
    refuse(dir, true, classes, "no classes");
    CHECK(make_dirs(at(dir, "empty"), &e));
    refuse(dir, true, NULL, "empty has no images");
    write_text(at(dir, "empty/notes"), "");
    write_text(at(dir, "empty/list.txt"), "");
    refuse(dir, true, NULL, "empty has no images, only 2 other files (");
    refuse(at(temporary, "missing"), true, NULL, "no such directory");
    CHECK(make_dirs(at(temporary, "bare"), &e));
    refuse(at(temporary, "bare"), true, NULL, "no class folders");
    CHECK(make_dirs(at(temporary, "bare/train/a"), &e));
    CHECK(make_dirs(at(temporary, "bare/val/a"), &e));
    refuse(at(temporary, "bare"), false, NULL, "bare/val has no images");
}

/* The folders of a set with pictures: "Train/a" has 0.ppm. */
static const char *make_set(const char *name, const char *const *folders)
{
    static const char ppm[] = "P6 2 2 255 abcabcabcabc";
    Error e;
    const char *dir = at(temporary, name);
    for (; *folders; folders++) {
        CHECK(make_dirs(at(dir, *folders), &e), "%s", e.what);
        char *path = xasprintf("%s/%s/0.ppm", dir, *folders);
        write_file(path, ppm, sizeof ppm - 1);
        free(path);
    }
    return dir;
}

/* Tiny ImageNet's layout: validation images in one folder, and a list of their labels. */
static void test_list(void)
{
    static const struct {
        const char *list, *says; /* NULL: opened */
    } cases[] = {
        {"0.ppm\tn2\t0\t0\t9\t9\r\n1.ppm\tn1\t0\t0\t9\t9\n\n", NULL},
        {"0.ppm\tn2\n", NULL},
        {"0.ppm\tn2\n0.ppm\tn1\n", "images/0.ppm has two lines"},
        {"0.ppm\tn2\n2.ppm\tn1\n", "images/2.ppm is not there"},
        {"0.ppm\tn2\n1.ppm\n", "annotations.txt:2: no class behind '1.ppm'"},
        {"0.ppm\tn9\n", "the class n9 is not in"},
        {"\n", "has no lines"},
    };
    const char *dir = make_set(
        "tiny", (const char *[]){"train/n1/images", "train/n2/images", "val/images", NULL});
    const char *list = at(dir, "val/val_annotations.txt");
    write_text(at(dir, "val/images/1.ppm"), "P6 1 1 255 abc");
    for (int i = 0; i < COUNT(cases); i++) {
        Error e = {"", ""};
        write_text(list, cases[i].list);
        if (cases[i].says) {
            refuse(dir, false, NULL, cases[i].says);
            continue;
        }
        Dataset *d = open_dir(dir, false, NULL, &e);
        int n = i == 0 ? 2 : 1;
        CHECK(d && data_count(d) == n && data_classes(d) == 2, "%s", e.what);
        for (int k = 0; d && k < n; k++) {
            char *path = data_sample_path(d, k);
            int n1 = strstr(path, "/val/images/1.ppm") != NULL;
            CHECK(n1 || strstr(path, "/val/images/0.ppm"), "%s", path);
            CHECK(data_label(d, k) == !n1, "%s is %d", path, data_label(d, k));
            free(path);
        }
        data_close(d);
    }
    /* sorted into class folders since */
    Error e = {"", ""};
    make_set("tiny", (const char *[]){"val/n1", "val/n2", NULL});
    CHECK(unlink(at(dir, "val/images/0.ppm")) == 0 && unlink(at(dir, "val/images/1.ppm")) == 0 &&
          rmdir(at(dir, "val/images")) == 0);
    Dataset *d = open_dir(dir, false, NULL, &e);
    CHECK(d && data_count(d) == 2, "%s", e.what);
    data_close(d);
}

/* Which folder each split is found in, by what there is; NULL: refused, with the text in `say`. */
static void test_split_names(void)
{
    static const struct {
        const char *folders[8], *train, *val, *say;
    } cases[] = {
        {{"Training/a", "Training/b", "Testing/a", "Testing/b"}, "Training", "Testing", ""},
        {{"train/a", "valid/a", "test/a"}, "train", "valid", ""},
        {{"TRAIN/a", "Dev/a", "Test/a"}, "TRAIN", "Dev", ""},
        {{"train/a", "VALIDATION/a"}, "train", "VALIDATION", ""},
        {{"training_set/a", "test_set/a"}, "training_set", "test_set", ""},
        {{"Train Images/a", "Validation-Data/a"}, "Train Images", "Validation-Data", ""},
        {{"a", "b"}, "", "", ""},
        {{"a", "trainer", "tests"}, "", "", ""},
        {{"train/a", "val/a", "valid/a"}, "train", NULL, "has both val/ and another folder"},
        {{"train/a", "Train/a"}, NULL, NULL, "no val/"},
        {{"train/a", "test"}, "train", NULL, "test has 1 picture, but no class folders"},
        {{"train", "bus", "car"}, NULL, NULL, ""},
        {{"test", "bus", "car"}, NULL, NULL, ""},
        {{"seg_pred/1/a", "seg_pred/2/a", "seg_train/seg_train/a", "seg_train/other/a"},
         NULL,
         NULL,
         "such as seg_train/"},
        {{"flowers/train/a", "flowers/val/a"}, NULL, NULL, "flowers/train"},
        {{"one/a", "one/b", "two/a"}, NULL, NULL, "in it have no pictures, but folders"},
        {{"a/images", "b/images"}, "", "", ""},
        {{"train2017/a", "val2017/a"}, "train2017", "val2017", ""},
        {{"train/a", "train/b", "val", "devkit"}, "train", NULL, "1 picture, but no class folders"},
        /* Intel's images and Stanford's cars as Kaggle has them, Places365, Office-31 */
        {{"seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a",
          "seg_pred/seg_pred"},
         NULL,
         NULL,
         "seg_test/ and seg_train/ are called like splits"},
        {{"cars_train", "cars_test"},
         NULL,
         NULL,
         "cars_test/ and cars_train/ are called like splits"},
        {{"seg_train/seg_train/a", "seg_train/seg_train/b", "seg_pred/seg_pred"},
         NULL,
         NULL,
         "such as seg_train/seg_train/a"},
        {{"data_256/a/bar", "data_256/b/bus", "val_256"},
         NULL,
         NULL,
         "has no pictures, but folders"},
        {{"amazon/images/mug", "amazon/images/pen", "dslr/images/mug", "dslr/images/pen"},
         NULL,
         NULL,
         "such as amazon/images/mug"},
        {{"cat", "dog/big", "dog/small"}, "", "", ""},
        {{"test_tube", "train_station"}, "", "", ""},
        {{"images"}, NULL, NULL, "its folder images/ is called like what is in it"},
        {{"Images", "masks"}, NULL, NULL, "Images/ and others are called like what is in"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        char name[16];
        snprintf(name, sizeof name, "case%d", i);
        const char *dir = make_set(name, cases[i].folders);
        for (int train = 0; train < 2; train++) {
            Error e = {"", ""};
            const char *want = train ? cases[i].train : cases[i].val;
            Dataset *d = open_dir(dir, train, NULL, &e);
            CHECK((d != NULL) == (want != NULL), "case %d: %s", i, d ? "opened" : e.what);
            if (!d && !(train && i == 9))
                CHECK(strstr(e.what, cases[i].say) && e.hint[0], "case %d: %s", i, e.what);
            char *path = d ? data_sample_path(d, 0) : xstrdup("");
            char *root = xasprintf("%s/%s%s", dir, want ? want : "", want && *want ? "/" : "");
            CHECK(!d || strncmp(path, root, strlen(root)) == 0, "case %d: %s", i, path);
            free(root);
            free(path);
            data_close(d);
        }
    }
    Error e = {"", ""};
    Dataset *d = open_dir(make_set("alike", (const char *const[]){"train/a", "val/A", NULL}), false,
                          NULL, &e);
    CHECK(!d && strstr(e.what, "train, but 'a' is") && strstr(e.hint, "capitals"), "%s", e.what);
    d = open_dir(make_set("inner", (const char *const[]){"train/a", "train/val", NULL}), true, NULL,
                 &e);
    check_said(d, "inner/train/val is taken for a class: --classes FILE");
    data_close(d);
    static const char *const endings[][2] = {{"x.parquet", "Hugging Face"},
                                             {"x.ZIP", "unpack"},
                                             {"x.tar", "--data wds:"},
                                             {"data_batch_1.bin", "--data cifar10:DIR"},
                                             {"labels.csv", "csv, json"}};
    for (int i = 0; i < COUNT(endings); i++) {
        char *dir = xasprintf("%s/ending%d", temporary, i),
             *file = xasprintf("%s/%s", dir, *endings[i]);
        CHECK(make_dirs(dir, &e), "%s", e.what);
        write_text(file, "");
        d = open_dir(dir, true, NULL, &e);
        CHECK(!d && strstr(e.what, "no class folders") && strstr(e.hint, endings[i][1]), "%s; %s",
              e.what, e.hint);
        free(dir);
        free(file);
    }
    make_set("photos", (const char *[]){"train/a", "val/a", NULL});
    CHECK(rename(at(temporary, "photos/val/a/0.ppm"), at(temporary, "photos/val/a/0.heic")) == 0);
    write_text(at(temporary, "photos/val/a/0.heic"), "ftypheic");
    d = open_dir(at(temporary, "photos"), false, NULL, &e);
    CHECK(!d && strstr(e.what, "no images, only 1 other file (.heic)") && strstr(e.hint, "convert"),
          "%s; %s", e.what, e.hint);
    refuse("s3://bucket/set", true, NULL, "is an address");
    d = open_dir(at(temporary, "case0"), false, NULL, &e);
    check_said(d, "case0 has no val/: ");
    data_close(d);
    /* A class file says that such names are classes. */
    const char *list = at(temporary, "vehicles.txt");
    write_text(list, "bus\ntrain\ncar\n");
    d = open_dir(at(temporary, "case11"), true, list, &e);
    CHECK(d && data_classes(d) == 3 && data_count(d) == 3, "%s", e.what);
    data_close(d);
    write_text(list, "one\ntwo\n");
    d = open_dir(at(temporary, "case15"), true, list, &e);
    CHECK(d && data_classes(d) == 2 && data_count(d) == 3, "%s", e.what);
    data_close(d);
}

/* Endings of any case, names without one or with blanks; what is no picture is counted. */
static void test_endings(void)
{
    Error e = {"", ""};
    static const char *const pictures[] = {"1.PPM",  "2.jfif",  "3.JPE",  "4.jif",       "5",
                                           "6.jpg ", "7.photo", "8.p.m ", "9.jfif\u00a0"};
    static const char *const others[] = {"1.txt", "2.TXT", "3.heic", "4", "bmw.txt"};
    const char *dir = at(temporary, "endings");
    for (int k = 0; k < 2; k++) {
        const char *folder = at(dir, k ? "b" : "a");
        CHECK(make_dirs(folder, &e));
        for (int i = 0; i < COUNT(pictures); i++)
            write_text(at(folder, pictures[i]), "P6 2 2 255 abcabcabcabc");
        for (int i = 0; i < COUNT(others); i++)
            write_text(at(folder, others[i]), i == 4 ? "BMW" : "no picture");
    }
    write_text(at(dir, "beside.jpg"), "");
    Dataset *d = open_dir(dir, true, NULL, &e);
    CHECK(d && data_count(d) == 18, "%ld: %s", d ? data_count(d) : -1, e.what);
    check_said(d, "/endings: 18 images of 2 classes; passed over: 2 .heic, 6 .txt, 1 beside "
                  "the class folders, 2 without an ending\n");
    data_close(d);
    d = open_dir(make_set("single", (const char *const[]){"train/a", NULL}), true, NULL, &e);
    check_said(d, "note: there is one class, 'a'");
    data_close(d);
}

static void test_class_order(void)
{
    static const char *const folders[] = {"1", "2", "10", "a", "B", "a1", "ab", "a-", "A01", NULL};
    static const char *const want[] = {"1 10 2 A01 B a a- a1 ab", "1 2 10 A01 B a a1 a- ab",
                                       "1 2 10 a A01 a1 a- ab B"};
    const char *dir = make_set("order", folders);
    DataOptions o = defaults;
    o.spec = dir;
    for (int order = 0; order < COUNT(want); order++) {
        Error e = {"", ""};
        char names[128] = "";
        o.class_order = order;
        Dataset *d = data_open(&o, &e);
        for (int k = 0; d && k < data_classes(d); k++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", k ? " " : "",
                     data_class_name(d, k));
        CHECK(strcmp(names, want[order]) == 0, "%s, not %s", names, want[order]);
        CHECK(d && data_order_matters(d));
        for (long i = 0; d && i < data_count(d); i++) {
            char *path = data_sample_path(d, i), part[16];
            snprintf(part, sizeof part, "/%s/", data_class_name(d, data_label(d, i)));
            CHECK(strstr(path, part) != NULL, "%s is %s", path, part);
            free(path);
        }
        data_close(d);
    }
    Error e = {"", ""};
    Dataset *d = open_dir(make_set("unordered", (const char *const[]){"a", "b", "c1", NULL}), true,
                          NULL, &e);
    CHECK(d && !data_order_matters(d));
    data_close(d);
    const char *list = at(temporary, "ordered.txt");
    write_text(list, "10\n2\na\n");
    d = open_dir(make_set("listed", (const char *const[]){"2", "10", "a", NULL}), true, list, &e);
    CHECK(d && !data_order_matters(d) && data_label(d, 0) == 0, "a file settles it");
    data_close(d);
}

/* Lists as Windows writes them; the two forms in which Unicode has accented letters. */
static void test_class_files(void)
{
    Error e = {"", ""};
    const char *list = at(temporary, "bom.txt");
    write_text(list, "\xEF\xBB\xBF"
                     "a\r\nb\r\n");
    Dataset *d = open_dir(make_set("bom", (const char *const[]){"a", "b", NULL}), true, list, &e);
    CHECK(d && data_classes(d) == 2 && strcmp(data_class_name(d, 0), "a") == 0, "%s", e.what);
    data_close(d);
    static const char *const forms[][2] = {{"caf\u00e9", "cafe\u0301"},
                                           {"\uac00", "\u1100\u1161"},
                                           {"\u304c", "\u304b\u3099"},
                                           {"caf\u00e8", "caf\u00e9"}};
    for (int i = 0; i < COUNT(forms); i++)
        for (int swap = 0; swap < 2; swap++) {
            char name[16], line[32];
            snprintf(name, sizeof name, "form%d-%d", i, swap);
            snprintf(line, sizeof line, "%s\n", forms[i][swap]);
            write_text(list, line);
            const char *dir = make_set(name, (const char *const[]){forms[i][!swap], NULL});
            refuse(dir, true, list, i < 3 ? "a name that looks the same" : "is not in");
            d = open_dir(dir, true, list, &e);
            CHECK(!d && !strstr(e.what, "looks the same") == (i == 3), "%s", e.what);
        }
}

/* Labels of val/ follow train/, also where a class is missing in val/. */
static void test_splits(void)
{
    Error e = {"", ""};
    make_folders("splits/train", 3);
    refuse(at(temporary, "splits"), false, NULL, "no val/");
    make_folders("splits/validation", 3);
    char path[256];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/splits/validation/a/%d.PPM", temporary, i);
        CHECK(unlink(path) == 0);
    }
    for (int emptied = 0; emptied < 2; emptied++) { /* an empty folder, or none */
        Dataset *d = open_dir(at(temporary, "splits"), false, NULL, &e);
        if (CHECK(d != NULL, "%s", e.what))
            CHECK(data_count(d) == 6 && data_classes(d) == 3 && data_label(d, 0) == 1);
        check_said(d, "note: no images of 1 of 3 classes here: a\n");
        data_close(d);
        rmdir(at(temporary, "splits/validation/a"));
    }
    CHECK(make_dirs(at(temporary, "splits/validation/x"), &e));
    refuse(at(temporary, "splits"), false, NULL, "x is not in");
}

/* ---- a share for validation ---- */

static Dataset *open_share(const char *dir, bool train, double fraction, Error *e)
{
    DataOptions o = defaults;
    o.spec = dir;
    o.train = train;
    o.val_fraction = fraction;
    return data_open(&o, e);
}

/* dir/x/img_000.ppm .., `n` of them */
static void fill_class(const char *dir, const char *class, int n)
{
    Error e;
    CHECK(make_dirs(at(dir, class), &e));
    for (int i = 0; i < n; i++) {
        char *path = xasprintf("%s/%s/img_%03d.ppm", dir, class, i);
        write_file(path, "P6 1 1 255 abc", 14);
        free(path);
    }
}

/* Both parts of a folder are all of it and nothing twice; in each class `share` are for validation.
 * Returns a sum over the names of these, which says which they are. */
static unsigned long check_share(const char *dir, double fraction, const int *images,
                                 const int *share, int classes)
{
    Error e = {"", ""};
    Dataset *part[2] = {open_share(dir, false, fraction, &e), open_share(dir, true, fraction, &e)};
    int n[2][8] = {{0}};
    unsigned long sum = 0;
    for (int p = 0; p < 2 && CHECK(part[p] != NULL, "%s", e.what); p++)
        for (long i = 0; i < data_count(part[p]); i++) {
            char *path = data_sample_path(part[p], i);
            n[p][data_label(part[p], i)]++;
            for (const char *c = strstr(path, "img_"); p == 0 && *c; c++)
                sum = sum * 31 + (unsigned char)*c;
            free(path);
        }
    for (int k = 0; k < classes; k++)
        CHECK(n[0][k] == share[k] && n[0][k] + n[1][k] == images[k],
              "%g of class %d: %d for validation, %d for training", fraction, k, n[0][k], n[1][k]);
    for (int p = 0; p < 2 && part[p]; p++) {
        CHECK(data_split(part[p]) == (p ? SPLIT_TRAIN : SPLIT_VAL));
        data_close(part[p]);
    }
    return sum;
}

static void test_share(void)
{
    Error none = {"", ""};
    const char *few = at(temporary, "one of each");
    fill_class(few, "a", 1);
    fill_class(few, "b", 1);
    CHECK(!open_share(few, false, 0.5, &none) && strstr(none.what, "one image in each class"), "%s",
          none.what);
    CHECK(make_dirs(at(temporary, "tars"), &none));
    write_text(at(temporary, "tars/0.tar"), "");
    CHECK(!open_share(at(temporary, "tars"), true, 0, &none) && strstr(none.hint, "wds:"), "%s",
          none.hint);
    static const int images[] = {200, 3, 1, 2}, tenth[] = {20, 1, 0, 1}, half[] = {100, 2, 0, 1};
    static const char *const names[] = {"a", "b", "c", "d"};
    const char *dir = at(temporary, "share"), *moved = at(temporary, "elsewhere_than_that");
    Error e = {"", ""};
    for (int k = 0; k < COUNT(images); k++)
        fill_class(dir, names[k], images[k]);
    unsigned long was = check_share(dir, 0.1, images, tenth, 4);
    check_share(dir, 0.5, images, half, 4);
    CHECK(was == 7329759415216460704u, "other images than on other machines: %lu", was);
    CHECK(rename(dir, moved) == 0);
    CHECK(check_share(moved, 0.1, images, tenth, 4) == was, "others where the folder is moved");
    CHECK(make_dirs(at(temporary, "share"), &e) && rename(moved, at(dir, "train")) == 0);
    CHECK(check_share(dir, 0.1, images, tenth, 4) == was, "others below train/");
    Dataset *d = open_share(dir, true, 0.1, &e);
    check_said(d, xasprintf("note: %s/train has no validation images: 22 of its 206 are kept for "
                            "that, chosen in each class by a hash of their names (--val-fraction "
                            "0.1)\n",
                            dir));
    data_close(d);
    fill_class(at(dir, "val"), "a", 5);
    d = open_share(dir, false, 0.1, &e);
    CHECK(d && data_count(d) == 5, "what is in val/ comes first");
    check_said(d, xasprintf("note: %s has validation images of its own: --val-fraction has no "
                            "effect\n",
                            dir));
    data_close(d);
    d = open_share("fake", true, 0.1, &e);
    CHECK(!d && strstr(e.what, "folders of pictures") && *e.hint, "%s", e.what);
}

static void link_to(const char *target, const char *path)
{
    CHECK(symlink(target, path) == 0, "%s", path);
}

/* The paths below the root, in order; NULL ends them. */
static void check_paths(Dataset *d, const char *root, const char *const *want)
{
    size_t n = strlen(root) + 1;
    long i = 0;
    for (; d && i < data_count(d) && want[i]; i++) {
        char *path = data_sample_path(d, i);
        CHECK(strlen(path) > n && strcmp(path + n, want[i]) == 0, "%s, not %s", path, want[i]);
        free(path);
    }
    CHECK(d && i == data_count(d) && !want[i], "%ld images", d ? data_count(d) : -1);
}

/* Folders within class folders, links to files, to folders, in circles and to nowhere. */
static void test_nested(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "nested"), *elsewhere = make_folders("elsewhere", 2);
    static const char *const folders[] = {"a/deep/er",   "a/.hidden",      "b/x.jpg",
                                          "a/deep/none", "a/@eaDir/2.jpg", "__MACOSX/a"};
    for (int i = 0; i < COUNT(folders); i++)
        CHECK(make_dirs(at(dir, folders[i]), &e), "%s", e.what);
    static const char *const files[] = {"a/2.jpg",           "a/deep/1.WebP",
                                        "a/deep/er/3.tiff",  "a/.hidden/4.jpg",
                                        "a/.5.jpg",          "a/6.txt",
                                        "b/x.jpg/7.GIF",     "a/jpg",
                                        "top.jpg",           "a/@eaDir/2.jpg/8.jpg",
                                        "__MACOSX/a/._2.jpg"};
    for (int i = 0; i < COUNT(files); i++)
        write_text(at(dir, files[i]), "");
    link_to("..", at(dir, "a/deep/up"));
    link_to("../..", at(dir, "a/deep/top"));
    link_to(".", at(dir, "b/self"));
    link_to("nowhere", at(dir, "b/lost"));
    link_to("nowhere.png", at(dir, "b/lost.png")); /* found when it is read */
    link_to("../a/deep/er", at(dir, "b/er"));
    link_to("../a/deep/er", at(dir, "b/er2")); /* the same a second time */
    link_to("../a/2.jpg", at(dir, "b/2.jpg"));
    link_to(at(elsewhere, "b"), at(dir, "c"));
    static const char *const want[] = {
        "a/2.jpg",    "a/deep/1.WebP", "a/deep/er/3.tiff", "b/2.jpg", "b/er/3.tiff",
        "b/lost.png", "b/x.jpg/7.GIF", "c/0.PPM",          "c/1.PPM", "c/2.PPM",
        NULL};
    Dataset *d = open_dir(dir, true, NULL, &e);
    CHECK(d && data_classes(d) == 3, "%s", e.what);
    check_paths(d, dir, want);
    data_close(d);
}

static void test_subsets(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "subset");
    make_folders("subset/train", 5);
    make_folders("subset/val", 5);
    static const struct {
        double classes, each;
        int K, n;
    } cases[] = {{0, 0, 5, 15},  {1, 1, 5, 15},    {0.2, 1, 1, 3},   {0.41, 1, 3, 9},
                 {0.4, 1, 2, 6}, {1, 2, 5, 10},    {1, 0.5, 5, 5},   {1, 0.01, 5, 5},
                 {1, 7, 5, 15},  {0.001, 2, 1, 2}, {1, 0.67, 5, 10}, {0.6, 2, 3, 6}};
    for (int i = 0; i < COUNT(cases); i++) {
        DataOptions o = defaults;
        o.spec = dir;
        o.classes_fraction = cases[i].classes;
        o.per_class = cases[i].each;
        Dataset *d = data_open(&o, &e);
        o.train = false;
        Dataset *v = data_open(&o, &e);
        if (CHECK(d && v, "%s", e.what)) {
            CHECK(data_classes(d) == cases[i].K && data_count(d) == cases[i].n,
                  "case %d: %ld images of %d classes", i, data_count(d), data_classes(d));
            CHECK(data_classes(v) == cases[i].K && data_count(v) == 3 * cases[i].K,
                  "case %d: validation has %ld images", i, data_count(v));
        }
        data_close(d);
        data_close(v);
    }
    static const char *const want[] = {"train/a/0.PPM",
                                       "train/a/1.PPM",
                                       "train/b/0.PPM",
                                       "train/b/1.PPM",
                                       "train/c/0.PPM",
                                       "train/c/1.PPM",
                                       NULL};
    DataOptions o = defaults;
    o.spec = dir;
    o.classes_fraction = 0.6;
    o.per_class = 2;
    Dataset *d = data_open(&o, &e);
    check_paths(d, dir, want);
    data_close(d);
    /* A share that comes out a hair below a whole number. */
    DataOptions hundred = defaults;
    hundred.spec = "fake:100";
    hundred.fake_classes = 1;
    hundred.per_class = 0.29;
    d = data_open(&hundred, &e);
    CHECK(d && data_count(d) == 29, "%s", e.what);
    data_close(d);
    /* In the label order of a class file, where the first are other ones. */
    const char *classes = at(temporary, "reversed.txt");
    write_text(classes, "e\nd\nc\nb\na\n");
    o.classes = classes;
    o.classes_fraction = 0.4;
    d = data_open(&o, &e);
    static const char *const reversed[] = {"train/d/0.PPM", "train/d/1.PPM", "train/e/0.PPM",
                                           "train/e/1.PPM", NULL};
    check_paths(d, dir, reversed);
    CHECK(d && data_label(d, 0) == 1 && data_label(d, 3) == 0);
    data_close(d);
}

static void test_damaged_images(void)
{
    Error e = {"", ""};
    const char *dir = make_folders("damaged", 2);
    const char *path[2] = {at(dir, "a/2.PPM"), at(dir, "b/0.PPM")};
    for (int i = 0; i < 2; i++)
        write_text(path[i], "P6 2 2 255 short");
    Dataset *d = open_dir(dir, true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    printf("two warnings about damaged images and one about stars belong here:\n");
    fflush(stdout);
    uint8_t out[3 * 16 * 16];
    for (int epoch = 0; epoch < 3; epoch++)
        CHECK(data_sample(d, decoder, 2, epoch, 0, out) == 1 && out[0] == 14,
              "the next readable one: level %d", out[0]);
    CHECK(data_damaged(d) == 2, "%ld", data_damaged(d));
    Loader *l = open_loader(d, 4, true, 0, 40, 3);
    while (loader_next(l))
        ;
    loader_close(l);
    CHECK(data_damaged(d) == 2, "still %ld", data_damaged(d));
    data_close(d);
}

/* Libraries that other threads are at work in crash when exit() takes them down. */
static void must_not_run(void)
{
    _exit(7);
}

/* Runs through one epoch in a child, perhaps without files that it may open; its exit status, and
 * what it said in *text. */
static int run_apart(const char *dir, double max_damaged, bool files, char **text)
{
    const char *log = at(temporary, "apart.log");
    Error e = {"", ""};
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen(log, "w", stderr))
            _exit(9);
        DataOptions o = defaults;
        o.spec = dir;
        o.max_damaged = max_damaged;
        atexit(must_not_run);
        Dataset *d = data_open(&o, &e);
        struct rlimit none = {STDERR_FILENO + 1, STDERR_FILENO + 1};
        if (!files && setrlimit(RLIMIT_NOFILE, &none) != 0)
            _exit(9);
        Loader *l = d ? open_loader(d, 2, true, 0, data_count(d), 4) : NULL;
        while (l && loader_next(l))
            ;
        _exit(8);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    *text = read_text(log, 1 << 16, &e);
    CHECK(*text != NULL, "%s", e.what);
    return WIFEXITED(status) && *text ? WEXITSTATUS(status) : -1;
}

/* Nor is a picture that cannot be opened for want of descriptors a damaged one. */
static void test_no_descriptors(void)
{
    char *text;
    int status = run_apart(make_folders("unopened", 2), 0, false, &text);
    CHECK(status == 1 && text && strstr(text, "error:") && strstr(text, "ulimit"), "status %d: %s",
          status, text ? text : "");
    free(text);
}

/* A data set without a readable image ends the program, with one error, from any thread. */
static void test_all_damaged(void)
{
    const char *dir = make_folders("hopeless", 1);
    for (int i = 0; i < 3; i++) {
        char path[512], *text;
        snprintf(path, sizeof path, "%s/a/%d.PPM", dir, i);
        write_text(path, "nonsense");
        int status = run_apart(dir, 0, true, &text);
        CHECK(status == (i < 2 ? 8 : 1), "%d damaged: status %d", i + 1, status);
        char *first = text ? strstr(text, "error:") : NULL;
        CHECK((i < 2) == !first, "%s", text ? text : "");
        if (first)
            CHECK(strstr(first, "no readable image") && !strstr(first + 1, "error:"), "%s", text);
        free(text);
    }
}

/* Ten damaged images are borne by the smallest set, more by what is allowed of a larger one. */
static void test_max_damaged(void)
{
    const char *dir = make_folders("worse", 20); /* 60 images */
    static const struct {
        int damaged;
        double allowed;
        bool stops;
    } cases[] = {{1, 0.01, false}, {1, -1, true},    {10, 0.01, false},
                 {11, 0.01, true}, {11, 0.18, true}, {11, 0.19, false},
                 {30, 0.5, false}, {31, 0.5, true},  {31, 0, false}};
    int damaged = 0;
    for (int i = 0; i < COUNT(cases); i++) {
        for (; damaged < cases[i].damaged; damaged++) {
            char path[512];
            snprintf(path, sizeof path, "%s/%c/%d.PPM", dir, 'a' + damaged / 3, damaged % 3);
            write_text(path, "nonsense");
        }
        char *text;
        int status = run_apart(dir, cases[i].allowed, true, &text);
        CHECK(status == (cases[i].stops ? 1 : 8), "case %d: status %d: %s", i, status,
              text ? text : "");
        const char *error = text ? strstr(text, "error:") : NULL;
        if (cases[i].stops)
            CHECK(error && strstr(error, "of 60 images are damaged") && strstr(error, "/worse/") &&
                      strstr(error, "--max-damaged") && strstr(error, "hint:") &&
                      !strstr(error + 1, "error:"),
                  "case %d: %s", i, text ? text : "");
        free(text);
    }
}

static void test_cifar(void)
{
    enum { RECORD = 3073 };
    static uint8_t file[4 * RECORD];
    Error e = {"", ""};
    CHECK(make_dirs(at(temporary, "cifar"), &e));
    for (int i = 0; i < 4; i++) {
        file[i * RECORD] = (uint8_t)(2 * i);
        for (int c = 0; c < 3; c++)
            memset(file + i * RECORD + 1 + c * 1024, 50 * c + i, 1024);
    }
    write_file(at(temporary, "cifar/data_batch_1.bin"), file, 2 * RECORD);
    write_file(at(temporary, "cifar/data_batch_2.bin"), file + 2 * RECORD, 2 * RECORD);
    char spec[256];
    snprintf(spec, sizeof spec, "cifar10:%s", at(temporary, "cifar"));
    Dataset *d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 4 && data_classes(d) == 10);
        check_said(d, "has 2 of the 5 files data_batch_*");
        CHECK(data_sample(d, decoder, 3, 0, 0, out) == 6 && out[0] == 3 && out[1] == 53 &&
              out[2] == 103);
        char *path = data_sample_path(d, 3);
        CHECK(strstr(path, "data_batch_2.bin#1") != NULL, "%s", path);
        free(path);
        data_close(d);
    }
    /* Evaluation shows all of a record, its upper edge too, which a crop would cut off. */
    for (int c = 0; c < 3; c++)
        memset(file + 1 + c * 1024, 255, 64);
    write_file(at(temporary, "cifar/data_batch_1.bin"), file, 2 * RECORD);
    DataOptions o = defaults;
    o.spec = spec;
    o.images.augment = false;
    o.images.crop = CROP_CENTER;
    d = data_open(&o, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        data_sample(d, decoder, 0, 0, 0, out);
        CHECK(out[0] > 220 && out[3 * 16 * 2] < 30, "rows of %d and %d", out[0], out[3 * 16 * 2]);
        data_close(d);
    }
    refuse(spec, false, NULL, "no test_batch");
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, 2 * RECORD - 1);
    refuse(spec, true, NULL, "whole number of 3073-byte records");
    file[0] = 10;
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, RECORD);
    refuse(spec, true, NULL, "label 10");
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, 0);
    refuse(spec, true, NULL, "empty");

    snprintf(spec, sizeof spec, "cifar10:%s/data/cifar10", shared ? shared : "");
    if (!shared || !is_dir(spec + 8)) {
        SKIP("CIFAR-10: no %s", spec + 8);
        return;
    }
    d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what))
        CHECK(data_count(d) == 10000 && strcmp(data_class_name(d, data_label(d, 0)), "frog") == 0);
    data_close(d);
    d = open_dir(spec, false, NULL, &e);
    CHECK(d && data_count(d) == 1000, "%s", e.what);
    data_close(d);
}

static void test_mnist(void)
{
    uint8_t images[16 + 2 * 6] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2};
    uint8_t labels[8 + 2] = {0, 0, 8, 1, 0, 0, 0, 2, 9, 4};
    memset(images + 16, 20, 6);
    memset(images + 22, 70, 6);
    Error e = {"", ""};
    CHECK(make_dirs(at(temporary, "mnist"), &e));
    write_file(at(temporary, "mnist/train-images-idx3-ubyte"), images, sizeof images);
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels);
    char spec[256];
    snprintf(spec, sizeof spec, "mnist:%s", at(temporary, "mnist"));
    Dataset *d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 2 && data_sample(d, decoder, 1, 0, 0, out) == 4 && out[0] == 70 &&
              out[2] == 70);
        data_close(d);
    }
    refuse(spec, false, NULL, "t10k-images");
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    refuse(spec, true, NULL, "not a whole idx1 file");
    labels[7] = 1;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    refuse(spec, true, NULL, "2 images");
    /* No images at all; one that is too long; a product of 2^32 or more. */
    const char *path = at(temporary, "mnist/train-images-idx3-ubyte");
    images[7] = labels[7] = 0;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, 8);
    write_file(path, images, 16);
    refuse(spec, true, NULL, "no images");
    static const uint8_t big[3][12] = {{0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0},
                                       {0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0},
                                       {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}};
    static uint8_t file[16 + 65536] = {0, 0, 8, 3};
    labels[7] = 1;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    for (int k = 0; k < COUNT(big); k++) {
        memcpy(file + 4, big[k], 12);
        write_file(path, file, sizeof file);
        refuse(spec, true, NULL, k == 0 ? "65536 x 1 pixels" : "not a whole idx3 file");
    }
}

static uint8_t *mnist_file(int dims, int n, int first, size_t *size)
{
    *size = 4 + 4 * (size_t)dims + (size_t)n * (dims == 3 ? 4 : 1);
    uint8_t *file = xcalloc(1, *size), *p = file + 4 + 4 * dims;
    file[2] = 8;
    file[3] = (uint8_t)dims;
    file[7] = (uint8_t)n;
    for (int i = 1; i < dims; i++)
        file[7 + 4 * i] = 2;
    for (size_t i = 0; p + i < file + *size; i++)
        p[i] = (uint8_t)(first + (dims == 3 ? 0 : (int)i));
    return file;
}

/* n labels from `first` on, and as many pictures of that level. */
static void write_mnist(const char *dir, const char *stem, int n, int first)
{
    Error e;
    CHECK(make_dirs(dir, &e), "%s", e.what);
    for (int dims = 1; dims <= 3; dims += 2) {
        char name[64];
        size_t size;
        uint8_t *file = mnist_file(dims, n, first, &size);
        snprintf(name, sizeof name, "%s-%s-idx%d-ubyte", stem, dims == 3 ? "images" : "labels",
                 dims);
        write_file(at(dir, name), file, size);
        free(file);
    }
}

/* The layouts of torchvision, and EMNIST's names and numbers of classes. */
static void test_mnist_layouts(void)
{
    const char *dir = at(temporary, "torch"), *raw = at(dir, "MNIST/raw");
    write_mnist(raw, "train", 10, 0);
    write_mnist(raw, "t10k", 3, 4);
    write_mnist(at(dir, "EMNIST/raw"), "emnist-letters-train", 25, 1);
    write_mnist(at(dir, "EMNIST/raw"), "emnist-letters-test", 26, 1);
    write_mnist(at(dir, "EMNIST/raw"), "emnist-balanced-train", 47, 0);
    write_mnist(at(dir, "EMNIST/raw"), "emnist-balanced-test", 5, 0);
    static const struct {
        const char *where;
        int train, val, classes; /* images; -1: refused */
        const char *say;
    } cases[] = {
        {"/MNIST/raw", 10, 3, 10, ""},
        {"/MNIST", 10, 3, 10, ""},
        {"/EMNIST/raw/emnist-letters", 25, 26, 27, "EMNIST's files have rows and columns"},
        {"/EMNIST/emnist-letters", 25, 26, 27, "no image has label 0: labels from 1 to"},
        {"/emnist-balanced", 47, 5, 47, "EMNIST's files have rows and columns"},
        {"/EMNIST", -1, -1, 0, "more than one data set"},
        {"", -1, -1, 0, "more than one data set"},
        {"/none", -1, -1, 0, "has no t"},
    };
    for (int i = 0; i < COUNT(cases); i++)
        for (int train = 0; train < 2; train++) {
            Error e = {"", ""};
            char *spec = xasprintf("mnist:%s%s", dir, cases[i].where);
            int want = train ? cases[i].train : cases[i].val;
            Dataset *d = open_dir(spec, train, NULL, &e);
            if (want < 0)
                CHECK(!d && strstr(e.what, cases[i].say) && e.hint[0], "%s: %s", spec, e.what);
            else if (CHECK(d && data_count(d) == want && data_classes(d) == cases[i].classes,
                           "%s: %d classes: %s", spec, d ? data_classes(d) : 0, e.what) &&
                     (train == 0 || i != 3))
                check_said(d, cases[i].say);
            data_close(d);
            free(spec);
        }
    const char *packed = at(temporary, "packed");
    Error e;
    CHECK(make_dirs(packed, &e));
    write_text(at(packed, "emnist-digits-train-images-idx3-ubyte.gz"), "");
    char *spec = xasprintf("mnist:%s", packed);
    refuse(spec, true, NULL, "digits-train-images-idx3-ubyte.gz is still compressed");
    free(spec);
}

/* Python's version of CIFAR: files that Python made, see test/pickles/make.py; and files that would
 * have something called, or are damaged. */
static void test_pickles(void)
{
    static const struct {
        const char *spec, *first;
        int train, val, labels[4];
    } cases[] = {{"cifar10:test/pickles", "class 0", 4, 2, {0, 1, 2, 3}},
                 {"cifar10:test/pickles/cifar-10-batches-py", "class 0", 4, 2, {0, 1, 2, 3}},
                 {"cifar100:test/pickles", "0", 2, 2, {99, 0}}};
    uint8_t out[3 * 16 * 16];
    Error e = {"", ""};
    for (int i = 0; i < COUNT(cases); i++) {
        Dataset *d = open_dir(cases[i].spec, true, NULL, &e);
        CHECK(d && data_count(d) == cases[i].train &&
                  strcmp(data_class_name(d, 0), cases[i].first) == 0,
              "%s", e.what);
        for (int k = 0; d && k < cases[i].train; k++)
            CHECK(data_sample(d, decoder, k, 0, 0, out) == cases[i].labels[k] && out[0] == k &&
                      out[1] == 90 + k && out[2] == 180 + k,
                  "%s: image %d", cases[i].spec, k);
        data_close(d);
        d = open_dir(cases[i].spec, false, NULL, &e);
        CHECK(d && data_count(d) == cases[i].val, "%s", e.what);
        data_close(d);
    }
    /* One change each of a file that is right; the first is none. */
#define CHANGE(from, to, say)          \
    {                                  \
        from, to, sizeof from - 1, say \
    }
    static const struct {
        const char *from, *to;
        size_t n;
        const char *say;
    } changes[] = {
        CHANGE("_reconstruct", "_reconstruct", NULL),
        CHANGE("_reconstruct", "_reconstrucT", "asks for 'numpy.core.multiarray _reconstrucT'"),
        CHANGE("numpy\nndarray", "numpy\nfromfil", "asks for 'numpy fromfil'"),
        CHANGE("cnumpy\ndtype", "cposix\nabort", "asks for 'posix abort'"),
        CHANGE("numpy\nndarray", "numpy ndarra\033", "asks for 'numpy ndarra?"),
        CHANGE("cnumpy\nndarray", "]q\1q\2q\3q\4q\5q\6q\7q\7", "an object that is no array"),
        CHANGE("\200\002}", "\200\004}", "protocol 4"),
        CHANGE("\200\002}", "\200\002i", "an operation that is not known here: 0x69"),
        CHANGE("\200\002}", "\200\002]", "nothing to add to"),
        CHANGE("U\006labels", "U\006lables", "-1 labels in 'labels'"),
        CHANGE("U\004data", "U\004date", "-1 bytes in 'data'"),
        CHANGE("U\002u1", "U\002i1", "-1 bytes in 'data'"),
        CHANGE("K\002M", "K\003M", "bytes in 'data', which is not"),
        CHANGE("K\002M\000\014", "K\002M\000\030", "bytes in 'data', which is not"),
        CHANGE("K\000K\001e", "K\000K\012e", "label 1 is 10"),
        CHANGE("K\000K\001e", "K\000K\001a", "nothing to add to"),
        CHANGE("K\000K\001e", "N\210K\001e", "3 labels"),
        CHANGE("\014\206", "\014\207", "an array of a version"),
        CHANGE("T\000\030", "T\001\030", "byte"),
        CHANGE("U\006labels", "U\377labels", "byte"),
        CHANGE("q\003]", "q\377]", "a place in the memo that cannot be"),
        CHANGE("q\003]", "h\003]", "nothing in this place of the memo"),
    };
#undef CHANGE
    const char *dir = at(temporary, "pickles"), *path = at(dir, "data_batch_1");
    char *spec = xasprintf("cifar10:%s", dir);
    CHECK(make_dirs(dir, &e));
    FILE *f = fopen("test/pickles/cifar-10-batches-py/data_batch_1", "rb");
    static char good[1 << 14], file[1 << 14];
    size_t n = f ? fread(good, 1, sizeof good, f) : 0;
    CHECK(f && fclose(f) == 0 && n > 6144);
    for (int i = 0; i < COUNT(changes); i++) {
        memcpy(file, good, n);
        char *found = memmem(file, n, changes[i].from, changes[i].n);
        if (!CHECK(found != NULL, "change %d", i))
            continue;
        memcpy(found, changes[i].to, changes[i].n);
        write_file(path, file, n);
        if (changes[i].say) {
            refuse(spec, true, NULL, changes[i].say);
            continue;
        }
        Dataset *d = open_dir(spec, true, NULL, &e);
        CHECK(d && data_count(d) == 2, "%s", e.what);
        data_close(d);
    }
    for (size_t cut = 1; cut < n; cut += cut < 300 ? 1 : 797) {
        write_file(path, good, cut);
        refuse(spec, true, NULL, "data_batch_1: byte");
    }
    free(spec);
}

/* ---- directories ---- */

/* The reason is mkdir's. Nobody may write to a directory without its write bits, except root. */
static void test_make_dirs(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "locked"), *file = at(temporary, "plain");
    write_text(file, "");
    CHECK(!make_dirs(file, &e) && strstr(e.what, "a file is in its place") && e.hint[0]);
    CHECK(!make_dirs("", &e) && e.hint[0]);
    CHECK(make_dirs(dir, &e) && make_dirs(dir, &e), "%s", e.what);
    uid_t me = geteuid();
    if (chmod(dir, 0555) != 0 || chmod(temporary, 0711) != 0 || (me == 0 && seteuid(65534) != 0)) {
        SKIP("an unwritable directory: cannot become another user");
        return;
    }
    bool ok = make_dirs(at(dir, "new"), &e);
    CHECK(me != 0 || seteuid(me) == 0);
    CHECK(!ok && strstr(e.what, "Permission denied") && e.hint[0], "%s", e.what);
}

static void test_shapes(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "shapes");
    CHECK(shapes_write(dir, 3, 2, 32, 5, &e), "%s", e.what);
    Dataset *d = open_dir(dir, true, NULL, &e), *v = open_dir(dir, false, NULL, &e);
    CHECK(d && data_count(d) == 30 && data_classes(d) == 10, "%s", e.what);
    CHECK(v && data_count(v) == 20);
    data_close(d);
    data_close(v);
    /* A second call with the same arguments does nothing; other arguments are refused. */
    CHECK(unlink(at(dir, "train/ring/0001.jpg")) == 0);
    CHECK(shapes_write(dir, 3, 2, 32, 5, &e) && !path_exists(at(dir, "train/ring/0001.jpg")));
    CHECK(!shapes_write(dir, 3, 2, 32, 6, &e) && strstr(e.what, "another set"));
    /* An image does not depend on how many there are. */
    const char *more = at(temporary, "more");
    CHECK(shapes_write(more, 5, 1, 32, 5, &e), "%s", e.what);
    CHECK(mean_difference(at(dir, "train/star/0002.jpg"), at(more, "train/star/0002.jpg")) == 0);
    CHECK(mean_difference(at(dir, "train/star/0002.jpg"), at(more, "train/star/0001.jpg")) > 1);
}

/* ---- batches ---- */

/* FNV-1a of all batches from position `start` on; *images counts them. */
static uint64_t hash_run(Dataset *d, int batch, long start, long end, int workers, long *images)
{
    size_t bytes = 3 * 16 * 16;
    uint64_t h = 14695981039346656037u;
    Loader *l = open_loader(d, batch, true, start, end, workers);
    const Batch *b;
    *images = 0;
    while ((b = loader_next(l))) {
        CHECK(b->position == start + *images && b->n > 0 && b->n <= batch);
        for (int i = 0; i < b->n; i++) {
            for (size_t k = 0; k < bytes; k++)
                h = (h ^ b->images[i * bytes + k]) * 1099511628211u;
            h = (h ^ (uint64_t)b->labels[i]) * 1099511628211u;
        }
        *images += b->n;
    }
    CHECK(loader_next(l) == NULL && loader_stats(l).waited >= 0);
    loader_close(l);
    return h;
}

static void test_loader(void)
{
    Error e = {"", ""};
    Dataset *d = open_dir(at(temporary, "shapes"), true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    static const int workers[] = {1, 2, 3, 7};
    long n, end = 2 * data_count(d) + 11; /* into the third epoch */
    uint64_t first = hash_run(d, 8, 0, end, 1, &n), later = hash_run(d, 8, 40, end, 1, &n);
    for (int k = 0; k < COUNT(workers); k++) {
        CHECK(hash_run(d, 8, 0, end, workers[k], &n) == first && n == end, "%d workers",
              workers[k]);
        CHECK(hash_run(d, 5, 0, end, workers[k], &n) == first, "batches of another size");
        CHECK(hash_run(d, 8, 40, end, workers[k], &n) == later && n == end - 40, "a later start");
    }
    CHECK(hash_run(d, 8, 0, end - 1, 2, &n) != first);

    /* The later start is the tail of the whole; two strided readers are the halves of the whole. */
    Loader *whole = open_loader(d, 8, true, 0, end, 2), *tail = open_loader(d, 8, true, 40, end, 3);
    Loader *half[2] = {open_strided(d, 4, true, 0, 8, end, 1),
                       open_strided(d, 4, true, 4, 8, end, 2)};
    const Batch *b;
    for (int k = 0; (b = loader_next(whole)); k++) {
        for (int r = 0; r < 2; r++) {
            const Batch *h = loader_next(half[r]);
            int want = b->n - 4 * r < 4 ? b->n - 4 * r : 4;
            CHECK(h ? h->n == want && memcmp(h->images, b->images + r * 4 * 768, 768 * want) == 0
                    : want <= 0,
                  "half %d of batch %d", r, k);
        }
        if (k < 5)
            continue;
        const Batch *t = loader_next(tail);
        CHECK(t && t->n == b->n && t->position == b->position &&
                  memcmp(t->images, b->images, 768 * b->n) == 0 &&
                  memcmp(t->labels, b->labels, sizeof(int) * b->n) == 0,
              "batch %d", k);
    }
    loader_close(whole);
    loader_close(tail);
    loader_close(half[0]);
    loader_close(half[1]);
    loader_close(open_loader(d, 3, true, 0, 0, 4)); /* closed while it fills */
    data_close(d);
}

/* Every rank's share together is each sample once, whatever the numbers are. */
static void test_ranks(void)
{
    static const int cases[][3] = {/* images, batch, ranks */
                                   {30, 8, 1}, {30, 8, 2},  {30, 8, 4}, {30, 6, 3}, {7, 8, 2},
                                   {1, 4, 2},  {60, 60, 5}, {61, 7, 7}, {64, 16, 2}};
    for (int c = 0; c < COUNT(cases); c++) {
        int n = cases[c][0], batch = cases[c][1], ranks = cases[c][2], share = batch / ranks;
        DataOptions o = defaults;
        Error e;
        char spec[32];
        snprintf(spec, sizeof spec, "fake:%d", n);
        o.spec = spec;
        o.fake_classes = n; /* the label says which sample it is */
        Dataset *d = data_open(&o, &e);
        int epochs = 3, *seen = xcalloc((size_t)epochs * n, sizeof *seen);
        for (int shuffle = 0; d && shuffle < 2; shuffle++) {
            memset(seen, 0, sizeof *seen * (size_t)epochs * n);
            for (int rank = 0; rank < ranks; rank++) {
                Loader *l = open_strided(d, share, shuffle, (long)rank * share, batch,
                                         (long)epochs * n, 1 + rank % 3);
                for (const Batch *b; (b = loader_next(l));)
                    for (int i = 0; i < b->n; i++)
                        seen[(b->position + i) / n * n + b->labels[i]]++;
                loader_close(l);
            }
            for (int i = 0; i < epochs * n; i++)
                CHECK(seen[i] == 1, "case %d: sample %d of epoch %d: %d times", c, i % n, i / n,
                      seen[i]);
        }
        free(seen);
        data_close(d);
    }
}

/* Repeats: each of the first n/R samples in an epoch's order R times, 64 positions apart. */
static void test_repeats(void)
{
    static const int cases[][2] = {{384, 3}, {1000, 2}, {50, 4}, {129, 2}, {256, 1}, {2, 2}};
    for (int c = 0; c < COUNT(cases); c++) {
        int n = cases[c][0], R = cases[c][1];
        DataOptions o = defaults;
        Error e;
        char spec[32];
        snprintf(spec, sizeof spec, "fake:%d", n);
        o.spec = spec;
        o.fake_classes = n;
        Dataset *d = data_open(&o, &e);
        if (!CHECK(d != NULL, "%s", e.what))
            return;
        Loader *l = loader_open(
            d, &(LoaderOptions){
                   .batch = 7, .shuffle = true, .repeats = R, .end = 2L * n, .workers = 3});
        int *label = xcalloc(2 * (size_t)n, sizeof *label), *times = xcalloc(2 * (size_t)n, 4);
        for (const Batch *b; (b = loader_next(l));)
            memcpy(label + b->position, b->labels, sizeof(int) * (size_t)b->n);
        loader_close(l);
        int apart = n / R < 64 ? n / R : 64, whole = n / (apart * R) * apart; /* in whole blocks */
        for (int p = 0; p < 2 * n; p++)
            times[p / n * n + label[p]]++;
        for (int epoch = 0; epoch < 2; epoch++)
            for (int k = 0; k < whole; k++) {
                int i = (int)data_order(d, epoch, k),
                    at = epoch * n + k / apart * apart * R + k % apart;
                CHECK(times[epoch * n + i] == R, "sample %d: %d times", i, times[epoch * n + i]);
                for (int r = 0; r < R; r++)
                    CHECK(label[at + apart * r] == i, "%d of %d at %d", i, r, at + apart * r);
            }
        for (int i = 0; i < 2 * n; i++)
            CHECK(times[i] <= R, "sample %d: %d times", i, times[i]);
        free(label);
        free(times);
        data_close(d);
    }
    /* The looks differ, and are the same again. */
    Error e;
    Dataset *d = open_dir(at(temporary, "shapes"), true, NULL, &e);
    uint8_t a[768], b[768];
    int differ = 0;
    for (int i = 0; d && i < 10; i++) {
        data_sample(d, decoder, i, 0, 0, a);
        data_sample(d, decoder, i, 0, 1, b);
        differ += memcmp(a, b, sizeof a) != 0;
        data_sample(d, decoder, i, 0, 0, b);
        CHECK(memcmp(a, b, sizeof a) == 0);
    }
    CHECK(differ == 10, "%d of 10 looks differ", differ);
    /* And that is what the loader shows, in epoch 1. */
    long n = d ? data_count(d) : 0, apart = n / 3;
    Loader *l = d ? loader_open(d, &(LoaderOptions){.batch = 5,
                                                    .shuffle = true,
                                                    .repeats = 3,
                                                    .start = n,
                                                    .end = n + 3 * apart,
                                                    .workers = 2})
                  : NULL;
    for (const Batch *b; l && (b = loader_next(l));)
        for (int i = 0; i < b->n; i++) {
            long p = b->position + i - n;
            int label =
                data_sample(d, decoder, data_order(d, 1, p % apart), 1, (int)(p / apart), a);
            CHECK(label == b->labels[i] && memcmp(a, b->images + i * 768, 768) == 0,
                  "position %ld of the epoch", p);
        }
    loader_close(l);
    data_close(d);
}

/* A reader that waits gets more workers, up to the limit; one that does not keeps the first, or all
 * that it has asked for at once. */
static void test_automatic_workers(void)
{
    Error e;
    DataOptions o = defaults;
    o.spec = "fake:4000";
    o.images.out_h = o.images.out_w = 128;
    Dataset *d = data_open(&o, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    Loader *all = loader_open(
        d, &(LoaderOptions){.batch = 16, .end = 400, .max_workers = 3, .at_once = true});
    CHECK(loader_stats(all).workers == 3, "%d workers", loader_stats(all).workers);
    loader_close(all);
    for (int slow = 0; slow < 2; slow++) {
        Loader *l = loader_open(
            d, &(LoaderOptions){.batch = 16, .end = slow ? 400 : 4000, .max_workers = 3});
        const Batch *b;
        long n = 0;
        for (; (b = loader_next(l)); n += b->n)
            if (slow)
                usleep(30000);
        LoaderStats s = loader_stats(l);
        CHECK(s.workers == (slow ? 1 : 3) && n == (slow ? 400 : 4000), "slow %d: %d workers", slow,
              s.workers);
        loader_close(l);
    }
    data_close(d);
}

static void test_fake(void)
{
    Error e = {"", ""};
    DataOptions o = defaults;
    o.spec = "fake";
    o.fake_count = 0;
    CHECK(!data_open(&o, &e) && e.hint[0], "%s", e.what);
    o.fake_count = 1;
    o.images.out_w = 0;
    CHECK(!data_open(&o, &e) && e.hint[0], "%s", e.what);
    Dataset *d = open_dir("fake", true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    uint8_t a[768], b[768];
    CHECK(data_count(d) == 50 && data_sample(d, decoder, 13, 0, 0, a) == 3);
    data_sample(d, decoder, 13, 1, 0, b);
    CHECK(memcmp(a, b, 768) == 0);
    data_sample(d, decoder, 14, 0, 0, b);
    CHECK(memcmp(a, b, 768) != 0);
    data_close(d);
    d = open_dir("fake:zeros:1234567", true, NULL, &e);
    memset(b, 0, sizeof b);
    CHECK(d && data_count(d) == 1234567 && data_classes(d) == 10, "%s", e.what);
    CHECK(d && data_sample(d, decoder, 1234566, 0, 0, a) == 6 && memcmp(a, b, 768) == 0);
    data_close(d);
    static const char *const bad[] = {"fake:0",      "fake:-5",     "fake:1e3",        "fake:zero",
                                      "fake:zeros5", "fake:zeros:", "fake:99999999999"};
    for (int i = 0; i < COUNT(bad); i++) {
        d = open_dir(bad[i], true, NULL, &e);
        CHECK((d != NULL) == (i == 5) && (d || e.hint[0]), "%s", bad[i]);
        data_close(d);
    }
}

int main(int argc, char **argv)
{
    if (!files_begin(argc, argv))
        return check_report();
    decoder = decoder_new();
    test_shuffle();
    test_class_lists();
    test_folders();
    test_list();
    test_share();
    test_splits();
    test_split_names();
    test_endings();
    test_class_order();
    test_class_files();
    test_nested();
    test_subsets();
    test_damaged_images();
    test_all_damaged();
    test_no_descriptors();
    test_max_damaged();
    test_cifar();
    test_mnist();
    test_mnist_layouts();
    test_pickles();
    test_make_dirs();
    test_shapes();
    test_loader();
    test_fake();
    test_ranks();
    test_repeats();
    test_automatic_workers();
    decoder_free(decoder);
    files_end();
    return check_report();
}
