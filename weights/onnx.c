/* onnx.c - a model as an ONNX graph. See onnx.h.
 *
 * A file is a ModelProto in Google's protocol buffers: fields, each a key (number << 3 | wire type)
 * and a number (varint), four bytes, or a length and so many bytes, which may be a message again.
 * The numbers of the fields are those of onnx.proto; they stand where a message is made. Names of
 * values in the graph are made up here, those of weights are ours.
 *
 * Weights of linear layers are transposed, so that y = x W: MatMul takes any leading axes, and
 * Gemm, which would transpose, only two.
 *
 * Read in this order: protocol buffers, tensors, nodes, layers, the model, the file.
 */
#include "weights/onnx.h"

#include "util/files.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- protocol buffers ---- */

typedef struct {
    uint8_t *at;
    size_t n, room;
} Bytes;

static void put(Bytes *b, const void *bytes, size_t n)
{
    if (b->n + n > b->room) {
        b->room = 2 * (b->n + n);
        b->at = xrealloc(b->at, b->room);
    }
    if (n)
        memcpy(b->at + b->n, bytes, n);
    b->n += n;
}

static void put_varint(Bytes *b, uint64_t v)
{
    do {
        uint8_t byte = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        put(b, &byte, 1);
    } while (v >>= 7);
}

static void put_number(Bytes *b, int field, int64_t v)
{
    put_varint(b, (uint64_t)field << 3);
    put_varint(b, (uint64_t)v);
}

static void put_float(Bytes *b, int field, float v)
{
    put_varint(b, (uint64_t)field << 3 | 5);
    put(b, &v, sizeof v);
}

static void put_bytes(Bytes *b, int field, const void *bytes, size_t n)
{
    put_varint(b, (uint64_t)field << 3 | 2);
    put_varint(b, n);
    put(b, bytes, n);
}

static void put_text(Bytes *b, int field, const char *text)
{
    put_bytes(b, field, text, strlen(text));
}

/* A message as a field of another; it is freed. */
static void put_message(Bytes *b, int field, Bytes *message)
{
    put_bytes(b, field, message->at, message->n);
    free(message->at);
    *message = (Bytes){0};
}

/* A key and its value, as metadata and places of data have them: fields 1 and 2. */
static void put_pair(Bytes *b, int field, const char *key, const char *value)
{
    Bytes pair = {0};
    put_text(&pair, 1, key);
    put_text(&pair, 2, value);
    put_message(b, field, &pair);
}

/* ---- tensors ---- */

enum { FLOAT = 1, INT64 = 7 }; /* TensorProto.DataType */

typedef struct {
    const Export *x;
    Bytes graph;        /* its nodes and initializers */
    FileWriter *beside; /* NULL: weights are in the graph */
    const char *data;   /* its name, as the graph has it */
    uint64_t written;   /* bytes of it */
    int values;         /* names that were made up */
    bool ok;
    Error *e;
} Graph;

/* Names live until the next 256 are made: longer than a block needs them. */
typedef const char *Value;
static Value new_value(Graph *g)
{
    static char names[256][24];
    char *name = names[g->values % 256];
    snprintf(name, sizeof names[0], "v%d", g->values++);
    return name;
}

/* TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13, data_location 14. */
static void put_tensor(Graph *g, const char *name, int type, int ndim, const int64_t *shape,
                       const void *data, size_t bytes)
{
    Bytes t = {0};
    for (int d = 0; d < ndim; d++)
        put_number(&t, 1, shape[d]);
    put_number(&t, 2, type);
    put_text(&t, 8, name);
    if (g->beside && type == FLOAT && g->ok) {
        char offset[24], length[24];
        snprintf(offset, sizeof offset, "%llu", (unsigned long long)g->written);
        snprintf(length, sizeof length, "%zu", bytes);
        put_pair(&t, 13, "location", g->data);
        put_pair(&t, 13, "offset", offset);
        put_pair(&t, 13, "length", length);
        put_number(&t, 14, 1);
        g->ok = file_write(g->beside, data, bytes, g->e);
        g->written += bytes;
    } else {
        put_bytes(&t, 9, data, bytes);
    }
    put_message(&g->graph, 5, &t);
}

/* Numbers as a constant of the graph: [n], or with n = 0 one without axes. */
static Value integers(Graph *g, int n, ...)
{
    int64_t v[8] = {0}, shape = n;
    va_list args;
    va_start(args, n);
    for (int i = 0; i < (n ? n : 1); i++)
        v[i] = va_arg(args, int);
    va_end(args);
    Value name = new_value(g);
    put_tensor(g, name, INT64, n ? 1 : 0, &shape, v, (size_t)(n ? n : 1) * sizeof *v);
    return name;
}

static Value constant(Graph *g, double v)
{
    float f = (float)v;
    Value name = new_value(g);
    put_tensor(g, name, FLOAT, 0, NULL, &f, sizeof f);
    return name;
}

/* A tensor of ours in another shape; transposed: a matrix [out, in] as [in, out]. */
static Value weight_as(Graph *g, const char *name, int ndim, const int64_t *shape, bool transposed)
{
    long n = 1;
    real *v = g->ok ? weights_values(g->x->f, name, &n, g->e) : NULL;
    g->ok = v != NULL;
    float *f = xmalloc((size_t)n * sizeof *f);
    long out = transposed ? shape[1] : 1, in = n / out;
    for (long i = 0; v && i < n; i++)
        f[i % in * out + i / in] = (float)v[i];
    if (v)
        put_tensor(g, name, FLOAT, ndim, shape, f, (size_t)n * sizeof *f);
    free(v);
    free(f);
    return name;
}

static Value vector(Graph *g, const char *name, int n)
{
    return weight_as(g, name, 1, (const int64_t[]){n}, false);
}

/* ---- nodes ---- */

/* Attributes of the node that is made next. AttributeProto: name 1, f 2, i 3, ints 8, type 20. */
static Bytes attributes;
enum { A_FLOAT = 1, A_INT = 2, A_INTS = 7 };

static void attribute(const char *name, int type, Bytes *value)
{
    put_text(value, 1, name);
    put_number(value, 20, type);
    put_message(&attributes, 5, value);
}

static void set_int(const char *name, int v)
{
    Bytes a = {0};
    put_number(&a, 3, v);
    attribute(name, A_INT, &a);
}

static void set_float(const char *name, double v)
{
    Bytes a = {0};
    put_float(&a, 2, (float)v);
    attribute(name, A_FLOAT, &a);
}

static void set_ints(const char *name, int n, const int *v)
{
    Bytes a = {0};
    for (int i = 0; i < n; i++)
        put_number(&a, 8, v[i]);
    attribute(name, A_INTS, &a);
}

/* NodeProto: input 1, output 2, op_type 4, attribute 5. Up to four inputs, NULL ends them. */
static void put_node(Graph *g, const char *op, const Value *in, int ins, const Value *out, int outs)
{
    Bytes node = {0};
    for (int i = 0; i < ins && in[i]; i++)
        put_text(&node, 1, in[i]);
    for (int i = 0; i < outs; i++)
        put_text(&node, 2, out[i]);
    put_text(&node, 4, op);
    put(&node, attributes.at, attributes.n);
    free(attributes.at);
    attributes = (Bytes){0};
    put_message(&g->graph, 1, &node);
}

static Value node(Graph *g, const char *op, Value a, Value b, Value c)
{
    Value out = new_value(g);
    put_node(g, op, (const Value[]){a, b, c}, 3, &out, 1);
    return out;
}

/* ---- layers ---- */

static Value reshape(Graph *g, Value x, Value shape)
{
    return node(g, "Reshape", x, shape, NULL);
}

static Value transpose(Graph *g, Value x, int n, const int *axes)
{
    set_ints("perm", n, axes);
    return node(g, "Transpose", x, NULL, NULL);
}

/* Element i along an axis, which goes away. */
static Value pick(Graph *g, Value x, int axis, int i)
{
    Value index = integers(g, 0, i);
    set_int("axis", axis);
    return node(g, "Gather", x, index, NULL);
}

/* "blocks.3." + "norm1" + ".weight" */
static const char *name_of(const char *layer, const char *kind)
{
    static char names[4][96];
    static int next;
    char *name = names[next++ % 4];
    snprintf(name, sizeof names[0], "%s.%s", layer, kind);
    return name;
}

static Value norm(Graph *g, Value x, const char *layer, int n, double eps)
{
    Value w = vector(g, name_of(layer, "weight"), n), b = vector(g, name_of(layer, "bias"), n);
    set_int("axis", -1);
    set_float("epsilon", eps);
    return node(g, "LayerNormalization", x, w, b);
}

/* y = x W^T + b, W [out, in]. */
static Value linear(Graph *g, Value x, const char *layer, int in, int out)
{
    Value w = weight_as(g, name_of(layer, "weight"), 2, (const int64_t[]){in, out}, true);
    Value y = node(g, "MatMul", x, w, NULL);
    return node(g, "Add", y, vector(g, name_of(layer, "bias"), out), NULL);
}

static Value times(Graph *g, Value x, double by)
{
    return node(g, "Mul", x, constant(g, by), NULL);
}

/* x / 2 (1 + y) */
static Value half_one_plus(Graph *g, Value x, Value y)
{
    return node(g, "Mul", times(g, x, 0.5), node(g, "Add", y, constant(g, 1), NULL), NULL);
}

/* x sigmoid(a x) */
static Value swish(Graph *g, Value x, double a)
{
    Value at = a == 1 ? x : times(g, x, a);
    return node(g, "Mul", x, node(g, "Sigmoid", at, NULL, NULL), NULL);
}

static Value activation(Graph *g, Value x, int act, int F)
{
    if (act == ACT_QUICK_GELU)
        return swish(g, x, 1.702);
    if (act == ACT_GELU_TANH) {
        Value cube = node(g, "Mul", node(g, "Mul", x, x, NULL), x, NULL);
        Value inner = node(g, "Add", x, times(g, cube, 0.044715), NULL);
        return half_one_plus(g, x, node(g, "Tanh", times(g, inner, sqrt(2 / M_PI)), NULL, NULL));
    }
    if (act == ACT_SWIGLU) {
        const Value out[] = {new_value(g), new_value(g)}, in[] = {x, integers(g, 2, F, F)};
        set_int("axis", -1);
        put_node(g, "Split", in, 2, out, 2);
        return node(g, "Mul", swish(g, out[0], 1), out[1], NULL);
    }
    return half_one_plus(g, x, node(g, "Erf", times(g, x, sqrt(0.5)), NULL, NULL));
}

/* softmax(q k^T / sqrt(hs)) v of q [., H, n, hs], k and v [N, H, T, hs] -> [N, n, H, hs] */
static Value attend(Graph *g, Value q, Value k, Value v)
{
    const Config *c = g->x->c;
    q = times(g, q, 1 / sqrt(c->width / c->heads));
    Value scores = node(g, "MatMul", q, transpose(g, k, 4, (const int[]){0, 1, 3, 2}), NULL);
    set_int("axis", -1);
    Value weights = node(g, "Softmax", scores, NULL, NULL);
    Value out = node(g, "MatMul", weights, v, NULL);
    return transpose(g, out, 4, (const int[]){0, 2, 1, 3});
}

/* [N, T, parts * C] -> [parts, N, H, T, hs] */
static Value heads_of(Graph *g, Value x, int parts)
{
    const Config *c = g->x->c;
    int hs = c->width / c->heads;
    x = reshape(g, x, integers(g, 5, 0, vit_tokens(c), parts, c->heads, hs));
    return transpose(g, x, 5, (const int[]){2, 0, 3, 1, 4});
}

static Value mlp(Graph *g, Value x, const char *at, int hidden, int act)
{
    const Config *c = g->x->c;
    char layer[64];
    snprintf(layer, sizeof layer, "%smlp.fc1", at);
    x = linear(g, x, layer, c->width, hidden);
    x = activation(g, x, act, c->mlp);
    snprintf(layer, sizeof layer, "%smlp.fc2", at);
    return linear(g, x, layer, c->mlp, c->width);
}

/* ---- the model ---- */

/* (x / 255 - mean) / std = x a + b, per channel. */
static Value normalise(Graph *g, Value x)
{
    const Config *c = g->x->c;
    const double mean[] = {c->mean_r, c->mean_g, c->mean_b}, std[] = {c->std_r, c->std_g, c->std_b};
    const int64_t shape[] = {3, 1, 1};
    float a[3], b[3];
    for (int i = 0; i < 3; i++) {
        a[i] = (float)(1 / (255 * std[i]));
        b[i] = (float)(-mean[i] / std[i]);
    }
    put_tensor(g, "scale", FLOAT, 3, shape, a, sizeof a);
    put_tensor(g, "shift", FLOAT, 3, shape, b, sizeof b);
    return node(g, "Add", node(g, "Mul", x, "scale", NULL), "shift", NULL);
}

/* [N, 3, H, W] -> [N, T, C] */
static Value embed(Graph *g, Value x)
{
    const Config *c = g->x->c;
    int C = c->width, P = c->patch, N = c->cls_tokens, T = vit_tokens(c);
    Value w = weight_as(g, "patch_embed.proj.weight", 4, (const int64_t[]){C, 3, P, P}, false);
    Value b = c->patch_bias ? vector(g, "patch_embed.proj.bias", C) : NULL;
    set_ints("strides", 2, (const int[]){P, P});
    x = node(g, "Conv", x, w, b);
    x = reshape(g, x, integers(g, 3, 0, C, vit_patches(c)));
    x = transpose(g, x, 3, (const int[]){0, 2, 1});
    if (N) { /* as often as there are images */
        Value tokens = weight_as(g, "cls_token", 3, (const int64_t[]){1, N, C}, false);
        set_int("start", 0);
        set_int("end", 1);
        Value images = node(g, "Shape", x, NULL, NULL);
        set_int("axis", 0);
        Value shape = node(g, "Concat", images, integers(g, 2, N, C), NULL);
        Value all = node(g, "Expand", tokens, shape, NULL);
        set_int("axis", 1);
        x = node(g, "Concat", all, x, NULL);
    }
    x = node(g, "Add", x, weight_as(g, "pos_embed", 3, (const int64_t[]){1, T, C}, false), NULL);
    return c->norm_pre ? norm(g, x, "norm_pre", C, c->eps) : x;
}

/* x + scale * branch */
static Value residual(Graph *g, Value x, Value branch, const char *scale)
{
    const Config *c = g->x->c;
    if (c->layer_scale)
        branch = node(g, "Mul", branch, vector(g, scale, c->width), NULL);
    return node(g, "Add", x, branch, NULL);
}

static Value block(Graph *g, Value x, int l)
{
    const Config *c = g->x->c;
    int C = c->width, hs = C / c->heads, T = vit_tokens(c);
    char at[32], name[64];
#define AT(what) (snprintf(name, sizeof name, "%s%s", at, what), name)
    snprintf(at, sizeof at, "blocks.%d.", l);
    Value y = norm(g, x, AT("norm1"), C, c->eps);
    y = heads_of(g, linear(g, y, AT("attn.qkv"), C, 3 * C), 3);
    Value q = pick(g, y, 0, 0), k = pick(g, y, 0, 1), v = pick(g, y, 0, 2);
    if (c->qk_norm) {
        q = norm(g, q, AT("attn.q_norm"), hs, c->eps);
        k = norm(g, k, AT("attn.k_norm"), hs, c->eps);
    }
    y = reshape(g, attend(g, q, k, v), integers(g, 3, 0, T, C));
    y = linear(g, y, AT("attn.proj"), C, C);
    x = residual(g, x, y, AT("ls1.gamma"));
    y = mlp(g, norm(g, x, AT("norm2"), C, c->eps), at, vit_hidden(c), c->act);
    return residual(g, x, y, AT("ls2.gamma"));
#undef AT
}

/* Mean of the patches, [N, T, C] -> [N, C]. */
static Value mean(Graph *g, Value x)
{
    const Config *c = g->x->c;
    Value patches = new_value(g), first = integers(g, 1, c->cls_tokens);
    Value end = integers(g, 1, vit_tokens(c)), axes = integers(g, 1, 1);
    put_node(g, "Slice", (const Value[]){x, first, end, axes}, 4, &patches, 1);
    set_ints("axes", 1, (const int[]){1});
    set_int("keepdims", 0);
    return node(g, "ReduceMean", patches, NULL, NULL);
}

/* What a learned query finds: y = proj(attention), y + mlp(norm(y)). */
static Value attention_pool(Graph *g, Value x)
{
    const Config *c = g->x->c;
    int C = c->width, H = c->heads;
    Value latent = weight_as(g, "attn_pool.latent", 3, (const int64_t[]){1, 1, C}, false);
    Value q = linear(g, latent, "attn_pool.q", C, C);
    q = reshape(g, q, integers(g, 4, 1, H, 1, C / H));
    Value kv = heads_of(g, linear(g, x, "attn_pool.kv", C, 2 * C), 2);
    Value y = attend(g, q, pick(g, kv, 0, 0), pick(g, kv, 0, 1));
    y = linear(g, reshape(g, y, integers(g, 2, 0, C)), "attn_pool.proj", C, C);
    Value z = mlp(g, norm(g, y, "attn_pool.norm", C, c->eps_final), "attn_pool.", c->mlp, c->act);
    return node(g, "Add", y, z, NULL);
}

static Value pool(Graph *g, Value x)
{
    const Config *c = g->x->c;
    switch (c->pool) {
    case POOL_GAP:
        return mean(g, x);
    case POOL_MAP:
        return attention_pool(g, x);
    case POOL_CLS:
        return pick(g, x, 1, 0);
    default: {
        Value first = pick(g, x, 1, 0);
        Value second = c->pool == POOL_CLS_DIST ? pick(g, x, 1, 1) : mean(g, x);
        set_int("axis", 1);
        return node(g, "Concat", first, second, NULL);
    }
    }
}

static Value head(Graph *g, Value x)
{
    const Config *c = g->x->c;
    int R = c->representation, D = vit_features(c);
    if (!c->fc_norm)
        x = norm(g, x, "norm", c->width, c->eps_final);
    x = pool(g, x);
    if (c->fc_norm)
        x = norm(g, x, "fc_norm", c->width, c->eps_final);
    if (R && c->classes)
        x = node(g, "Tanh", linear(g, x, "pre_logits.fc", D, R), NULL, NULL);
    return c->classes ? linear(g, x, "head", R ? R : D, c->classes) : x;
}

/* ---- the file ---- */

/* ValueInfoProto: name 1, type 2 {tensor_type 1 {elem_type 1, shape 2 {dim 1}}}; a dimension is a
 * number, 1, or a name, 2. */
static void put_value_info(Bytes *b, int field, const char *name, int n, const int *shape)
{
    Bytes dims = {0}, tensor = {0}, type = {0}, info = {0};
    for (int d = 0; d < n; d++) {
        Bytes dim = {0};
        if (shape[d])
            put_number(&dim, 1, shape[d]);
        else
            put_text(&dim, 2, "images");
        put_message(&dims, 1, &dim);
    }
    put_number(&tensor, 1, FLOAT);
    put_message(&tensor, 2, &dims);
    put_message(&type, 1, &tensor);
    put_text(&info, 1, name);
    put_message(&info, 2, &type);
    put_message(b, field, &info);
}

/* ModelProto: ir_version 1, producer_name 2, graph 7, opset_import 8, metadata_props 14;
 * GraphProto: name 2, input 11, output 12. */
static void finish(Graph *g, Value result, int flags, Bytes *model)
{
    enum { IR_VERSION = 8, OPSET = 17 };
    const Config *c = g->x->c;
    Bytes opset = {0};
    const char *name = c->classes ? "logits" : "features";
    put_node(g, "Identity", &result, 1, &name, 1);
    put_text(&g->graph, 2, "vit");
    put_value_info(&g->graph, 11, "image", 4, (const int[]){0, 3, c->image_h, c->image_w});
    put_value_info(&g->graph, 12, name, 2,
                   (const int[]){0, c->classes ? c->classes : vit_features(c)});
    put_number(model, 1, IR_VERSION);
    put_text(model, 2, "vit.c");
    put_message(model, 7, &g->graph);
    put_number(&opset, 2, OPSET);
    put_message(model, 8, &opset);
    put_pair(model, 14, "pixels",
             flags & ONNX_NORMALISE ? "0..255" : "normalised: (x / 255 - mean) / std");
    for (int i = 0; i < vit_config_count; i++) {
        char value[64];
        vit_config_get(c, &vit_config_fields[i], value, sizeof value);
        put_pair(model, 14, vit_config_fields[i].name, value);
    }
}

static void make_model(Graph *g, int flags, Bytes *model)
{
    Value x = "image";
    if (flags & ONNX_NORMALISE)
        x = normalise(g, x);
    x = embed(g, x);
    for (int l = 0; g->ok && l < g->x->c->layers; l++)
        x = block(g, x, l);
    x = head(g, x);
    finish(g, x, flags, model);
}

bool export_onnx(Export *x, const char *file, int flags, Error *e)
{
    uint64_t bytes = 0;
    const uint64_t most = (1ull << 31) - (1 << 24); /* with room for the graph */
    for (int i = 0; i < x->f->count; i++)
        bytes += (uint64_t)x->f->tensor[i].n * sizeof(float);
    char *data = xasprintf("%s.data", file), *slash = strrchr(data, '/');
    Graph g = {.x = x, .ok = true, .e = e, .data = slash ? slash + 1 : data};
    Bytes model = {0};
    if (flags & ONNX_BESIDE || bytes >= most) {
        g.beside = file_create(data, e);
        g.ok = g.beside != NULL;
        snprintf(x->notes, sizeof x->notes, "its weights are in %.400s", data);
    }
    make_model(&g, flags, &model);
    bool ok = g.ok;
    if (ok && g.beside) {
        ok = file_publish(g.beside, true, e);
        g.beside = NULL;
    }
    file_abandon(g.beside);
    ok = ok && save_file(file, model.at, model.n, true, e);
    free(model.at);
    free(data);
    return ok;
}
