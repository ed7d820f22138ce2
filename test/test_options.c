/* test_options.c - flags, recipes and learning rates: the pure parts of the host.
 */
#include "check.h"

#include "train/effects.h"
#include "train/help.h"
#include "train/setup.h"
#include "train/synonyms.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- flags ---- */

static bool parse(Options *o, Error *e, int n, const char **args)
{
    char *argv[32] = {(char *)"train_cpu"};
    Settings asked = {0};
    for (int i = 0; i < n; i++)
        argv[i + 1] = (char *)args[i];
    options_init(o);
    bool ok = options_args(o, &asked, n + 1, argv, e);
    return options_apply(o, &asked, ok ? e : NULL) && ok;
}
#define PARSE(...) \
    parse(&o, &e, COUNT(((const char *[]){__VA_ARGS__})), (const char *[]){__VA_ARGS__})

static void test_values(void)
{
    Options o;
    Error e = {"", ""};
    CHECK(PARSE("train", "--batch-size", "32", "--lr=0.5", "--label_smoothing", "0.2"));
    CHECK(o.batch_size == 32 && o.lr == 0.5 && o.label_smoothing == 0.2);
    CHECK(options_given(&o, "lr") && !options_given(&o, "clip") && strcmp(o.command, "train") == 0);
    options_free(&o);
    CHECK(PARSE("eval", "--opt", "lamb", "--schedule", "step", "--decay", "no_1d"));
    CHECK(o.opt == OPT_LAMB && o.schedule == SCHEDULE_STEP && o.decay == DECAY_NO_1D);
    CHECK(strcmp(o.command, "eval") == 0);
    options_free(&o);
    CHECK(PARSE("--no-augment", "--layer-scale", "--no-patch-bias", "--no-ema", "--head-bias",
                "-10"));
    CHECK(!o.augment && o.config.layer_scale && !o.config.patch_bias && o.ema == 0);
    CHECK(o.head_bias == -10);
    options_free(&o);
    CHECK(PARSE("--image-size", "160x96", "--mean", "0.5", "--std", "imagenet", "--pool", "gap"));
    CHECK(o.config.image_h == 160 && o.config.image_w == 96 && o.config.mean_g == 0.5);
    CHECK(o.config.std_b == 0.225 && o.config.pool == POOL_GAP);
    CHECK(options_config_given(&o, "image_h") && !options_config_given(&o, "heads"));
    Config c = vit_config_default();
    c.heads = 7;
    options_apply_config(&o, &c);
    CHECK(c.heads == 7 && c.image_w == 96 && c.std_r == 0.229);
    options_free(&o);
    CHECK(PARSE("--layer-scale=on", "--augment=Off", "--norm_pre=1", "--patch-bias", "no"));
    CHECK(o.config.layer_scale && !o.augment && o.config.norm_pre && !o.config.patch_bias);
    options_free(&o);
    CHECK(PARSE("--classes", "names.txt", "--no-classes", "--no_val_data", "--no-clip"));
    CHECK(options_given(&o, "classes") && !*o.classes && !*o.val_data && o.clip == 0);
    options_free(&o);
    /* decay is on by itself only where it does not pass through the gradient */
    CHECK(PARSE("--seed", "1") && o.weight_decay == 0.05);
    options_free(&o);
    CHECK(PARSE("--opt", "sgd") && o.weight_decay == 0);
    options_free(&o);
    CHECK(PARSE("--opt", "adam") && o.weight_decay == 0);
    options_free(&o);
    CHECK(PARSE("--opt", "sgd", "--opt", "lamb") && o.weight_decay == 0.05);
    options_free(&o);
    CHECK(PARSE("--weight-decay", "0.1", "--opt", "sgd") && o.weight_decay == 0.1);
    options_free(&o);
    CHECK(PARSE("--opt", "sgd", "--weight-decay", "0.2") && o.weight_decay == 0.2);
    options_free(&o);
    /* whole numbers as other programs write them */
    CHECK(PARSE("--steps", "1e4", "--batch-size=64.0", "--seed", "9007199254740993"));
    CHECK(o.steps == 10000 && o.batch_size == 64 && o.seed == 9007199254740993);
    options_free(&o);
    /* lists as argparse takes them */
    CHECK(PARSE("train", "--mean", "0.5", ".25", "1e-1", "--image-size", "32", "48", "--lr", "1"));
    CHECK(o.config.mean_r == 0.5 && o.config.mean_g == 0.25 && o.config.mean_b == 0.1);
    CHECK(o.config.image_h == 32 && o.config.image_w == 48 && o.lr == 1);
    options_free(&o);
    CHECK(PARSE("predict", "--image-size", "32", "a.jpg") && o.n_files == 1);
    options_free(&o);
    CHECK(PARSE("predict", "--lr", "1", "--", "-a.jpg", "--b.jpg") && o.n_files == 2);
    options_free(&o);
    /* the home directory, where no shell has put it */
    setenv("HOME", "/home/me", 1);
    CHECK(PARSE("--data=~/pictures", "--val-data", "cifar10:~/data", "--classes", "a~/b"));
    CHECK(strcmp(o.data, "/home/me/pictures") == 0 && strcmp(o.classes, "a~/b") == 0);
    CHECK(strcmp(o.val_data, "cifar10:/home/me/data") == 0);
    options_free(&o);
    CHECK(PARSE("--epochs", "5", "--steps", "7"));
    CHECK(o.steps == 7 && o.epochs == 0);
    options_free(&o);
    CHECK(PARSE("--steps", "7", "--epochs", "5"));
    CHECK(o.steps == 0 && o.epochs == 5);
    options_free(&o);
}

/* Of bytes instead of pixels in 0..1, as some programs' settings are. */
static void test_means(void)
{
    Error e = {"", ""};
    Config c = vit_config_default();
    CHECK(vit_config_check(&c, &e), "%s", e.what);
    c.mean_g = 116.28;
    CHECK(!vit_config_check(&c, &e) && strstr(e.hint, "by 255"), "%s", e.hint);
}

static void test_wrong(void)
{
    static const struct {
        const char *args[4], *what, *hint;
    } cases[] = {
        {{"--widht", "3"}, "widht", "did you mean --width?"},
        {{"--lr", "fast"}, "--lr: 'fast'", ""},
        {{"--lr", "nan"}, "--lr: 'nan'", ""},
        {{"--lr", "-1"}, "--lr: -1 is outside", ""},
        {{"--batch-size", "0"}, "--batch-size: 0 is outside", ""},
        {{"--batch-size", "1.5"}, "'1.5' is not a whole number", ""},
        {{"--batch-size", "1e-1"}, "'1e-1' is not a whole number", ""},
        {{"--batch-size", "1e99"}, "'1e99' is not a whole number", ""},
        {{"--batch-size", "1k"}, "'1k' is not a whole number", ""},
        {{"--batch-size", "99999999999999999999"}, "--batch-size", ""},
        {{"--opt", "adamx"}, "adamw|adam|sgd|lamb", ""},
        {{"--opt", ""}, "adamw|adam|sgd|lamb", ""},
        {{"--resume", ""}, "--resume: its value is empty", "variable of the shell"},
        {{"--model", ""}, "--model: its value is empty", "variable of the shell"},
        {{"--ema", "--out", "x"}, "--ema needs a value", "decay"},
        {{"--input-size", "3", "32", "32"}, "--input-size: no such setting", "--image-size"},
        {{"--amp", "--out", "x"}, "--amp: no such setting", "--precision"},
        {{"--mixup_alpha", "0.8"}, "--mixup_alpha: no such setting", "here it is --mixup;"},
        {{"--device", "cuda"}, "--device: no such setting", "train_gpu"},
        {{"--weights=", "--lr=1"}, "--weights: its value is empty", "--no-weights"},
        {{"--augment=perhaps", "--lr=1"}, "perhaps", ""},
        {{"--width", "wide"}, "--width: 'wide'", ""},
        {{"--image-width", "x"}, "--image-width: 'x'", "whole number"},
        {{"--num-classes", "x"}, "--num-classes: 'x'", "whole number"},
        {{"--layer-scale=maybe", "--lr=1"}, "--layer-scale: 'maybe'", "true or false"},
        {{"--no-opt", "--lr=1"}, "--opt: '0' is none of", "words"},
        {{"--precision=bfloat16", "--lr=1"},
         "--precision: 'bfloat16' is none of",
         "here it is bf16"},
        {{"--loss", "BCE"}, "--loss: 'BCE' is none of", "here it is sigmoid"},
        {{"--warmup_stesp", "3"}, "--warmup_stesp", "did you mean --warmup-steps?"},
        {{"--image-size", "1x2x3"}, "--image-size: cannot read '1x2x3'", "N|HxW"},
        {{"--image-size", "ax4"}, "--image-size: cannot read 'ax4'", "N|HxW"},
        {{"--mean", "1,2"}, "--mean", ""},
        {{"--lr=1", "--epochs"}, "--epochs needs a value", ""},
        {{"trian", "--lr=1"}, "trian", "did you mean train?"},
        {{"train", "picture.jpg"}, "picture.jpg", ""},
        {{"--recipe", "/nonexistent/recipe.ini"}, "/nonexistent/recipe.ini", ""},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Options o;
        Error e = {"", ""};
        int n = 0;
        while (n < COUNT(cases[i].args) && cases[i].args[n])
            n++;
        bool ok = parse(&o, &e, n, (const char **)cases[i].args);
        bool good = !ok && strstr(e.what, cases[i].what) && strstr(e.hint, cases[i].hint);
        CHECK(good, "%s %s gave '%s', hint '%s'", cases[i].args[0], cases[i].args[1], e.what,
              e.hint);
        options_free(&o);
    }
}

static void test_recipes(void)
{
    Options o;
    Error e = {"", ""};
    options_init(&o);
    CHECK(options_lines(&o,
                        "# comment\n[model]\n\n  width = 96 # inline\nlayer_scale = yes\r\n"
                        "data = \"a # b\"\nout=x#y\nbatch_size =16",
                        "r", &e));
    CHECK(o.config.width == 96 && o.config.layer_scale && o.batch_size == 16);
    CHECK(strcmp(o.data, "a # b") == 0 && strcmp(o.out, "x#y") == 0);
    /* later wins: a preset replaces the width before it, and yields to the one after it */
    CHECK(options_lines(&o, "width = 96\nmodel = Ti/16", "r", &e) &&
          !options_config_given(&o, "width"));
    CHECK(options_lines(&o, "width = 96", "r", &e) && options_config_given(&o, "width"));
    CHECK(!options_lines(&o, "width = 96\nnonsense\n", "r", &e) && strstr(e.what, "r:2: "));
    CHECK(!options_lines(&o, "\n\nhieghts = 3\n", "r", &e) && strstr(e.what, "r:3: "));
    CHECK(options_lines(&o, "data = \"a\\\\b\\\"c\\nd\\x\" # more\nout = a\\n\"b\"", "r", &e));
    CHECK(strcmp(o.data, "a\\b\"c\nd\\x") == 0 && strcmp(o.out, "a\\n\"b\"") == 0);
    CHECK(!options_lines(&o, "data = \"a\n", "r", &e) && strstr(e.what, "quotes of data"));
    CHECK(!options_lines(&o, "data = \"a\\\"\n", "r", &e) && strstr(e.what, "quotes of data"));
    CHECK(!options_lines(&o, "data = \"a\" b\n", "r", &e) && strstr(e.what, "quotes of data"));
    CHECK(!options_lines(&o, "image_w = x\n", "r", &e) && strstr(e.what, "r:1: image_w: 'x'"));
    CHECK(!options_lines(&o, "recipe = other\n", "r", &e));
    CHECK(!options_lines(&o, "=\n", "r", &e));
    options_free(&o);
}

/* Places as absolute paths, with what stands before them; and what a continued run changes. */
static void test_places(void)
{
    static const char *const cases[][3] = {
        {"data", "pictures", "data = %s/pictures\n"},
        {"data", "./a/b", "data = %s/a/b\n"},
        {"data", "/a/b", "data = /a/b\n"},
        {"data", "wds:S/t-{0..3}.tar::../u", "data = wds:%s/S/t-{0..3}.tar::%s/../u\n"},
        {"data", "mnist:m", "data = mnist:%s/m\n"},
        {"data", "fake:zeros:7", "data = fake:zeros:7\n"},
        {"data", "shapes", "data = shapes:%s/data\n"},
        {"data", "shapes:a", "data = shapes:%s/a\n"},
        {"val_data", "none", "val-data = none\n"},
        {"val_data", "", "val-data = \n"},
        {"classes", "c.txt", "classes = %s/c.txt\n"},
        {"index_dir", "i", "index-dir = %s/i\n"},
        {"weights", "w.safetensors", "weights = %s/w.safetensors\n"},
    };
    char here[4096], want[12000];
    Error e = {"", ""};
    Config c = vit_config_default();
    CHECK(getcwd(here, sizeof here) != NULL);
    for (int i = 0; i < COUNT(cases); i++) {
        Options o;
        options_init(&o);
        CHECK(options_set(&o, cases[i][0], cases[i][1], "", &e), "%s", e.what);
        char *text = options_text(&o, &c, "x");
        size_t n = (size_t)snprintf(want, sizeof want, "\n");
        for (const char *p = cases[i][2]; *p; p++) {
            bool is_here = strncmp(p, "%s", 2) == 0;
            n += (size_t)snprintf(want + n, sizeof want - n, "%.*s", is_here ? 4095 : 1,
                                  is_here ? here : p);
            p += is_here;
        }
        CHECK(strstr(text, want) != NULL, "%s: %s", cases[i][1], want);
        free(text);
        options_free(&o);
    }
    Options o;
    options_init(&o);
    char *was = options_text(&o, &c, "x");
    CHECK(options_set(&o, "lr", "0.5", "", &e) && options_set(&o, "classes", "/c", "", &e));
    c.heads = 2;
    char *is = options_text(&o, &c, "y"), *same = options_changes(is, is);
    char *changes = options_changes(was, is);
    CHECK(strcmp(changes, "changed   classes (none) -> /c\nchanged   lr 0.001 -> 0.5\n"
                          "changed   heads 12 -> 2\n") == 0,
          "%s", changes);
    CHECK(!*same, "%s", same);
    free(was);
    free(is);
    free(same);
    free(changes);
    options_free(&o);
}

/* What options_write writes, options_file reads back to the same bits. */
static void test_echo(void)
{
    char path[] = "/tmp/test_options_XXXXXX";
    int fd = mkstemp(path);
    Options o, back;
    Error e = {"", ""};
    CHECK(fd >= 0);
    CHECK(PARSE("--lr", "0.1234567890123456789", "--init", " odd # name", "--flip", "0.25", "--opt",
                "sgd", "--no-augment", "--steps", "12", "--width", "48", "--eps", "1.1e-6"));
    Config c = vit_config_default(), d = c;
    options_apply_config(&o, &c);
    CHECK(options_write(&o, &c, path, &e));
    options_init(&back);
    CHECK(options_file(&back, path, &e));
    CHECK(back.lr == o.lr && strcmp(back.init, o.init) == 0 && back.flip == o.flip);
    CHECK(back.opt == OPT_SGD && !back.augment && back.steps == 12 && back.epochs == 0);
    options_apply_config(&back, &d);
    CHECK(d.width == 48 && d.eps == c.eps && d.eps == 1.1e-6);
    CHECK(!options_write(&o, &c, "/nonexistent/config.ini", &e) && *e.hint);
    options_free(&back);
    options_free(&o);
    if (fd >= 0)
        close(fd);
    unlink(path);
}

/* Any text comes back, and a disk that is full leaves the old file. */
static void test_echo_texts(void)
{
    static const char *const texts[] = {"",        "a\"b",       "\"",    "a\\b",
                                        "\\",      "a\nb = c\n", "\\n\n", " a#b\\",
                                        "C:\\x\"", "\"\\\"\\\\", "\r",    "a # \"b\""};
    char dir[] = "/tmp/test_options_XXXXXX";
    Error e = {"", ""};
    Config c = vit_config_default();
    CHECK(mkdtemp(dir));
    char *path = xasprintf("%s/config.ini", dir),
         *temporary = xasprintf("%s.%ld.tmp", path, (long)getpid());
    for (int i = 0; i < COUNT(texts); i++) {
        Options o, back;
        options_init(&back);
        CHECK(PARSE("--init", texts[i], "--color-twist", texts[COUNT(texts) - 1 - i], "--lr", "3"));
        CHECK(options_write(&o, &c, path, &e) && options_file(&back, path, &e), "%s", e.what);
        CHECK(strcmp(back.init, o.init) == 0 && strcmp(back.color_twist, o.color_twist) == 0 &&
                  back.lr == 3,
              "'%s' became '%s'", o.init, back.init);
        options_free(&o);
        options_free(&back);
    }
    struct rlimit old, limit;
    Options o, back;
    options_init(&o);
    options_init(&back);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 100;
    fflush(stdout);
    setrlimit(RLIMIT_FSIZE, &limit);
    bool written = options_write(&o, &c, path, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK(!written && strstr(e.what, path) && strstr(e.hint, "space"), "%s", e.what);
    CHECK(options_file(&back, path, &e) && back.lr == 3 && access(temporary, F_OK) != 0);
    unlink(path);
    mkdir(path, 0777);
    CHECK(!options_write(&o, &c, path, &e) && access(temporary, F_OK) != 0); /* no rename */
    rmdir(path);
    rmdir(dir);
    options_free(&o);
    options_free(&back);
    free(path);
    free(temporary);
}

/* What --help prints for a command; free() it. */
static char *help_of(const char *command, bool all)
{
    char *help = NULL;
    size_t size;
    FILE *f = open_memstream(&help, &size);
    help_print(f, command, all);
    fclose(f);
    return help;
}

static void test_help(void)
{
    static const char *const says[] = {"--no-FLAG", "built-in recipe for small images",
                                       "--image-size N|HxW", "--std X|R,G,B|imagenet",
                                       "--batch-size N"};
    static const struct {
        const char *command, *has, *has_not;
    } cases[] = {{"train", "--epochs", "--adam-eps"},
                 {"eval", "--val-data", "--epochs"},
                 {"predict", "--topk", "--epochs"},
                 {"bench", "--steps", "--topk"}};
    char *all = help_of("train", true);
    for (int i = 0; i < COUNT(says); i++)
        CHECK(strstr(all, says[i]), "no '%s' in --help all", says[i]);
    for (int i = 0; i < COUNT(cases); i++) {
        char *help = help_of(cases[i].command, false);
        CHECK(strstr(help, cases[i].has) && !strstr(help, cases[i].has_not), "%s", help);
        CHECK(strlen(help) < strlen(all) / 2);
        free(help);
    }
    free(all);
}

static void test_bools(void)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off",   "on",
                                        "0",     "1",    "No", "Yes", "False", "True"};
    for (int i = 0; i < COUNT(words); i++)
        CHECK(find_bool(words[i]) == i % 2, "%s", words[i]);
    CHECK(find_bool("") == -1 && find_bool("truely") == -1 && find_bool("tRUE") == 1);
    CHECK(find_bool("true|no") == -1 && find_bool("2") == -1);
}

/* Flags of timm and others lead to ours, each of which there is. */
static void test_synonyms(void)
{
    static const char *const theirs[][2] = {{"sched", "--schedule"},
                                            {"aa", "--auto-augment"},
                                            {"smoothing", "--label-smoothing"},
                                            {"reprob", "--erase"},
                                            {"amp", "--precision"},
                                            {"learning-rate", "--lr"},
                                            {"learning_rate", "--lr"},
                                            {"class-map", "--classes"},
                                            {"model-ema", "--ema"},
                                            {"warmup-epochs", "--warmup-steps"}};
    Options o;
    Error e;
    for (int i = 0; i < COUNT(theirs); i++) {
        options_init(&o);
        CHECK(!options_set(&o, theirs[i][0], "1", "--", &e) && strstr(e.hint, theirs[i][1]),
              "%s: %s", theirs[i][0], e.hint);
        CHECK(flag_synonym(theirs[i][0]) != NULL);
        options_free(&o);
    }
    CHECK(flag_synonym("lr") == NULL);
    CHECK(!PARSE("-b", "64") && strstr(e.hint, "--batch-size"), "%s", e.hint);
    options_free(&o);
    CHECK(!PARSE("predict", "-x.jpg") && strstr(e.hint, "./-"), "%s", e.hint);
    options_free(&o);
    CHECK(PARSE("--opt", "AdamW", "--augment", "FALSE", "--schedule", "Linear"));
    CHECK(o.opt == OPT_ADAMW && !o.augment && o.schedule == SCHEDULE_LINEAR);
    options_free(&o);
}

/* The first word of eval and predict, where that can be weights. */
static void test_first_word(void)
{
    Options o;
    Error e = {"", ""};
    char *argv[] = {(char *)"train_cpu", (char *)"predict", (char *)"/tmp", (char *)"a.jpg", NULL};
    Settings asked = {0};
    options_init(&o);
    CHECK(options_args(&o, &asked, 4, argv, &e) && o.n_files == 1 &&
          strcmp(o.files[0], "a.jpg") == 0);
    CHECK(settings_last(&asked, "weights") &&
          strcmp(settings_last(&asked, "weights"), "/tmp") == 0);
    CHECK(options_apply(&o, &asked, &e));
    options_free(&o);
    CHECK(PARSE("eval", "x.safetensors") && strcmp(o.weights, "x.safetensors") == 0);
    options_free(&o);
    CHECK(!PARSE("eval", "run", "x.jpg"));
    options_free(&o);
    CHECK(PARSE("predict", "--weights", "w", "/tmp") && o.n_files == 1);
    options_free(&o);
    CHECK(!PARSE("train", "/tmp"));
    options_free(&o);
}

static void test_shell_words(void)
{
    static const char *const words[][2] = {
        {"runs/a-1", "runs/a-1"}, {"a b", "'a b'"}, {"", "''"},
        {"it's", "'it'\\''s'"},   {"$x", "'$x'"},   {"~/r", "'~/r'"}};
    for (int i = 0; i < COUNT(words); i++) {
        char *word = shell_word(words[i][0]);
        CHECK(strcmp(word, words[i][1]) == 0, "%s", word);
        free(word);
    }
}

static void test_amounts(void)
{
    static const struct {
        double n;
        const char *one, *text;
    } cases[] = {{0, "step", "0 steps"},    {1, "step", "1 step"},
                 {2, "class", "2 classes"}, {1, "class", "1 class"},
                 {3, "index", "3 indexes"}, {1e9, "image", "1000000000 images"}};
    for (int i = 0; i < COUNT(cases); i++)
        CHECK(strcmp(amount(cases[i].n, cases[i].one).s, cases[i].text) == 0, "%s",
              amount(cases[i].n, cases[i].one).s);
}

/* ---- flags without effect ---- */

/* Of a run, as far as effects_text looks at it. */
static char *effects_of(const char *command, const char *flags)
{
    static const Backend device; /* a CPU, where there is no other */
    char *copy = xstrdup(flags), *rest = copy, *words[32] = {(char *)"train_cpu"};
    Session s = {.be = strcmp(command, "plan") == 0 ? NULL : &device,
                 .config = vit_config_default()};
    Settings asked = {0};
    Error e = {"", ""};
    int n = 1;
    while ((words[n] = strsep(&rest, " ")))
        n += *words[n] != 0;
    options_init(&s.o);
    bool ok = options_args(&s.o, &asked, n, words, &e) && options_apply(&s.o, &asked, &e);
    options_apply_config(&s.o, &s.config);
    int ranks = s.world.ranks = (int)s.o.ranks;
    ok = ok && split_new(&s.split, &s.config, 0, ranks, 1, (int)s.o.pp, s.o.layers_per_stage,
                         (int)s.o.zero, &e);
    CHECK(ok, "%s: %s", flags, e.what);
    s.type = s.o.precision == PRECISION_FP16 ? F16 : s.o.precision >= PRECISION_BF16 ? BF16 : F32;
    s.weights = *s.o.weights ? (char *)s.o.weights : NULL;
    s.checkpoint = *s.o.resume ? (char *)s.o.resume : NULL;
    s.frozen = strcmp(s.o.freeze, "head-only") == 0 ? s.config.layers + 2 : 0;
    char *text = effects_text(&s, command);
    options_free(&s.o);
    free(copy);
    return text;
}

/* Each is said of the flags alone, and no longer with what they need. */
static void test_effects(void)
{
    static const struct {
        const char *command, *flags, *with, *says;
    } cases[] = {
        {"train", "--fp8-margin 2 --fp8-skip ends --fp8-scaling current --fp8-wgrad bf16",
         "--precision fp8",
         "--fp8-scaling, --fp8-margin, --fp8-skip, --fp8-wgrad have no effect without --precision "
         "fp8"},
        {"train", "--precision fp8 --fp8-history 4 --fp8-scaling current", "--fp8-scaling delayed",
         "--fp8-history has no effect with --fp8-scaling current"},
        {"train", "--loss-scale 8", "--loss-scaling static",
         "--loss-scale has no effect without --precision fp16 or --loss-scaling"},
        {"train", "--scale-interval 9 --hysteresis 3", "--precision fp16",
         "--scale-interval, --hysteresis have no effect without --precision fp16 or --loss-scaling "
         "dynamic"},
        {"train", "--loss-scaling static --scale-interval 9", "--loss-scaling dynamic",
         "--scale-interval has no effect without --precision fp16 or"},
        {"train", "--stochastic-rounding", "--precision bf16",
         "--stochastic-rounding has no effect on weights in fp32"},
        {"train", "--momentum 0.9", "--opt sgd", "--momentum has no effect without --opt sgd"},
        {"train", "--opt sgd --beta1 0.8 --beta2 0.9 --adam-eps 1e-6", "--opt lamb",
         "--beta1, --beta2, --adam-eps have no effect with --opt sgd"},
        {"train", "--opt sgd --decay all", "--weight-decay 0.1",
         "--decay has no effect without --weight-decay"},
        {"train", "--step-size 3 --step-gamma 0.2", "--schedule step",
         "--step-size, --step-gamma have no effect without --schedule step"},
        {"train", "--schedule constant --lr-floor 1e-5", "--schedule linear",
         "--lr-floor has no effect with --schedule constant"},
        {"train", "--freeze head-only --layer-decay 0.7", "--freeze 3",
         "--layer-decay has no effect where the head alone learns (--freeze)"},
        {"train", "--mixup 0.2 --mix-switch 0.3", "--cutmix 1",
         "--mix-switch has no effect without both --mixup and --cutmix"},
        {"train", "--mix-prob 0.5 --mix-per sample --mix-pairs roll --mix-group 4", "--cutmix 1",
         "--mix-prob, --mix-per, --mix-pairs, --mix-group have no effect without --mixup or "
         "--cutmix"},
        {"train", "--erase-mode zero", "--erase 0.2", "--erase-mode has no effect without --erase"},
        {"train", "--layer-scale-init 1", "--layer-scale",
         "--layer-scale-init has no effect without --layer-scale"},
        {"train", "--pos-resize google", "--weights w.safetensors",
         "--pos-resize has no effect without --weights"},
        {"train", "--resume r --init jax --head-bias -7", "--no-resume",
         "--init, --head-bias have no effect with --resume"},
        {"train", "--val-fraction 0.1 --val-data v", "--no-val-data",
         "--val-fraction has no effect with --val-data"},
        {"train", "--class-order timm --classes c", "--no-classes",
         "--class-order has no effect with --classes"},
        {"train", "--data d --index-dir i --wds-label txt --shuffle-shards 2",
         "--data wds:d/{0..9}",
         "--wds-label, --shuffle-shards, --index-dir have no effect without --data wds:PATTERN"},
        {"train", "--no-augment --flip 0 --color-jitter 0.4 --area-min 0.5", "--augment",
         "--flip, --color-jitter, --area-min have no effect with --no-augment"},
        {"train", "--train-crop simple --area-min 0.5 --ratio-max 2", "--train-crop resized",
         "--area-min, --ratio-max have no effect with --train-crop simple"},
        {"train", "--data fake --interpolation bilinear --decode fast --no-augment", "--data d",
         "--no-augment, --interpolation, --decode have no effect on fake data"},
        {"train", "--data cifar10:c --decode fast", "--data d",
         "--decode has no effect on cifar and mnist"},
        {"train", "--data mnist:c --crop-pct 0.9", "--data d",
         "--crop-pct has no effect on cifar and mnist, which are stretched"},
        {"train", "--crop stretch --resize 256 --crop-pct 1", "--crop center --no-resize",
         "--resize, --crop-pct have no effect with --crop stretch"},
        {"eval", "--resize 256 --crop-pct 0.9", "--no-resize",
         "--crop-pct has no effect with --resize"},
        {"train", "--val-data none --tta flip --crop stretch", "--val-data v",
         "--tta has no effect with --val-data none\nnote: --crop has no effect with --val-data "
         "none"},
        {"train", "--val-data none --eval-every 7 --save-every 3", "--no-save-every",
         "--eval-every has no effect with --val-data none and --save-every"},
        {"train", "--zero 2", "--ranks 2", "--zero has no effect with one data parallel rank"},
        {"train", "--reduce-dtype bf16", "--ranks 2",
         "--reduce-dtype has no effect with one data parallel rank"},
        {"train", "--watchdog 5", "--ranks 2", "--watchdog has no effect with one rank"},
        {"train", "--ranks 2 --no-reshard-after-forward --zero 2", "--zero 3",
         "--no-reshard-after-forward has no effect without --zero 3"},
        {"train", "--layers-per-stage 12", "--ranks 2 --pp 2 --layers-per-stage 6,6",
         "--layers-per-stage has no effect without --pp"},
        {"bench", "--workers 3 --no-augment", "--data d",
         "--workers, --no-augment have no effect without --data"},
        {"plan", "--ranks 8 --zero 1 --no-reshard-after-forward --momentum 0.8",
         "--zero 3 --opt sgd",
         "--momentum has no effect without --opt sgd\nnote: --no-reshard-after-forward has no "
         "effect without --zero 3"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        char *both = xasprintf("%s %s", cases[i].flags, cases[i].with);
        char *alone = effects_of(cases[i].command, cases[i].flags);
        char *needed = effects_of(cases[i].command, both);
        char *want = xasprintf("note: %s", cases[i].says), *rest = alone + strlen(want);
        CHECK(strncmp(alone, want, strlen(want)) == 0 && !strstr(rest, "note"), "%s: %s",
              cases[i].flags, alone);
        CHECK(!*needed, "%s: %s", both, needed);
        free(both);
        free(alone);
        free(needed);
        free(want);
    }
}

/* Of commands that do not know a flag; and what a recipe says is never said. */
static void test_effects_of_commands(void)
{
    static const struct {
        const char *command, *flags, *says;
    } cases[] = {
        {"eval", "--position sincos2d --lr 3 --topk 2 --dropout 0.5 --mixup 1",
         "note: --lr, --position, --dropout, --mixup, --topk have no effect in eval\n"},
        {"predict", "--data d --val-data v --out o --micro-batch 3",
         "note: --val-data, --out, --micro-batch, --data have no effect in predict\n"},
        {"bench", "--lr 1 --tta flip", "note: --lr, --tta have no effect in bench\n"},
        {"show", "--steps 1 --erase 0.5", "note: --steps has no effect in show\n"},
        {"train", "--format csv", "note: --format has no effect in train\n"},
        {"train", "--epochs 3 --steps 4", "note: --epochs has no effect before --steps\n"},
        {"train", "--steps 4 --epochs 3", "note: --steps has no effect before --epochs\n"},
        {"train", "--val-data v --val-fraction 0.1",
         "note: --val-data has no effect before --val-fraction\n"},
        {"train", "--epochs 3", ""},
        {"bench", "--steps 4", ""},
        {"eval", "--batch-size 8 --classes c --crop stretch --ema 0.9 --out o", ""},
        {"predict", "--topk 3 --features f.npy --format csv --tta flip --workers 2", ""},
        {"plan", "--lr 3 --epochs 4 --topk 3 --eval-every 9", ""},
    };
    char path[] = "/tmp/test_options_XXXXXX";
    Error e;
    for (int i = 0; i < COUNT(cases); i++) {
        char *text = effects_of(cases[i].command, cases[i].flags);
        CHECK(strcmp(text, cases[i].says) == 0, "%s: %s", cases[i].flags, text);
        free(text);
    }
    close(mkstemp(path));
    CHECK(save_text(path, "momentum = 0.5\nfp8_margin = 1\nzero = 3\ntopk = 3\n", &e));
    char *flags = xasprintf("--recipe %s --beta1 0.8", path), *text = effects_of("train", flags);
    CHECK(!*text, "%s", text);
    free(flags);
    free(text);
    unlink(path);
    text = effects_of("train", "--threads 2 --no-autotune --offload-optimizer");
    CHECK(strcmp(text, backend_cuda ? "note: --threads has no effect on a GPU: see --workers\n"
                                    : "note: --no-autotune has no effect on a CPU\n"
                                      "note: --offload-optimizer has no effect on a CPU\n") == 0,
          "%s", text);
    free(text);
}

/* ---- learning rates ---- */

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * (1 + fabs(b));
}

static void test_schedules(void)
{
    Options s = {.schedule = SCHEDULE_COSINE, .lr = 2, .lr_floor = 0.5, .warmup_steps = 4};
    CHECK(near(schedule_lr(&s, 12, 0), 0.5) && near(schedule_lr(&s, 12, 1), 1) &&
          near(schedule_lr(&s, 12, 3), 2));
    CHECK(near(schedule_lr(&s, 12, 4), 2) && near(schedule_lr(&s, 12, 8), 1.25));
    CHECK(near(schedule_lr(&s, 12, 6), 0.5 + 1.5 * 0.5 * (1 + sqrt(0.5))));
    CHECK(near(schedule_lr(&s, 12, 12), 0.5) && near(schedule_lr(&s, 12, 1000), 0.5));
    s.schedule = SCHEDULE_LINEAR;
    CHECK(near(schedule_lr(&s, 12, 8), 1.25) && near(schedule_lr(&s, 12, 11), 0.5 + 1.5 / 8));
    s.schedule = SCHEDULE_CONSTANT;
    CHECK(near(schedule_lr(&s, 12, 2), 1.5) && near(schedule_lr(&s, 12, 11), 2));
    s = (Options){
        .schedule = SCHEDULE_STEP, .lr = 1, .lr_floor = 0.005, .step_size = 10, .step_gamma = 0.1};
    CHECK(near(schedule_lr(&s, 30, 0), 1) && near(schedule_lr(&s, 30, 9), 1) &&
          near(schedule_lr(&s, 30, 10), 0.1));
    CHECK(near(schedule_lr(&s, 30, 29), 0.01) && near(schedule_lr(&s, 30, 30), 0.005));
    s = (Options){.schedule = SCHEDULE_COSINE, .lr = 1, .warmup_steps = 5};
    CHECK(isfinite(schedule_lr(&s, 5, 5)) && near(schedule_lr(&s, 5, 4), 1));
}

/* ---- log lines ---- */

/* Bytes that are no UTF-8, and a log that was cut in the middle of a line. */
/* The bar fills any terminal and overflows none; what matters less gives way. */
static void test_bar(void)
{
    StepReport r = {.step = 425,
                    .total = 1000,
                    .epoch = 2.4,
                    .epochs = 10,
                    .loss = 0.5321,
                    .acc = 81.23,
                    .best = 84.31,
                    .eta = 185,
                    .elapsed = 130,
                    .lr = 1e-3,
                    .images_per_s = 512};
    char line[600], full[600];
    for (int columns = 2; columns < 400; columns++) {
        report_bar_line(&r, columns, line, sizeof line);
        CHECK((int)strlen(line) < columns, "%d: %s", columns, line);
    }
    report_bar_line(&r, 80, line, sizeof line);
    const char *const first[] = {"[",          "] 42%",      "epoch 3/10",
                                 "loss 0.532", "3m05s left", "best 84.3%"};
    for (int i = 0; i < COUNT(first); i++)
        CHECK(strstr(line, first[i]), "no %s in %s", first[i], line);
    CHECK(!strstr(line, "lr "), "%s", line);
    report_bar_line(&r, 200, full, sizeof full);
    CHECK(strstr(full, "2m10s") && strstr(full, "512 images/s") && strstr(full, "lr 1.00e-03"),
          "%s", full);
    CHECK(strchr(full, ']') - full > 40, "%s", full);
    r.wait = 0.2;
    report_bar_line(&r, 200, full, sizeof full);
    CHECK(strstr(full, "wait 20%"), "%s", full);
    r.step = 1000, r.epoch = 10, r.best = -1;
    report_bar_line(&r, 80, line, sizeof line);
    CHECK(strstr(line, "=>] 100%") && strstr(line, "epoch 10/10") && !strstr(line, "best"), "%s",
          line);
    r.epochs = 0.5;
    report_bar_line(&r, 80, line, sizeof line);
    CHECK(strstr(line, "step 1000/1000"), "%s", line);
}

static void test_folding(void)
{
    static const char line[] = "model     width 128, 4 layers, 4 heads, mlp 256, patch 8: 565 k";
    char *whole = report_folded(line, 100), *narrow = report_folded(line, 40);
    CHECK(strncmp(whole, line, strlen(line)) == 0 && strcmp(whole + strlen(line), "\n") == 0);
    CHECK(strcmp(narrow, "model     width 128, 4 layers, 4 heads,\n"
                         "          mlp 256, patch 8: 565 k\n") == 0,
          "%s", narrow);
    free(whole);
    free(narrow);
    for (int columns = 2; columns < 100; columns++) { /* words of any length: nothing is lost */
        char *folded =
            report_folded("run       runs/a_long_name_that_is_one_word and more words", columns);
        int letters = 0;
        for (char *p = folded; *p; p++)
            letters += *p != ' ' && *p != '\n';
        CHECK(letters == 48, "%d: %d: %s", columns, letters, folded);
        free(folded);
    }
}

static void test_log_bytes(void)
{
    static const char *const cases[][2] = {
        {"a\xffz", "a\ufffdz"},
        {"\u00e9\u20ac\U0001f600", "\u00e9\u20ac\U0001f600"},
        {"\xc3", "\ufffd"},                               /* cut */
        {"\xe2\x82\"", "\ufffd\ufffd\\\""},               /* cut before a quote */
        {"\xc0\xaf", "\ufffd\ufffd"},                     /* two bytes for a slash */
        {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},           /* half of a pair */
        {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"}, /* beyond Unicode */
        {"\x80\xf8", "\ufffd\ufffd"},
    };
    char path[] = "/tmp/test_options_XXXXXX";
    int fd = mkstemp(path);
    Error e = {"", ""};
    for (int i = 0; i < COUNT(cases); i++) {
        CHECK(log_open(path, false, &e));
        log_begin(cases[i][0]);
        log_end();
        log_close();
        char *lines = read_text(path, 1000, &e),
             *want = xasprintf("{\"event\":\"%s\"}\n", cases[i][1]);
        CHECK(lines && strcmp(lines, want) == 0, "case %d: %s", i, lines ? lines : e.what);
        free(lines);
        free(want);
    }
    static const char *const ends[][2] = {{"", ""}, {"{}\n", "{}\n"}, {"{\"ev", "{\"ev\n"}};
    for (int i = 0; i < COUNT(ends); i++) {
        CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, ends[i][0], strlen(ends[i][0]), 0) >= 0);
        CHECK(log_open(path, true, &e));
        log_begin("x");
        log_num("up", INFINITY);
        log_num("down", -INFINITY);
        log_end();
        log_close();
        char *lines = read_text(path, 1000, &e),
             *want = xasprintf("%s{\"event\":\"x\",\"up\":null,\"down\":null}\n", ends[i][1]);
        CHECK(lines && strcmp(lines, want) == 0, "case %d: %s", i, lines ? lines : e.what);
        free(lines);
        free(want);
    }
    close(fd);
    unlink(path);
}

static void test_log(void)
{
    char path[] = "/tmp/test_options_XXXXXX", text[30];
    int fd = mkstemp(path);
    Error e = {"", ""};
    CHECK(fd >= 0 && log_open(path, false, &e));
    log_begin("step");
    log_num("loss", NAN);
    log_num("step", 12);
    log_num("lr", 0.001);
    log_text("path", "a\"b\\c\n");
    log_end();
    log_close();
    char *lines = read_text(path, 1000, &e);
    CHECK(lines && strcmp(lines, "{\"event\":\"step\",\"loss\":null,\"step\":12,\"lr\":0.001,"
                                 "\"path\":\"a\\\"b\\\\c\\u000a\"}\n") == 0);
    free(lines);
    unlink(path);
    if (fd >= 0)
        close(fd);
    test_log_bytes();
    format_seconds(3725, text, sizeof text);
    CHECK(strcmp(text, "1h02m") == 0);
    format_seconds(125, text, sizeof text);
    CHECK(strcmp(text, "2m05s") == 0);
    format_count(5717416, text, sizeof text);
    CHECK(strcmp(text, "5.72 M") == 0);
    format_count(999, text, sizeof text);
    CHECK(strcmp(text, "999") == 0);
}

int main(void)
{
    test_values();
    test_means();
    test_wrong();
    test_recipes();
    test_echo();
    test_echo_texts();
    test_places();
    test_help();
    test_synonyms();
    test_first_word();
    test_shell_words();
    test_bools();
    test_amounts();
    test_effects();
    test_effects_of_commands();
    test_schedules();
    test_log();
    test_bar();
    test_folding();
    return check_report();
}
