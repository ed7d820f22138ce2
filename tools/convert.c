/* convert.c - ./vit import and export: weights from other programs' forms, and into them.
 *
 * What is read is weights_open's work, what is written weights/export.c's and onnx.c's. */
#include "tools/model.h"
#include "tools/tools.h"
#include "util/files.h"
#include "util/text.h"
#include "weights/export_hf.h"
#include "weights/onnx.h"

#include <stdlib.h>
#include <string.h>

static struct {
    const char *format;
    bool normalise, beside;
} o;

/* What is left of argv when the model is open. */
static const char *take_out(const Command *c, int argc, char **argv)
{
    bool one = argc == 2 && strncmp(argv[1], "--", 2) != 0;
    for (int i = 1; i < argc && !one; i++)
        if (strncmp(argv[i], "--", 2) == 0)
            flags_none_left(c, 2, (char *[]){argv[0], argv[i], NULL});
    if (!one) {
        char *usage = xasprintf("./vit %s %s", c->name, c->usage);
        die_usage(usage, "%s: takes IN and OUT, not %d paths", c->name, argc);
    }
    return argv[1];
}

/* OUT where a folder is made, or the file with that ending: no other file that its name promises.
 */
static void check_ending(const char *out, const char *ending)
{
    static const char others[] = ".safetensors|.pth|.pt|.bin|.ckpt|.tar|.npz|.onnx|.json|.h5|.gguf";
    const char *dot = strrchr(out, '.');
    const char *hint = *ending ? xasprintf("name FILE%s", ending) : "name a folder";
    if (dot && strcmp(dot, ending) != 0 && find_word(others, dot) >= 0)
        die_usage(hint, "%s: what is written is no %s", out, dot);
}

/* ---- import ---- */

/* OUT is a file, or a folder for one. */
static int run_import(const Command *c, int argc, char **argv)
{
    Error e;
    ToolModel m;
    flags_take(c, &argc, argv);
    tool_model_open(&m, c, &argc, argv);
    const char *out = take_out(c, argc, argv);
    check_ending(out, ".safetensors");
    const char *dot = strrchr(out, '.');
    bool file = dot && strcmp(dot, ".safetensors") == 0;
    char *path = file ? xstrdup(out) : xasprintf("%s/model.safetensors", out);
    if (!file && !make_dirs(out, &e))
        die(e.hint, "%s", e.what);
    tool_model_say(&m);
    Export x = tool_model_export(&m);
    if (!export_ours(&x, path, &e))
        die(e.hint, "%s", e.what);
    printf("%s\n", path);
    tool_model_close(&m);
    free(path);
    return 0;
}

const Command command_import = {
    .name = "import",
    .summary = "weights of timm, transformers, ... to model.safetensors",
    .usage = "IN OUT [--heads N ...]",
    .help =
        "Reads weights of any form that --weights takes (safetensors, .pth, .bin, .npz, a hub's "
        "folder, a\nrun) and writes them as the training program does, with all settings in the "
        "file. OUT is a\n.safetensors file, or a folder for model.safetensors. What neither the "
        "file nor a config.json beside\nit says can be given as a flag: --heads, --act, --pool, "
        "--eps, --mean-r, ... (./train_cpu --help all).\n",
    .run = run_import,
};

/* ---- export ---- */

static const Flag export_flags[] = {
    {"format", "F", "timm or hf (transformers): a folder; npz (Google) or onnx: a file", FLAG_TEXT,
     &o.format, 0, 0},
    {"normalise", "", "onnx: takes pixels of 0..255; (x / 255 - mean) / std is inside", FLAG_SWITCH,
     &o.normalise, 0, 0},
    {"external-data", "", "onnx: weights in OUT.data, as from 2 GiB on", FLAG_SWITCH, &o.beside, 0,
     0},
};

enum { TO_TIMM, TO_HF, TO_NPZ, TO_ONNX };

static int format_of(void)
{
    static const char *const names[] = {"timm", "hf", "npz", "onnx", NULL};
    if (!o.format)
        die_usage("--format timm, hf, npz or onnx", "--format is missing");
    int format = find_word("timm|hf|npz|onnx|transformers", o.format);
    if (format < 0)
        die_usage(did_you_mean("--format ", o.format, names, "--format timm, hf, npz or onnx"),
                  "no format is called '%s'", o.format);
    if (format != TO_ONNX && (o.normalise || o.beside))
        die_usage("leave it out", "--%s is for onnx alone",
                  o.normalise ? "normalise" : "external-data");
    return format > TO_ONNX ? TO_HF : format;
}

static int run_export(const Command *c, int argc, char **argv)
{
    Error e;
    ToolModel m;
    flags_take(c, &argc, argv);
    static const char *const endings[] = {
        [TO_TIMM] = "", [TO_HF] = "", [TO_NPZ] = ".npz", [TO_ONNX] = ".onnx"};
    int format = format_of();
    tool_model_open(&m, c, &argc, argv);
    const char *out = take_out(c, argc, argv);
    check_ending(out, endings[format]);
    tool_model_say(&m);
    Export x = tool_model_export(&m);
    int flags = (o.normalise ? ONNX_NORMALISE : 0) | (o.beside ? ONNX_BESIDE : 0);
    bool ok = false;
    if (format == TO_TIMM)
        ok = export_timm(&x, out, &e);
    else if (format == TO_HF)
        ok = export_hf(&x, out, &e);
    else if (format == TO_NPZ)
        ok = export_npz(&x, out, &e);
    else
        ok = export_onnx(&x, out, flags, &e);
    if (!ok)
        die(e.hint, "%s", e.what);
    if (*x.notes)
        fprintf(stderr, "note: %s\n", x.notes);
    printf("%s\n", out);
    tool_model_close(&m);
    return 0;
}

const Command command_export = {
    .name = "export",
    .summary = "weights to timm, transformers, Google's npz or ONNX",
    .usage = "--format timm|hf|npz|onnx IN OUT [--normalise] [--heads N ...]",
    .help =
        "IN is a run (its best checkpoint), a file of weights or a hub's folder. timm and hf "
        "write a folder with\nmodel.safetensors and config.json: timm.create_model("
        "'local-dir:OUT', pretrained=True), or\nfrom_pretrained('OUT') of the class that "
        "config.json names. npz writes Google's arrays. onnx writes a graph\nof opset 17 for any "
        "number of images, [N, 3, H, W] -> logits [N, K]. A network that the form cannot\nhold "
        "is refused with the reason.\n",
    .flags = export_flags,
    .n_flags = COUNT(export_flags),
    .run = run_export,
};
