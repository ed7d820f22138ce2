/* page.c - report.html. See page.h.
 *
 * One style sheet, SVG and JPEGs in the page; no script. Colours follow the reader's light or dark
 * setting; on a phone everything is one column; printed, all that can be unfolded is.
 *
 * Read in this order: what is read, style, tiles, charts, classes, confusion, calibration,
 * pictures, settings, several runs, the page.
 */
#include "results/page.h"

#include "results/chart.h"
#include "results/history.h"
#include "util/files.h"
#include "util/names.h"
#include "util/text.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what is read ---- */

typedef struct {
    char *dir, *name;
    History history;
    bool has_history;
    char *settings;         /* config.ini, or NULL */
    cJSON *eval, *pictures; /* or NULL */
} Run;

static char *text_of(const char *dir, const char *name, size_t most)
{
    Error e;
    char *path = xasprintf("%s/%s", dir, name);
    char *text = path_exists(path) ? read_text(path, most, &e) : NULL;
    free(path);
    return text;
}

static cJSON *json_of(const char *dir, const char *name)
{
    char *text = text_of(dir, name, 256 << 20);
    cJSON *json = text ? cJSON_Parse(text) : NULL;
    free(text);
    return json;
}

/* The folder's own name; of "." and the like, that of where it is. */
static char *name_of(const char *dir)
{
    char *whole = realpath(dir, NULL);
    const char *slash = whole ? strrchr(whole, '/') : NULL;
    char *name = xstrdup(slash && slash[1] ? slash + 1 : dir);
    free(whole);
    return name;
}

static bool read_run(const char *dir, Run *r, Error *e)
{
    *r = (Run){.dir = xstrdup(dir), .name = name_of(dir)};
    r->settings = text_of(dir, "config.ini", 1 << 20);
    r->eval = json_of(dir, "eval.json");
    r->pictures = json_of(dir, "pictures.json");
    r->has_history = history_read(dir, &r->history, e);
    return r->has_history || r->eval ||
           fail(e, "name the folder of a run, or one that eval --out has filled",
                "%s holds no log.jsonl and no eval.json", dir);
}

static void run_free(Run *r)
{
    history_free(&r->history);
    cJSON_Delete(r->eval);
    cJSON_Delete(r->pictures);
    free(r->dir);
    free(r->name);
    free(r->settings);
}

/* Of the run's config.ini, "" where it does not say; free() it. */
static char *setting(const Run *r, const char *key)
{
    size_t n = strlen(key);
    for (const char *at = r->settings; at && *at;
         at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        if (strncmp(at, key, n) == 0 && strncmp(at + n, " = ", 3) == 0)
            return xasprintf("%.*s", (int)strcspn(at + n + 3, "\n"), at + n + 3);
    return xstrdup("");
}

static double number_in(const cJSON *json, const char *key)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

static const char *text_in(const cJSON *json, const char *key)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsString(x) ? x->valuestring : "";
}

/* Of a list of numbers. */
static double item(const cJSON *list, int i)
{
    const cJSON *x = cJSON_GetArrayItem(list, i);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

/* The same as a place in a list; -1: it is none. */
static int place(const cJSON *list, int i)
{
    const cJSON *x = cJSON_GetArrayItem(list, i);
    return cJSON_IsNumber(x) ? x->valueint : -1;
}

/* The newest number of a column that is one; the best of evaluations. */
static double newest(const Table *t, int column)
{
    for (long i = t->rows - 1; i >= 0; i--)
        if (isfinite(t->at[i * t->columns + column]))
            return t->at[i * t->columns + column];
    return NAN;
}

static double best_top1(const History *h, double *step)
{
    double best = NAN;
    for (long i = 0; i < h->evals.rows; i++) {
        const double *row = h->evals.at + i * EVAL_COLUMNS;
        if (isfinite(row[E_top1]) && !(row[E_top1] <= best)) {
            best = row[E_top1];
            *step = row[E_step];
        }
    }
    return best;
}

/* ---- style ---- */

static const char style[] =
    ":root{--bg:#f7f6f3;--card:#fff;--ink:#1c1e22;--soft:#646a74;--line:#e3e1dc;--fill:#f0eeea;"
    "--good:38,103,173;--bad:201,62,42;--c0:#2667ad;--c1:#c8512a;--c2:#2a8a5c;--c3:#8a52b3;"
    "--c4:#a97b00;--c5:#c03a6f}"
    "@media(prefers-color-scheme:dark){:root{--bg:#15171b;--card:#1d2025;--ink:#e8e8e6;"
    "--soft:#9aa1ab;--line:#33373e;--fill:#272b31;--good:90,157,230;--bad:240,110,85;"
    "--c0:#6aaaf0;--c1:#f0875c;--c2:#5cc492;--c3:#c08be6;--c4:#dcb34a;--c5:#ef7fa8}}"
    "*{box-sizing:border-box}html{color-scheme:light dark;-webkit-text-size-adjust:100%}"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"
    "'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}"
    "main{max-width:1200px;margin:0 auto;padding:32px 24px 48px}"
    "h1{font-size:28px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em;overflow-wrap:anywhere}"
    "h2{font-size:18px;margin:36px 0 12px}p{margin:0 0 12px}"
    ".sub,.note{color:var(--soft)}.sub{margin-bottom:20px}.note{font-size:13px}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}"
    ".tile,.card,.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "margin:0}.tile{padding:12px 16px}.tile b{display:block;font-size:25px;line-height:1.25;"
    "font-weight:600;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);"
    "font-size:13px}.card{padding:16px}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));"
    "gap:12px}.chart{padding:12px 12px 6px}.chart figcaption{display:flex;"
    "justify-content:space-between;padding:0 4px 4px}.chart figcaption span{color:var(--soft);"
    "font-variant-numeric:tabular-nums}svg{display:block;width:100%;height:auto}"
    "svg text{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    ".y{text-anchor:end}.x{text-anchor:middle}.grid{stroke:var(--line);fill:none}"
    ".line{fill:none;stroke-width:1.6;stroke-linejoin:round}.eval{stroke-width:1.2;opacity:.75}"
    ".c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}"
    ".c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.dot{stroke-width:1.4;fill:var(--card)}"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;font-size:13px;"
    "color:var(--soft)}.key svg{width:26px;height:10px;display:inline-block;margin-right:6px;"
    "vertical-align:middle}"
    ".column{display:grid;gap:12px;min-width:0}.two{display:grid;grid-template-columns:repeat(auto-"
    "fit,minmax(min(460px,100%),1fr));"
    "gap:12px;align-items:start}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;"
    "font-variant-numeric:tabular-nums}th,td{padding:5px 8px;text-align:right;"
    "border-bottom:1px solid var(--line);white-space:nowrap}tr:last-child>td{border-bottom:0}"
    "th{color:var(--soft);font-weight:500;font-size:13px}"
    "th:first-child,td:first-child,.left{text-align:left}td.wrap{white-space:normal;"
    "overflow-wrap:anywhere}"
    ".bar{display:inline-block;width:90px;height:8px;background:var(--fill);border-radius:4px;"
    "overflow:hidden;margin-right:8px}.bar i{display:block;height:100%;"
    "background:rgb(var(--good))}"
    ".num{display:inline-block;min-width:52px}"
    ".cells,.cal svg{margin:0 auto}.cal svg{max-width:520px}.cells text{fill:var(--ink)}.cells "
    ".name{fill:var(--soft)}"
    ".cells .good{fill:rgb(var(--good))}.cells .bad{fill:rgb(var(--bad))}"
    ".cells .none{fill:var(--fill)}.cells .on{fill:#fff}"
    ".cal .ideal{stroke:var(--soft);stroke-dasharray:3 3;fill:none}"
    ".cal .col{fill:rgb(var(--good));opacity:.85}"
    ".pics{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}"
    ".pics figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "overflow:hidden;break-inside:avoid}"
    ".pics.pairs{grid-template-columns:repeat(auto-fill,minmax(min(270px,100%),1fr))}"
    ".pics div{display:flex}.pics img{display:block;width:100%;min-width:0;flex:1}"
    ".pairs img{width:50%}.small img{image-rendering:pixelated}"
    ".pics figcaption{padding:8px 10px;font-size:13px;line-height:1.4}.pics figcaption b{"
    "font-weight:600}.pics .file{color:var(--soft);font-size:12px;display:block;overflow:hidden;"
    "text-overflow:ellipsis;white-space:nowrap}.wrong{color:rgb(var(--bad))}"
    ".right{color:rgb(var(--good))}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;font-size:14px}"
    "dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}"
    "details{margin-top:12px}summary{cursor:pointer;color:var(--soft)}"
    "pre{background:var(--fill);border-radius:8px;padding:12px;overflow-x:auto;font-size:12px;"
    "line-height:1.45;margin:8px 0 0}footer{margin-top:36px;color:var(--soft);font-size:13px}"
    "@media(max-width:600px){main{padding:20px 14px 32px}h1{font-size:23px}"
    ".tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile b{font-size:21px}"
    ".card{padding:12px}.pics{gap:8px}.pics:not(.pairs){grid-template-columns:1fr 1fr}"
    ".bar{width:56px}th,td{padding:5px 6px}.cells text{font-size:15px}.more{display:none}}"
    "@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#555;--line:#ccc;--fill:#eee;"
    "--good:38,103,173;--bad:201,62,42;--c0:#2667ad;--c1:#c8512a;--c2:#2a8a5c;--c3:#8a52b3;"
    "--c4:#a97b00;--c5:#c03a6f}html{color-scheme:light}body{font-size:12px}"
    "main{max-width:none;padding:0}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}"
    ".chart,.card,.tile,tr{break-inside:avoid}h2{break-after:avoid}.charts{"
    "grid-template-columns:1fr 1fr 1fr}.pics,.pics.pairs{grid-template-columns:1fr 1fr 1fr}"
    ".note{break-after:avoid}summary{display:none}pre{white-space:pre-wrap;columns:2}"
    "details::details-content{content-visibility:visible;display:block}}";

/* ---- tiles ---- */

static void tile(FILE *f, const char *value, const char *what)
{
    fprintf(f, "<div class=tile><b>");
    html_string(f, value);
    fprintf(f, "</b><span>");
    html_string(f, what);
    fprintf(f, "</span></div>\n");
}

static void tile_number(FILE *f, const char *format, double v, const char *what)
{
    char text[64];
    if (!isfinite(v))
        return;
    snprintf(text, sizeof text, format, v);
    tile(f, text, what);
}

/* Seconds of the run so far: an end line adds up what came before it. */
static double seconds_of(const History *h)
{
    return h->seconds > 0 ? h->seconds : NAN;
}

static void write_tiles(FILE *f, const Run *r)
{
    const History *h = &r->history;
    char text[64], what[96];
    double step = 0, best = r->has_history ? best_top1(h, &step) : NAN;
    fprintf(f, "<div class=tiles>\n");
    if (isfinite(best)) {
        snprintf(what, sizeof what, "best top-1, at step %.0f", step);
        tile_number(f, "%.2f%%", best, what);
    } else {
        tile_number(f, "%.2f%%", number_in(r->eval, "top1"), "top-1");
    }
    if (number_in(r->eval, "top5") < 100)
        tile_number(f, "%.2f%%", number_in(r->eval, "top5"), "top-5");
    tile_number(f, "%.2f%%", number_in(r->eval, "balanced_accuracy"), "balanced accuracy");
    tile_number(f, "%.2f", number_in(r->eval, "auc") / 100, "area under ROC");
    tile_number(f, "%.4f", number_in(r->eval, "loss"), "loss of validation");
    tile_number(f, "%.2f%%", number_in(r->eval, "ece"), "calibration error");
    if (r->has_history) {
        tile_number(f, "%.0f", newest(&h->steps, H_images_per_s), "images/s");
        if (isfinite(seconds_of(h))) {
            format_seconds(seconds_of(h), text, sizeof text);
            tile(f, text, h->ended ? "of training" : "of training so far");
        }
    }
    fprintf(f, "</div>\n");
}

/* ---- charts ---- */

static Series step_series(const Run *r, int column, int color)
{
    const Table *t = &r->history.steps;
    return (Series){.name = r->name,
                    .x = t->at,
                    .y = t->at + column,
                    .n = t->rows,
                    .stride = t->columns,
                    .color = color};
}

static Series eval_series(const Run *r, int column, int color)
{
    const Table *t = &r->history.evals;
    return (Series){.name = r->name,
                    .x = t->at,
                    .y = t->at + column,
                    .n = t->rows,
                    .stride = t->columns,
                    .color = color,
                    .dots = true};
}

/* A column of the reports of steps, one of the evaluations, or both; -1: none. */
static void write_chart(FILE *f, const Run *runs, int n, Chart c, int step, int eval)
{
    for (int i = 0; i < n; i++) {
        if (runs[i].history.steps.rows && step >= 0)
            c.series[c.n++] = step_series(&runs[i], step, i % 6);
        if (runs[i].history.evals.rows && eval >= 0)
            c.series[c.n++] = eval_series(&runs[i], eval, n > 1 ? i % 6 : 1);
    }
    chart_svg(f, &c);
}

static void legend_line(FILE *f, int color, bool dots, const char *name)
{
    fprintf(f,
            "<span class=key><svg viewBox=\"0 0 26 10\"><path class=\"line c%d%s\" d=\"M1 5H25\"/>",
            color, dots ? " eval" : "");
    if (dots)
        fprintf(f, "<circle class=\"dot c%d\" cx=13 cy=5 r=2.8 />", color);
    fprintf(f, "</svg>");
    html_string(f, name);
    fprintf(f, "</span>");
}

/* Shares and percents differ by a hundred: the log has what waiting took as a share. */
static void as_percent(Table *t, int column)
{
    for (long i = 0; i < t->rows; i++)
        t->at[i * t->columns + column] *= 100;
}

static void write_charts(FILE *f, Run *runs, int n)
{
    static const struct {
        const char *title, *unit;
        double least, most;
        int step, eval;
    } charts[] = {{"Loss", "", NAN, NAN, H_loss, E_loss},
                  {"Accuracy", "%", 0, 100, H_acc, E_top1},
                  {"Learning rate", "", 0, NAN, H_lr, -1},
                  {"Gradient norm", "", NAN, NAN, H_grad_norm, -1},
                  {"Images per second", "", 0, NAN, H_images_per_s, -1},
                  {"Waiting for images", "%", 0, NAN, H_wait, -1}};
    fprintf(f, "<h2>Training</h2>\n<div class=legend>");
    if (n == 1) {
        legend_line(f, 0, false, "training images");
        legend_line(f, 1, true, "validation images");
    }
    for (int i = 0; i < n && n > 1; i++)
        legend_line(f, i % 6, false, runs[i].name);
    if (n > 1)
        fprintf(f, "<span>lines: training; dots: validation</span>");
    fprintf(f, "</div>\n<div class=charts>\n");
    for (int i = 0; i < n; i++)
        as_percent(&runs[i].history.steps, H_wait);
    for (int k = 0; k < COUNT(charts); k++)
        write_chart(f, runs, n,
                    (Chart){.title = charts[k].title,
                            .unit = charts[k].unit,
                            .least = charts[k].least,
                            .most = charts[k].most},
                    charts[k].step, charts[k].eval);
    fprintf(f, "</div>\n");
}

/* ---- classes ---- */

/* `more` is left out on a phone. */
static void cell(FILE *f, const char *format, bool more, double v)
{
    fprintf(f, more ? "<td class=more>" : "<td>");
    if (isfinite(v))
        fprintf(f, format, v);
    else
        fprintf(f, "–");
    fprintf(f, "</td>");
}

static void write_class(FILE *f, const cJSON *c)
{
    double accuracy = number_in(c, "accuracy");
    fprintf(f, "<tr><td>");
    html_string(f, text_in(c, "name"));
    fprintf(f, "</td>");
    cell(f, "%.0f", false, number_in(c, "images"));
    fprintf(f, "<td><span class=bar><i style=\"width:%.1f%%\"></i></span>",
            isfinite(accuracy) ? accuracy : 0);
    fprintf(f, isfinite(accuracy) ? "<span class=num>%.1f%%</span></td>" : "–</td>", accuracy);
    cell(f, "%.1f%%", true, number_in(c, "precision"));
    cell(f, "%.1f", false, number_in(c, "f1"));
    fprintf(f, "</tr>\n");
}

static int by_accuracy(const void *a, const void *b)
{
    double x = number_in(*(const cJSON *const *)a, "accuracy");
    double y = number_in(*(const cJSON *const *)b, "accuracy");
    if (isnan(x) || isnan(y))
        return isnan(x) - isnan(y);
    return (x > y) - (x < y);
}

static void class_table(FILE *f, const cJSON **c, int n)
{
    fprintf(
        f,
        "<div class=scroll><table><tr><th>class<th>images<th>accuracy<th class=more>precision<th>F1"
        "</tr>\n");
    for (int i = 0; i < n; i++)
        write_class(f, c[i]);
    fprintf(f, "</table></div>\n");
}

enum { MANY = 24 };

/* All where they are few; else the least accurate, and all of them folded. */
static void write_classes(FILE *f, const cJSON *classes)
{
    enum { WORST = 15 };
    int K = cJSON_GetArraySize(classes), n = 0;
    const cJSON **c = xcalloc((size_t)K + 1, sizeof *c), *at;
    cJSON_ArrayForEach(at, classes) c[n++] = at;
    fprintf(f, "<div class=card><p><b>Classes</b>%s</p>\n", K > MANY ? ", the least accurate" : "");
    if (K > MANY) {
        qsort(c, (size_t)n, sizeof *c, by_accuracy);
        class_table(f, c, WORST);
        fprintf(f, "<details><summary>all %d classes</summary>\n", K);
    }
    class_table(f, c, n);
    fprintf(f, "%s</div>\n", K > MANY ? "</details>" : "");
    free(c);
}

/* ---- confusion ---- */

static const char *class_name(const cJSON *classes, int k)
{
    return text_in(cJSON_GetArrayItem(classes, k), "name");
}

/* A name of up to 14 letters, which begin in the middle of no character. */
static void short_name(FILE *f, const char *name)
{
    char cut[80];
    size_t n = 0;
    for (int letters = 0; name[n] && letters < 13 && n < sizeof cut - 8; letters++) {
        int bytes = utf8_bytes((const unsigned char *)name + n);
        n += bytes ? (size_t)bytes : 1;
    }
    snprintf(cut, sizeof cut, "%.*s%s", (int)n, name, name[n] ? "…" : "");
    html_string(f, cut);
}

/* Of the longest, as short_name gives them. */
static int name_letters(const cJSON *classes, int K)
{
    size_t most = 3;
    for (int k = 0; k < K; k++) {
        size_t n = strlen(class_name(classes, k));
        most = n > most ? n : most;
    }
    return most < 14 ? (int)most : 14;
}

/* A square for each label (row) and prediction (column), as dark as the share of the label's
 * images, blue where they are right. */
static void write_matrix(FILE *f, const cJSON *classes, const cJSON *confused, int K)
{
    int letters = name_letters(classes, K); /* their room */
    int side = K <= 4 ? 64 : 400 / K, left = 16 + 8 * letters, top = 20 + 5 * letters;
    int size = K * side;
    double *counts = xcalloc((size_t)K * (size_t)K, sizeof *counts);
    const cJSON *at;
    cJSON_ArrayForEach(at, confused)
    {
        int label = place(at, 0), prediction = place(at, 1);
        if (label >= 0 && label < K && prediction >= 0 && prediction < K)
            counts[label * K + prediction] = item(at, 2);
    }
    int width = left + size + 5 * letters, height = top + size + 2;
    fprintf(f,
            "<svg class=cells style=max-width:%dpx viewBox=\"0 0 %d %d\" role=img "
            "aria-label=\"confusion matrix\">",
            width < 450 ? width * 23 / 20 : 520, width, height);
    for (int i = 0; i < K; i++) {
        double row = 0;
        for (int j = 0; j < K; j++)
            row += counts[i * K + j];
        fprintf(f, "<text class=\"name y\" x=%d y=%.1f>", left - 8, top + (i + 0.5) * side + 4);
        short_name(f, class_name(classes, i));
        fprintf(f, "</text><text class=name transform=\"translate(%.1f %d) rotate(-40)\">",
                left + (i + 0.5) * side, top - 8);
        short_name(f, class_name(classes, i));
        fprintf(f, "</text>");
        for (int j = 0; j < K; j++) {
            double count = counts[i * K + j], share = row > 0 ? count / row : 0;
            double x = left + j * side, y = top + i * side;
            fprintf(f, "<g><rect class=none x=%.0f y=%.0f width=%d height=%d rx=3 />", x, y,
                    side - 2, side - 2);
            if (count > 0)
                fprintf(f,
                        "<rect class=%s x=%.0f y=%.0f width=%d height=%d rx=3 "
                        "fill-opacity=%.2f />",
                        i == j ? "good" : "bad", x, y, side - 2, side - 2, 0.12 + 0.88 * share);
            if (count > 0 && side >= 22)
                fprintf(f, "<text class=\"x%s\" x=%.1f y=%.1f>%.0f</text>",
                        share > 0.5 ? " on" : "", x + side / 2.0 - 1, y + side / 2.0 + 3, count);
            fprintf(f, "<title>");
            html_string(f, class_name(classes, i));
            fprintf(f, " taken for ");
            html_string(f, class_name(classes, j));
            fprintf(f, ": %.0f of %.0f</title></g>", count, row);
        }
    }
    fprintf(f, "</svg>\n");
    free(counts);
}

static int by_images(const void *a, const void *b)
{
    double x = item(*(const cJSON *const *)a, 2), y = item(*(const cJSON *const *)b, 2);
    return (x < y) - (x > y);
}

static void write_pairs(FILE *f, const cJSON *classes, const cJSON *confused)
{
    enum { PAIRS = 20 };
    const cJSON **pairs = xcalloc((size_t)cJSON_GetArraySize(confused) + 1, sizeof *pairs), *at;
    int n = 0;
    cJSON_ArrayForEach(at, confused) if (item(at, 0) != item(at, 1)) pairs[n++] = at;
    qsort(pairs, (size_t)n, sizeof *pairs, by_images);
    fprintf(f, "<div class=scroll><table><tr><th>class<th class=left>taken for<th>images</tr>\n");
    for (int i = 0; i < n && i < PAIRS; i++) {
        fprintf(f, "<tr><td>");
        html_string(f, class_name(classes, place(pairs[i], 0)));
        fprintf(f, "<td class=left>");
        html_string(f, class_name(classes, place(pairs[i], 1)));
        fprintf(f, "<td>%.0f</tr>\n", item(pairs[i], 2));
    }
    fprintf(f, "</table></div>\n");
    free(pairs);
}

static void write_confusion(FILE *f, const cJSON *classes, const cJSON *confused)
{
    enum { MATRIX = 40 };
    int K = cJSON_GetArraySize(classes);
    fprintf(f, "<div class=card><p><b>%s</b>%s</p>\n", K <= MATRIX ? "Confusion" : "Confused",
            K <= MATRIX ? ": rows are labels, columns predictions" : ", the most");
    if (K <= MATRIX)
        write_matrix(f, classes, confused, K);
    else
        write_pairs(f, classes, confused);
    fprintf(f, "</div>\n");
}

/* ---- calibration ---- */

/* Of each bin of probability, how many were right: columns that should end at the diagonal. */
static void write_calibration(FILE *f, const cJSON *bins)
{
    enum { SIZE = 200, AT = 40, TOP = 8 };
    int n = cJSON_GetArraySize(bins);
    fprintf(f, "<figure class=\"chart cal\"><figcaption><b>Calibration</b><span>right, by "
               "probability</span></figcaption><svg viewBox=\"0 0 410 236\" role=img "
               "aria-label=calibration>");
    for (int i = 0; i <= 4; i++)
        fprintf(f,
                "<path class=grid d=\"M%d %dH390\"/><text class=y x=%d y=%d>%d%%</text>"
                "<text class=x x=%d y=%d>%d%%</text>",
                AT, TOP + i * SIZE / 4, AT - 6, TOP + i * SIZE / 4 + 4, 100 - 25 * i,
                AT + i * 350 / 4, TOP + SIZE + 18, 25 * i);
    for (int i = 0; i < n; i++) {
        const cJSON *bin = cJSON_GetArrayItem(bins, i);
        double images = item(bin, 0), share = images > 0 ? item(bin, 1) / images : 0;
        if (images > 0)
            fprintf(f,
                    "<rect class=col x=%.1f y=%.1f width=%.1f height=%.1f rx=2><title>%.0f of %.0f "
                    "images were right</title></rect>",
                    AT + i * 350.0 / n + 1, TOP + SIZE * (1 - share), 350.0 / n - 2,
                    fmax(SIZE * share, 1), item(bin, 1), images);
    }
    fprintf(f, "<path class=ideal d=\"M%d %dL390 %d\"/></svg></figure>\n", AT, TOP + SIZE, TOP);
}

static void write_evaluation(FILE *f, const Run *r)
{
    const cJSON *classes = cJSON_GetObjectItemCaseSensitive(r->eval, "classes");
    const cJSON *confused = cJSON_GetObjectItemCaseSensitive(r->eval, "confused");
    const cJSON *bins = cJSON_GetObjectItemCaseSensitive(r->eval, "calibration");
    double step = number_in(r->eval, "step");
    if (!cJSON_IsArray(classes) || !cJSON_IsArray(confused) || !cJSON_IsArray(bins))
        return;
    fprintf(f, "<h2>Evaluation</h2>\n<p class=sub>%.0f images", number_in(r->eval, "images"));
    if (isfinite(step))
        fprintf(f, ", at step %.0f", step);
    fprintf(f, ": top-1 %.2f%%, F1 %.2f (mean over classes)</p>\n<div class=two>\n",
            number_in(r->eval, "top1"), number_in(r->eval, "macro_f1"));
    int K = cJSON_GetArraySize(classes);
    bool matrix_high = K > 4 && K <= 12, table_short = K > MANY; /* the other column has room */
    bool few = matrix_high || table_short;
    fprintf(f, "<div class=column>");
    write_confusion(f, classes, confused);
    if (!few)
        write_calibration(f, bins);
    fprintf(f, "</div><div class=column>");
    write_classes(f, classes);
    if (few)
        write_calibration(f, bins);
    fprintf(f, "</div></div>\n");
}

/* ---- pictures ---- */

static void write_picture(FILE *f, const cJSON *p, bool small)
{
    const char *label = text_in(p, "label"), *prediction = text_in(p, "prediction");
    const char *attention = text_in(p, "attention"), *file = text_in(p, "file");
    const char *slash = strrchr(file, '/');
    bool right = strcmp(label, prediction) == 0;
    fprintf(f, "<figure%s><div><img alt=\"\" src=\"data:image/jpeg;base64,%s\">",
            small ? " class=small" : "", text_in(p, "jpeg"));
    if (*attention)
        fprintf(f, "<img alt=\"attention\" src=\"data:image/jpeg;base64,%s\">", attention);
    fprintf(f, "</div><figcaption><b>");
    html_string(f, label);
    fprintf(f, "</b> %.1f%%", 100 * number_in(p, "truth"));
    if (!right) {
        fprintf(f, "<br><span class=wrong>");
        html_string(f, prediction);
        fprintf(f, " %.1f%%</span>", 100 * number_in(p, "probability"));
    }
    fprintf(f, "<span class=file title=\"");
    html_string(f, file);
    fprintf(f, "\">");
    html_string(f, slash ? slash + 1 : file);
    fprintf(f, "</span></figcaption></figure>\n");
}

/* Pictures are made at the end of a run: where it has gone on since, they are of another
 * evaluation. */
static bool pictures_fit(const Run *r)
{
    double step = number_in(r->eval, "step");
    return isnan(step) || step == number_in(r->pictures, "step");
}

static void write_pictures(FILE *f, const Run *r)
{
    const cJSON *all = cJSON_GetObjectItemCaseSensitive(r->pictures, "pictures"), *p;
    bool small = number_in(r->pictures, "width") < 150, attention = false;
    cJSON_ArrayForEach(p, all) attention |= *text_in(p, "attention") != 0;
    for (int right = 0; right < 2; right++) {
        int n = 0;
        cJSON_ArrayForEach(p, all)
        {
            if ((strcmp(text_in(p, "label"), text_in(p, "prediction")) == 0) != right)
                continue;
            if (n++ == 0)
                fprintf(f, "<h2>%s</h2>\n%s<div class=\"pics%s\">\n",
                        right ? "Right" : "Most wrong",
                        attention && !right
                            ? "<p class=note>The label and its probability, and what it was taken "
                              "for. Beside a picture is the attention of all blocks on its patches "
                              "(rollout): bright is much.</p>\n"
                            : "",
                        attention ? " pairs" : "");
            write_picture(f, p, small);
        }
        if (n)
            fprintf(f, "</div>\n");
    }
}

/* ---- settings ---- */

static void entry(FILE *f, const char *key, const char *value)
{
    if (!*value)
        return;
    fprintf(f, "<dt>%s</dt><dd>", key);
    html_string(f, value);
    fprintf(f, "</dd>\n");
}

/* What was used: time on devices, arithmetic, memory, data. */
static void write_cost(FILE *f, const Run *r)
{
    const History *h = &r->history;
    char text[160], a[32], b[32];
    double step = newest(&h->steps, H_step), images = step * h->batch;
    double flop = images * 3e9 * h->forward_gflop, memory = newest(&h->steps, H_memory);
    fprintf(f, "<div class=card><p><b>Machine and cost</b></p><dl>\n");
    entry(f, "device", h->device);
    entry(f, "host", h->host);
    entry(f, "built with", h->built);
    entry(f, "started", h->started);
    if (isfinite(seconds_of(h))) {
        format_seconds(seconds_of(h), a, sizeof a);
        snprintf(text, sizeof text, "%s on %.0f device%s: %.3g device hours", a, h->ranks,
                 h->ranks > 1 ? "s" : "", seconds_of(h) * h->ranks / 3600);
        entry(f, "time", text);
    }
    if (isfinite(images)) {
        format_count(images, a, sizeof a);
        format_count(flop, b, sizeof b);
        snprintf(text, sizeof text, "%s images, %sFLOP", a, b);
        entry(f, "work", text);
    }
    if (isfinite(memory)) {
        format_count(memory, a, sizeof a);
        snprintf(text, sizeof text, "%sB on the host", a);
        entry(f, "peak memory", text);
    }
    if (h->damaged > 0) {
        snprintf(text, sizeof text, "%.0f, replaced by others", h->damaged);
        entry(f, "damaged images", text);
    }
    fprintf(f, "</dl></div>\n");
}

static const char *const main_settings[] = {"data",         "weights",      "model",
                                            "image-height", "patch-size",   "width",
                                            "layers",       "heads",        "epochs",
                                            "steps",        "batch-size",   "lr",
                                            "schedule",     "warmup-steps", "opt",
                                            "weight-decay", "clip",         "ema",
                                            "mixup",        "cutmix",       "label-smoothing",
                                            "auto-augment", "color-jitter", "drop-path",
                                            "seed",         "precision"};

static void write_settings(FILE *f, const Run *r)
{
    if (!r->settings && !r->has_history)
        return;
    fprintf(f, "<h2>Settings and cost</h2>\n<div class=two>\n");
    if (r->has_history)
        write_cost(f, r);
    if (r->settings) {
        fprintf(f, "<div class=card><p><b>Settings</b></p><dl>\n");
        for (int i = 0; i < COUNT(main_settings); i++) {
            char *value = setting(r, main_settings[i]);
            if (strcmp(value, "0") != 0)
                entry(f, main_settings[i], value);
            free(value);
        }
        fprintf(f, "</dl><details><summary>config.ini: all settings</summary><pre>");
        html_string(f, r->settings);
        fprintf(f, "</pre></details></div>\n");
    }
    fprintf(f, "</div>\n");
}

/* ---- several runs ---- */

static void write_runs(FILE *f, const Run *runs, int n)
{
    fprintf(f, "<div class=\"card scroll\"><table><tr><th>run<th>best top-1<th>at step<th>loss"
               "<th>balanced<th>steps<th>images/s<th>time</tr>\n");
    for (int i = 0; i < n; i++) {
        const History *h = &runs[i].history;
        char time[32] = "–";
        double step = NAN, best = best_top1(h, &step);
        if (isfinite(seconds_of(h)))
            format_seconds(seconds_of(h), time, sizeof time);
        fprintf(f, "<tr><td>");
        legend_line(f, i % 6, false, "");
        html_string(f, runs[i].name);
        fprintf(f, "</td>");
        cell(f, "%.2f%%", false, best);
        cell(f, "%.0f", false, step);
        cell(f, "%.4f", false, newest(&h->evals, E_loss));
        cell(f, "%.2f%%", false, newest(&h->evals, E_balanced));
        cell(f, "%.0f", false, newest(&h->steps, H_step));
        cell(f, "%.0f", false, newest(&h->steps, H_images_per_s));
        fprintf(f, "<td>%s</td></tr>\n", time);
    }
    fprintf(f, "</table></div>\n");
}

/* A line for each setting that is not the same in all runs. */
static void write_differences(FILE *f, const Run *runs, int n)
{
    int lines = 0;
    char *copy = xstrdup(runs[0].settings ? runs[0].settings : ""), *rest = copy, *line;
    while ((line = strsep(&rest, "\n"))) {
        char *equals = strstr(line, " = "), *first, *values[PAGE_RUNS];
        bool differ = false;
        if (*line == '#' || !equals)
            continue;
        *equals = 0;
        first = equals + 3;
        for (int i = 0; i < n; i++) {
            values[i] = setting(&runs[i], line);
            differ |= strcmp(values[i], first) != 0;
        }
        if (differ && lines++ == 0) {
            fprintf(f, "<h2>What differs</h2>\n<div class=\"card scroll\"><table><tr><th>setting");
            for (int i = 0; i < n; i++) {
                fprintf(f, "<th>");
                html_string(f, runs[i].name);
            }
            fprintf(f, "</tr>\n");
        }
        if (differ)
            fprintf(f, "<tr><td>%s", line);
        for (int i = 0; i < n; i++) {
            if (differ) {
                fprintf(f, "<td>");
                html_string(f, *values[i] ? values[i] : "–");
            }
            free(values[i]);
        }
        fprintf(f, differ ? "</tr>\n" : "");
    }
    if (lines)
        fprintf(f, "</table></div>\n");
    free(copy);
}

/* ---- the page ---- */

static void write_head(FILE *f, const Run *runs, int n)
{
    fprintf(f, "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n<meta name=viewport "
               "content=\"width=device-width,initial-scale=1\">\n<title>");
    html_string(f, runs[0].name);
    if (n > 1)
        fprintf(f, " and %d more", n - 1);
    fprintf(f, "</title>\n<style>%s</style></head>\n<body><main>\n<h1>", style);
    if (n > 1)
        fprintf(f, "%d runs", n);
    else
        html_string(f, runs[0].name);
    fprintf(f, "</h1>\n");
}

/* "Vision Transformer of width 128, 4 layers, 565 k parameters; shapes: 5000 images, 10 classes" */
static void write_subtitle(FILE *f, const Run *r)
{
    const History *h = &r->history;
    char *width = setting(r, "width"), *layers = setting(r, "layers"),
         *patch = setting(r, "patch-size");
    char *pixels = setting(r, "image-width"), parameters[32];
    fprintf(f, "<p class=sub>Vision Transformer");
    if (*width)
        fprintf(f, " of width %s, %s layers, patches of %s in %s pixels", width, layers, patch,
                pixels);
    if (r->has_history && h->parameters > 0) {
        format_count(h->parameters, parameters, sizeof parameters);
        fprintf(f, ", %s parameters. Data: ", parameters);
        html_string(f, h->data);
        fprintf(f, ", %.0f images to train on, %.0f to evaluate on, %.0f classes. ",
                h->train_images, h->val_images, h->classes);
        if (*h->started)
            fprintf(f, "Started %.10s.", h->started);
    } else {
        fprintf(f, ". Weights: ");
        html_string(f, text_in(r->eval, "weights"));
        fprintf(f, ". Data: ");
        html_string(f, text_in(r->eval, "data"));
    }
    fprintf(f, "</p>\n");
    free(width);
    free(layers);
    free(patch);
    free(pixels);
}

static void write_page(FILE *f, Run *runs, int n)
{
    bool trained = false;
    for (int i = 0; i < n; i++)
        trained |= runs[i].history.steps.rows + runs[i].history.evals.rows > 0;
    write_head(f, runs, n);
    if (n > 1) {
        fprintf(f, "<p class=sub>laid over each other</p>\n");
        write_runs(f, runs, n);
    } else {
        write_subtitle(f, runs);
        write_tiles(f, runs);
    }
    if (trained)
        write_charts(f, runs, n);
    if (n > 1) {
        write_differences(f, runs, n);
    } else {
        write_evaluation(f, runs);
        if (pictures_fit(runs))
            write_pictures(f, runs);
        write_settings(f, runs);
    }
    fprintf(f, "<footer>Made by vit.c from the files of the run; ./vit report makes it again."
               "</footer>\n</main></body></html>\n");
}

/* The numbers are there for spreadsheets too; a folder that cannot be written to keeps none. */
static void write_csv(const Run *r)
{
    Error e;
    if (r->history.steps.rows + r->history.evals.rows > 0 && access(r->dir, W_OK) == 0 &&
        !history_csv(&r->history, r->dir, &e))
        warn("%s", e.what);
}

bool page_write(char **dirs, int n, const char *path, Error *e)
{
    Run runs[PAGE_RUNS];
    int read = 0;
    bool ok = n <= PAGE_RUNS ||
              fail(e, "name fewer", "%d runs are more than the %d of a page", n, PAGE_RUNS);
    while (ok && read < n)
        ok = read_run(dirs[read], &runs[read], e) && ++read;
    if (ok) {
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);
        for (int i = 0; i < n; i++)
            write_csv(&runs[i]);
        if (!f)
            die("free some memory", "out of memory: cannot write %s", path);
        write_page(f, runs, n);
        fclose(f);
        ok = save_file(path, text, size, false, e);
        free(text);
    }
    while (read > 0)
        run_free(&runs[--read]);
    return ok;
}
