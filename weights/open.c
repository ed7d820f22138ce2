/* open.c - a file of weights, whatever its form. See open.h.
 *
 * Read in this order: what is refused, several files, archives, opening, folders.
 */
#include "weights/open.h"

#include "util/files.h"
#include "weights/npz.h"
#include "weights/torch.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- what is refused ---- */

/* How files begin that are no weights, or weights in a form that has to be converted first. */
static const struct {
    const char *begin;
    size_t n;
    const char *what, *hint;
} refused[] = {
#define BEGINS(with) with, sizeof with - 1
    {BEGINS("version https://git-lfs"), "a Git LFS pointer: the file itself was not downloaded",
     "in its folder: git lfs pull; or download the file from its web page"},
    {BEGINS("version https://hawser"), "a Git LFS pointer: the file itself was not downloaded",
     "in its folder: git lfs pull"},
    {BEGINS("<!"), "a web page", "download the file itself: the link to its raw content"},
    {BEGINS("<?xml"), "a web page", "download the file itself: the link to its raw content"},
    {BEGINS("<html"), "a web page", "download the file itself: the link to its raw content"},
    {BEGINS("\x80\x02"), "a bare pickle, which is not read",
     "in Python: torch.save(model.state_dict(), 'new.pth')"},
    {BEGINS("\x80\x03"), "a bare pickle, which is not read",
     "in Python: torch.save(model.state_dict(), 'new.pth')"},
    {BEGINS("\x80\x04"), "a bare pickle, which is not read",
     "in Python: torch.save(model.state_dict(), 'new.pth')"},
    {BEGINS("\x80\x05"), "a bare pickle, which is not read",
     "in Python: torch.save(model.state_dict(), 'new.pth')"},
    {BEGINS("\x93NUMPY"), "a single array of numpy's",
     "give a .npz with all tensors, or safetensors"},
    {BEGINS("\x89HDF"), "an HDF5 file (Keras)",
     "give the same model as safetensors, .pth or Google's .npz"},
    {BEGINS("GGUF"), "a GGUF file", "give the safetensors or .pth that it was made from"},
    {BEGINS("\x1f\x8b"), "a gzip file", "gunzip it first"},
    {BEGINS("BZh"), "a bzip2 file", "bunzip2 it first"},
    {BEGINS("\xfd"
            "7zXZ"),
     "an xz file", "unxz it first"},
    {BEGINS("\x28\xb5\x2f\xfd"), "a zstd file", "unzstd it first"},
    {BEGINS("\x08\x07\x12"), "an ONNX file", "give the safetensors or .pth that it was made from"},
    {BEGINS("\x08\x08\x12"), "an ONNX file", "give the safetensors or .pth that it was made from"},
    {BEGINS("\xff\xd8\xff"), "a JPEG picture", "--weights takes a file of weights"},
    {BEGINS("\x89PNG"), "a PNG picture", "--weights takes a file of weights"},
    {BEGINS("\x7f"
            "ELF"),
     "a program", "--weights takes a file of weights"},
#undef BEGINS
};

/* Web pages may begin with blanks, and in capitals. */
static bool is_refused(const SafeTensors *f, Error *e)
{
    uint64_t at = 0;
    while (at < f->size && at < 64 && strchr(" \t\r\n", f->map[at]) && f->map[at])
        at++;
    for (int i = 0; i < COUNT(refused); i++) {
        bool page = *refused[i].begin == '<';
        const char *begin = (const char *)f->map + (page ? at : 0);
        uint64_t rest = f->size - (page ? at : 0);
        if (rest < refused[i].n || (page ? strncasecmp(begin, refused[i].begin, refused[i].n)
                                         : memcmp(begin, refused[i].begin, refused[i].n)) != 0)
            continue;
        fail(e, refused[i].hint, "%s: is %s", f->path, refused[i].what);
        return true;
    }
    bool tar = f->size > 262 && memcmp(f->map + 257, "ustar", 5) == 0;
    if (tar)
        fail(e, "unpack it, and give the file of weights in it", "%s: is a tar archive", f->path);
    return tar;
}

/* ---- several files ---- */

static SafeTensors *open_mapped(SafeTensors *f, bool part, Error *e);

static const char index_hint[] = "download the index and all of its parts again";

/* Adds the tensors of a part that the index says are there. */
static bool add_part(SafeTensors *f, const char *name, const cJSON *map, Error *e)
{
    const char *slash = strrchr(f->path, '/');
    char *path = xasprintf("%.*s%s", slash ? (int)(slash - f->path) + 1 : 0, f->path, name);
    SafeTensors *part = NULL;
    if (path_exists(path))
        part = st_map(path, e);
    else
        fail(e, index_hint, "%s: its part %.150s is not beside it", f->path, name);
    free(path);
    if (part)
        part = open_mapped(part, true, e);
    if (!part)
        return false;
    st_take(f, part);
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        if (!cJSON_IsString(item) || strcmp(item->valuestring, name) != 0)
            continue;
        const StTensor *t = st_find(part, item->string);
        if (!t)
            return fail(e, index_hint, "%s: tensor %.150s is not in %.150s", f->path, item->string,
                        name);
        st_add_piece(st_add(f, t->name, t->type, t->ndim, t->shape), st_piece(part, t));
    }
    return true;
}

/* {"weight_map": {tensor: file}}: each file once, in the folder of the index. */
static bool read_parts(SafeTensors *f, const cJSON *map, Error *e)
{
    const cJSON *item, *earlier;
    cJSON_ArrayForEach(item, map)
    {
        const char *name = cJSON_IsString(item) ? item->valuestring : "";
        if (!*name || strchr(name, '/') || *name == '.' || strstr(name, ".json"))
            return fail(e, index_hint, "%s: '%.100s' is no file of its folder", f->path, name);
        for (earlier = map->child; earlier != item; earlier = earlier->next)
            if (strcmp(earlier->valuestring, name) == 0)
                break;
        if (earlier == item && !add_part(f, name, map, e))
            return false;
    }
    return st_index(f, e);
}

enum { MAX_INDEX = 16 << 20 };

/* A JSON file; `f` is what it was mapped as. */
static SafeTensors *open_index(SafeTensors *f, Error *e)
{
    SafeTensors *view = st_view(f->path);
    cJSON *json =
        f->size <= MAX_INDEX ? cJSON_ParseWithLength((const char *)f->map, f->size) : NULL;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(json, "weight_map");
    bool ok = cJSON_IsObject(map) && map->child;
    if (ok)
        ok = read_parts(view, map, e);
    else
        fail(e, "give the weights themselves, or the .index.json of their parts",
             "%s: is text, and no index of weights", f->path);
    cJSON_Delete(json);
    st_close(f);
    if (ok)
        return view;
    st_close(view);
    return NULL;
}

/* ---- archives ---- */

static bool is_export(const Zip *z)
{
    for (int i = 0; i < z->count; i++) {
        const char *slash = strchr(z->member[i].name, '/');
        if (slash && strcmp(slash, "/archive_format") == 0)
            return true;
    }
    return false;
}

static bool has_arrays(const Zip *z)
{
    for (int i = 0; i < z->count; i++)
        if (strstr(z->member[i].name, ".npy"))
            return true;
    return false;
}

static bool read_archive(SafeTensors *f, Error *e)
{
    Zip z;
    bool ok = zip_read(f->map, f->size, f->path, &z, e);
    if (ok && torch_is_zip(&z))
        ok = torch_read(f, &z, e);
    else if (ok && has_arrays(&z))
        ok = npz_read(f, &z, e);
    else if (ok && is_export(&z))
        ok = fail(e, "in Python: torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
                  "%s: is a program of torch.export, with its weights", f->path);
    else if (ok)
        ok = fail(e, "unpack it, and give the file of weights in it",
                  "%s: is a zip archive, but neither PyTorch's nor numpy's", f->path);
    zip_free(&z);
    return ok;
}

/* ---- opening ---- */

/* 8 bytes of length, within the file, and a brace: other kinds' first bytes may be such a length.
 */
static bool is_safetensors(const SafeTensors *f)
{
    uint64_t length;
    memcpy(&length, f->map, sizeof length);
    return f->size > 8 && f->map[8] == '{' && length <= f->size - 8;
}

/* A damaged safetensors file has its brace, or a length that a header can have. */
static bool begins_well(const SafeTensors *f, Error *e)
{
    uint64_t length;
    char text[9] = "";
    memcpy(&length, f->map, sizeof length);
    for (int i = 0; i < 8; i++)
        text[i] = f->map[i] >= ' ' && f->map[i] < 0x7f ? (char)f->map[i] : '.';
    return length < 1 << 30 || (f->size > 8 && f->map[8] == '{') ||
           fail(e,
                "safetensors, PyTorch's .pth, .pt and .bin, numpy's .npz, and an .index.json of "
                "parts are; convert it to one of them",
                "%s: is no file of weights of a form that is read (it begins with \"%s\")", f->path,
                text);
}

/* Closes f where it returns another, or none. A part of several files is none of several itself. */
static SafeTensors *open_mapped(SafeTensors *f, bool part, Error *e)
{
    bool ok;
    if (is_safetensors(f))
        ok = st_read(f, e);
    else if (f->map[0] == '{' && !part)
        return open_index(f, e);
    else if (memcmp(f->map, "PK\3\4", 4) == 0)
        ok = read_archive(f, e);
    else if (torch_is_old(f))
        ok = torch_read_old(f, e);
    else
        ok = !is_refused(f, e) && begins_well(f, e) && st_read(f, e);
    if (ok)
        return f;
    st_close(f);
    return NULL;
}

/* "model-00002-of-00003.safetensors" */
static bool is_part(const char *path)
{
    const char *slash = strrchr(path, '/'), *of = strstr(slash ? slash : path, "-of-");
    int parts;
    return of && sscanf(of, "-of-%9d", &parts) == 1 && parts > 1;
}

static const char pieces_hint[] =
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE.pth, DIR with all "
    "of them and .metadata";

/* torch.distributed.checkpoint's pieces are zip archives in part, their .metadata a bare pickle. */
static bool is_piece(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".distcp") == 0 || strcmp(name, ".metadata") == 0);
}

SafeTensors *weights_open_file(const char *path, Error *e)
{
    if (is_piece(path)) {
        fail(e, pieces_hint, "%s: is a piece of a checkpoint of several processes (.distcp)", path);
        return NULL;
    }
    if (is_part(path)) {
        fail(e, "give the folder, or the .index.json in it", "%s: is one of several parts", path);
        return NULL;
    }
    SafeTensors *f = st_map(path, e);
    return f ? open_mapped(f, false, e) : NULL;
}

/* ---- folders ---- */

bool weights_ending(const char *name)
{
    static const char *const endings[] = {".safetensors", ".pth",  ".pt",     ".bin",
                                          ".npz",         ".ckpt", ".pth.tar"};
    for (int i = 0; i < COUNT(endings); i++) {
        size_t n = strlen(name), m = strlen(endings[i]);
        if (n > m && strcasecmp(name + n - m, endings[i]) == 0)
            return true;
    }
    return false;
}

/* What lies in a folder, of a run of some trainer's as well. */
typedef struct {
    int files;     /* of weights */
    char *file;    /* the first of them by name */
    char *deeper;  /* the last folder in it by name that has such files */
    bool pieces;   /* of a checkpoint that several processes wrote */
    bool adapters; /* without their model */
} Inside;

static void keep_name(char **kept, const char *name, bool first)
{
    if (*kept && (strcmp(name, *kept) < 0) != first)
        return;
    free(*kept);
    *kept = xstrdup(name);
}

static void look_inside(const char *dir, bool deeper, Inside *in)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        const char *name = entry->d_name, *dot = strrchr(name, '.');
        if (*name == '.')
            continue;
        char *path = xasprintf("%s/%s", dir, name);
        Inside below = {0};
        if (deeper && is_dir(path))
            look_inside(path, false, &below);
        if (below.files)
            keep_name(&in->deeper, name, false);
        if (weights_ending(name)) {
            in->files++;
            keep_name(&in->file, name, true);
        }
        in->pieces |= dot && strcmp(dot, ".distcp") == 0;
        in->adapters |= strcmp(name, "adapter_config.json") == 0;
        free(below.file);
        free(path);
    }
    if (d)
        closedir(d);
}

static bool no_weights(const char *dir, const Inside *in, Error *e)
{
    if (in->adapters)
        return fail(e, "in Python: model.merge_and_unload().save_pretrained(DIR), and give DIR",
                    "%s: holds adapters (adapter_config.json) without the model that they change",
                    dir);
    if (in->pieces)
        return fail(e, pieces_hint, "%s: is a checkpoint in pieces of several processes (.distcp)",
                    dir);
    if (in->files)
        return fail(e, "name one of them itself", "%s: holds %d files of weights, such as %.100s",
                    dir, in->files, in->file);
    if (in->deeper)
        return fail(e, "name that folder, or the file in it",
                    "%s: holds no weights itself, but its folder %.100s does", dir, in->deeper);
    return fail(e,
                "in a folder, model.safetensors, its .index.json, pytorch_model.bin or a single "
                "file of weights are looked for, and a run's checkpoints",
                "%s: holds no weights", dir);
}

/* A model as Hugging Face's cache has it, models--ORG--NAME: refs/main names the folder that is
 * meant, of those in snapshots/. NULL: it is none. */
static char *snapshot_in(const char *dir)
{
    char *ref = xasprintf("%s/refs/main", dir), *snapshot = NULL;
    char *name = path_exists(ref) ? read_text(ref, 4096, &(Error){0}) : NULL;
    if (name && name[strspn(name, "0123456789abcdef")] == '\0')
        snapshot = xasprintf("%s/snapshots/%s", dir, name);
    if (snapshot && !is_dir(snapshot)) {
        free(snapshot);
        snapshot = NULL;
    }
    free(name);
    free(ref);
    return snapshot;
}

char *weights_in_folder(const char *dir, Error *e)
{
    static const char *const names[] = {
        "model.safetensors",           "model.safetensors.index.json",
        "pytorch_model.bin",           "pytorch_model.bin.index.json",
        "open_clip_model.safetensors", "open_clip_pytorch_model.bin"};
    for (int i = 0; i < COUNT(names); i++) {
        char *path = xasprintf("%s/%s", dir, names[i]);
        if (path_exists(path))
            return path;
        free(path);
    }
    char *snapshot = snapshot_in(dir);
    if (snapshot) {
        char *file = weights_in_folder(snapshot, e);
        free(snapshot);
        return file;
    }
    Inside in = {0};
    look_inside(dir, true, &in);
    char *only = in.files == 1 && !in.adapters ? xasprintf("%s/%s", dir, in.file) : NULL;
    if (!only)
        no_weights(dir, &in, e);
    free(in.file);
    free(in.deeper);
    return only;
}
