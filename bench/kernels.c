/* kernels: where the time of a training step goes, operation by operation, beside its floor.
 *
 *   build/gpu/bench_kernels [MODEL [BATCH [bf16|fp16|fp32|tf32 [REPEAT]]]]     default: B/16 256
 * bf16
 *   build/bench_kernels B/16 8 bf16 2        on the CPU, of bf16 or fp32
 *
 * Every operation of a step is called REPEAT times in a row on random numbers, through the Backend
 * table, and timed from outside; what a step does with it is its time by its count. The floor is
 * the larger of FLOPs and bytes over what this machine reaches, both measured first: a product of
 * 8192 x 8192 x 8192 (on a CPU 2048) and a large copy (bytes read plus bytes written). Bytes count
 * each input and output once, as far as it has to come from memory. Prints a table in Markdown.
 * What a sum of single operations does not show: launches between them, and a cache that the
 * operation before has filled with something else.
 */
#include "vit.h"
#include "util/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const Backend *be;
static Config c;
static int B, T, R, C, F, H, K, type; /* R = B*T rows */
static size_t size;                   /* of an element */
static dev *x, *y, *z, *pre;          /* [R, widest] of the type; z is read alone, pre written */
static dev *w, *v;                    /* [widest, widest] weights; [widest] */
static dev *dw, *sums, *stat, *delta; /* real */
static dev *images, *targets, *stats, *state, *scratch;
static dev *param[4], *work, *chunks, *partial; /* the optimiser's */
static int n_chunks;
static long n_params;
static int repeat = 20;

static Tensor mat(dev *p, long ld)
{
    return (Tensor){p, ld, type, NULL};
}

static dev *get(double bytes)
{
    dev *p = be->alloc((size_t)bytes);
    if (!p)
        die("give a smaller batch", "no memory for %.2f GiB", bytes / (1 << 30));
    return p;
}

/* n random numbers of variance `spread` squared, in `to_type`. */
static dev *noise(long n, int to_type, double spread)
{
    enum { BLOCK = 1 << 20 };
    static float host[BLOCK];
    dev *block = get(BLOCK * sizeof(float)), *p = get((double)n * (double)type_size(to_type));
    for (long i = 0; i < BLOCK; i++) {
        Philox r = philox(7, (uint32_t)i, (uint32_t)n, 0, 0);
        host[i] =
            (float)(spread * sqrt(-2 * log(rng_unit(r.v[0]))) * cos(6.2831853 * rng_unit(r.v[1])));
    }
    be->upload(block, host, sizeof host);
    for (long at = 0; at < n; at += BLOCK)
        be->convert((dev *)((char *)p + (size_t)at * type_size(to_type)), to_type, block, F32,
                    n - at < BLOCK ? n - at : BLOCK);
    be->release(block);
    return p;
}

/* ---- the operations ---- */

static void forward(int rows, int in, int out, int act, bool residual)
{
    be->linear_forward(
        &(LinearForward){.y = mat(y, out),
                         .x = mat(x, in),
                         .w = mat(w, in),
                         .bias = v,
                         .rows = rows,
                         .in = in,
                         .out = out,
                         .act = act,
                         .pre = act ? mat(pre, out) : (Tensor){NULL, 0, F32, NULL},
                         .residual = residual ? mat(z, out) : (Tensor){NULL, 0, F32, NULL},
                         .tokens = T});
}
static void dinput(int rows, int in, int out, int act)
{
    be->linear_backward_input(&(LinearBackwardInput){.dx = mat(y, in),
                                                     .dy = mat(x, out),
                                                     .w = mat(w, in),
                                                     .rows = rows,
                                                     .in = in,
                                                     .out = out,
                                                     .act = act,
                                                     .pre = mat(z, in),
                                                     .dbias = act ? sums : NULL,
                                                     .tokens = T});
}
static void dweight(int rows, int in, int out)
{
    be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = dw, .dy = mat(x, out), .x = mat(z, in), .rows = rows, .in = in, .out = out});
}
static void qkv(void)
{
    forward(R, C, 3 * C, ACT_NONE, false);
}
static void proj(void)
{
    forward(R, C, C, ACT_NONE, true);
}
static void fc1(void)
{
    forward(R, C, F, c.act, false);
}
static void fc1_tanh(void)
{
    forward(R, C, F, ACT_GELU_TANH, false);
}
static void fc2(void)
{
    forward(R, F, C, ACT_NONE, true);
}
static void qkv_dx(void)
{
    dinput(R, C, 3 * C, ACT_NONE);
}
static void proj_dx(void)
{
    dinput(R, C, C, ACT_NONE);
}
static void fc1_dx(void)
{
    dinput(R, C, F, ACT_NONE);
}
static void fc2_dx(void)
{
    dinput(R, F, C, ACT_NONE);
}
static void fc2_dx_gelu(void)
{
    dinput(R, F, C, c.act);
}
static void qkv_dw(void)
{
    dweight(R, C, 3 * C);
}
static void proj_dw(void)
{
    dweight(R, C, C);
}
static void fc1_dw(void)
{
    dweight(R, C, F);
}
static void fc2_dw(void)
{
    dweight(R, F, C);
}

static Attention attention(void)
{
    return (Attention){.qkv = mat(z, 3L * C),
                       .out = mat(y, C),
                       .lse = stat,
                       .delta = delta,
                       .B = B,
                       .T = T,
                       .Tq = T,
                       .heads = H,
                       .hs = C / H,
                       .dqkv = mat(x, 3L * C),
                       .dout = mat(w, C),
                       .dbias = sums};
}
static void attention_f(void)
{
    Attention a = attention();
    be->attention_forward(&a);
}
static void attention_b(void)
{
    Attention a = attention();
    a.dout = mat(z, C);
    be->attention_backward(&a);
}

static ResidualNorm norm(void)
{
    return (ResidualNorm){.x = mat(z, C),
                          .y = mat(y, C),
                          .gamma = v,
                          .beta = v,
                          .mean = stat,
                          .rstd = delta,
                          .eps = 1e-6,
                          .rows = R,
                          .C = C,
                          .tokens = T,
                          .dy = mat(x, C),
                          .dx = mat(y, C),
                          .dgamma = sums,
                          .dbeta = (dev *)((real *)(void *)sums + C),
                          .dbias = (dev *)((real *)(void *)sums + 2 * C)};
}
static void norm_f(void)
{
    ResidualNorm a = norm();
    be->residual_norm_forward(&a);
}
static void norm_b(void)
{
    ResidualNorm a = norm();
    be->residual_norm_backward(&a);
}
static void step_b(void) /* of a residual step alone: no norm follows it */
{
    ResidualNorm a = norm();
    a.gamma = a.beta = a.dgamma = a.dbeta = NULL;
    be->residual_norm_backward(&a);
}
static void clear_stream(void)
{
    be->zero(y, (size_t)R * (size_t)C * size);
}
/* The last block computes the class rows alone, one of each image. */
static void class_fc1(void)
{
    forward(B, C, F, c.act, false);
}
static void class_fc2(void)
{
    forward(B, F, C, ACT_NONE, true);
}
static void class_fc1_dx(void)
{
    dinput(B, C, F, ACT_NONE);
}
static void class_fc2_dx(void)
{
    dinput(B, F, C, c.act);
}
static void class_fc1_dw(void)
{
    dweight(B, C, F);
}
static void class_fc2_dw(void)
{
    dweight(B, F, C);
}
static void class_proj(void)
{
    forward(B, C, C, ACT_NONE, true);
}
static HeadNorm head_norm(void) /* of queries; of keys it is the same */
{
    return (HeadNorm){.x = mat(y, 3L * C),
                      .input = mat(x, C),
                      .gamma = v,
                      .beta = v,
                      .dgamma = sums,
                      .dbeta = (dev *)((real *)(void *)sums + C),
                      .eps = 1e-6,
                      .rows = R,
                      .heads = H,
                      .hs = C / H};
}
static void head_norm_f(void)
{
    HeadNorm a = head_norm();
    be->head_norm_forward(&a);
}
static void head_norm_b(void)
{
    HeadNorm a = head_norm();
    be->head_norm_backward(&a);
}
static void patchify(void)
{
    be->patchify(&(Patchify){.out = mat(y, 3L * c.patch * c.patch),
                             .images = images,
                             .u8 = true,
                             .B = B,
                             .H = c.image_h,
                             .W = c.image_w,
                             .P = c.patch,
                             .mean = {0.5, 0.5, 0.5},
                             .std = {0.5, 0.5, 0.5}});
}
static void embed_f(void)
{
    be->embed_forward(&(Embed){.x = mat(y, C),
                               .patches = mat(z, C),
                               .cls = w,
                               .pos = w,
                               .B = B,
                               .T = T,
                               .cls_tokens = c.cls_tokens,
                               .C = C});
}
static void embed_b(void)
{
    be->embed_backward(&(Embed){.x = mat(x, C),
                                .patches = mat(y, C),
                                .cls = sums,
                                .pos = dw,
                                .dbias = (dev *)((real *)(void *)sums + C),
                                .B = B,
                                .T = T,
                                .cls_tokens = c.cls_tokens,
                                .C = C});
}
static void loss(void)
{
    be->loss(&(Loss){.logits = mat(z, K),
                     .dlogits = mat(y, K),
                     .targets = targets,
                     .stats = stats,
                     .B = B,
                     .K = K,
                     .kind = LOSS_SOFTMAX,
                     .scale = 1.0 / B});
}
static void squares(void)
{
    be->sum_squares(partial, param[3], chunks, n_chunks);
}
static void adamw(void)
{
    static const OptConfig o = {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0};
    be->adam(&(OptStep){.opt = &o,
                        .chunks = chunks,
                        .n = n_chunks,
                        .w = param[0],
                        .work = type == F32 ? param[0] : work,
                        .work_type = type,
                        .grad = param[3],
                        .exp_avg = param[1],
                        .exp_avg_sq = param[2]});
}
static void copy_much(void)
{
    be->copy(x, z, (size_t)R * (size_t)(3 * C) * size);
}
static int square_side = 8192;
static dev *square[3];
static void square_product(void)
{
    be->linear_forward(&(LinearForward){.y = mat(square[2], square_side),
                                        .x = mat(square[0], square_side),
                                        .w = mat(square[1], square_side),
                                        .rows = square_side,
                                        .in = square_side,
                                        .out = square_side,
                                        .tokens = 1});
}

/* ---- timing ---- */

static int ascending(const void *a, const void *b)
{
    double p = *(const double *)a, q = *(const double *)b;
    return (p > q) - (p < q);
}

/* Median over five rounds of the seconds of one call among `repeat`. */
static double seconds(void (*op)(void))
{
    double t[5];
    for (int i = 0; i < 3; i++) /* algorithms are chosen, caches are filled */
        op();
    be->wait(be->mark());
    for (int r = 0; r < COUNT(t); r++) {
        double from = now();
        for (int i = 0; i < repeat; i++)
            op();
        be->wait(be->mark());
        t[r] = (now() - from) / repeat;
    }
    qsort(t, COUNT(t), sizeof *t, ascending);
    return t[COUNT(t) / 2];
}

static void set_up(void)
{
    long widest = 3 * C > F ? 3 * C : F, square_of = widest;
    square_of = square_of > K ? square_of : K;
    size = type_size(type);
    x = noise((long)R * widest, type, 1);
    y = noise((long)R * widest, type, 1);
    z = noise((long)R * widest, type, 1);
    pre = get((double)R * (double)widest * (double)size);
    w = noise(square_of * square_of > (long)T * C ? square_of * square_of : (long)T * C, type,
              0.02);
    v = noise(square_of, type, 1);
    dw = get((double)square_of * (double)square_of * sizeof(real) + (double)T * C * sizeof(real));
    sums = get(4.0 * (double)square_of * sizeof(real));
    stat = noise((long)R * H, F32, 1);
    delta = noise((long)R * H, F32, 1);
    images = noise((long)B * c.image_h * c.image_w * 3 / 4 + 1, F32, 1); /* any bytes are pixels */
    targets = noise((long)B * K, F32, 1);
    stats = get(3.0 * B * sizeof(real));
    state = get(sizeof(StepState));
    StepState s = {.lr = 1e-3, .t = 1, .clip = 1, .loss_scale = 1};
    be->upload(state, &s, sizeof s);
    n_params = (long)c.layers * (4L * C * C + 2L * C * F) + (long)K * C;
    n_chunks = (int)((n_params + VIT_CHUNK - 1) / VIT_CHUNK);
    size_t room = be->scratch_bytes(&(Sizes){B, T, C, H, F, K, 0, n_chunks, false});
    scratch = get((double)room + 256);
    be->bind(state, scratch, room);
    Chunk *list = xcalloc((size_t)n_chunks, sizeof *list);
    for (int i = 0; i < n_chunks; i++)
        list[i] = (Chunk){(long)i * VIT_CHUNK, VIT_CHUNK, i, CHUNK_DECAY, 1};
    chunks = get((double)n_chunks * sizeof(Chunk));
    be->upload(chunks, list, (size_t)n_chunks * sizeof(Chunk));
    free(list);
    for (int i = 0; i < 4; i++)
        param[i] = noise((long)n_chunks * VIT_CHUNK, F32, 1e-3);
    be->zero(param[2], (size_t)n_chunks * VIT_CHUNK * sizeof(real)); /* squares are not negative */
    work = get((double)n_chunks * VIT_CHUNK * (double)size);
    partial = get((double)n_chunks * sizeof(real));
}

int main(int argc, char **argv)
{
    static const char *const types[] = {"fp32", "bf16", "fp16", "tf32"};
    const char *model = argc > 1 ? argv[1] : "B/16", *name = argc > 3 ? argv[3] : "bf16";
    int precision = 0;
    char text[256];
    while (precision < 3 && strcmp(types[precision], name) != 0)
        precision++;
    type = precision == 3 ? F32 : precision;
    c = vit_config_default();
    if (!vit_preset(model, &c))
        die_usage("name a preset, such as B/16", "no model is called '%s'", model);
    B = argc > 2 ? atoi(argv[2]) : 256;
    repeat = argc > 4 ? atoi(argv[4]) : repeat;
    if (B < 1 || repeat < 1)
        die_usage("bench_kernels MODEL BATCH TYPE REPEAT", "a batch of %d, %d times", B, repeat);
    T = vit_tokens(&c), R = B * T, C = c.width, F = c.mlp, H = c.heads, K = c.classes;
    const double unit = backend_cuda ? 1e-12 : 1e-9;
    const char prefix = backend_cuda ? 'T' : 'G';
    if (backend_cuda) {
        be = backend_cuda();
    } else {
        be = type == BF16 ? backend_cpu_bf16() : backend_cpu();
        square_side = 2048;
    }
    be->init(&(Device){.type = type, .tf32 = precision == 3, .measure = true, .ranks = 1});
    set_up();

    double S = (double)size, r = R, tokens = r * C * S, flop = 2 * r * C;
    double peak = 0, copied = 0;
    if (getenv("PEAK_FLOPS") && getenv("PEAK_BYTES")) { /* given: a quick look elsewhere */
        peak = atof(getenv("PEAK_FLOPS"));
        copied = atof(getenv("PEAK_BYTES"));
    } else {
        for (int i = 0; i < 3; i++)
            square[i] = noise((long)square_side * square_side, type, 1);
        peak = 2.0 * pow(square_side, 3) / seconds(square_product);
        copied = 2 * 3 * tokens / seconds(copy_much);
    }

    /* name, operation, times in a step, FLOPs, bytes */
    double att = 4.0 * r * T * C, P = (double)n_params, L = c.layers,
           px = 3.0 * B * c.image_h * c.image_w;
    /* where the class token alone is read, the last block computes its rows alone, from proj on */
    const bool few = c.pool == POOL_CLS;
    double whole = few ? L - 1 : L, n = few, rows = (double)B * C * S, small = 2.0 * B * C * F;
    struct {
        const char *name;
        void (*op)(void);
        double count, flops, bytes;
    } ops[] = {
        {"patchify", patchify, 1, 0, px * (1 + S)},
        {"embed forward", embed_f, 1, 0, 2 * tokens},
        {"norm forward", norm_f, 2 * L + 1 - 2 * n, 0, 2 * tokens},
        {"qkv forward", qkv, L, 3 * flop * C, 4 * tokens},
        {"attention forward", attention_f, whole, att, 4 * tokens},
        {"proj forward + residual", proj, whole, flop * C, 3 * tokens},
        {"fc1 forward + GELU", fc1, whole, flop * F, tokens + 2 * r * F * S},
        {"fc2 forward + residual", fc2, whole, flop * F, 2 * tokens + r * F * S},
        {"loss", loss, 1, 0, (2 * S + 4.0) * B * K},
        {"fc2 weight gradient", fc2_dw, whole, flop * F, tokens + r * F * S},
        {"fc2 input gradient + GELU'", fc2_dx_gelu, whole, flop * F, tokens + 2 * r * F * S},
        {"fc1 weight gradient", fc1_dw, whole, flop * F, tokens + r * F * S},
        {"fc1 input gradient", fc1_dx, whole, flop * F, tokens + r * F * S},
        {"norm backward", norm_b, 2 * L + 1 - 2 * n, 0, 4 * tokens},
        {"residual step backward", step_b, whole, 0, tokens},
        {"clear the stream's gradient", clear_stream, 1, 0, tokens},
        {"class rows: proj forward", class_proj, n, 2.0 * B * C * C, 3 * rows},
        {"class rows: fc1 forward + GELU", class_fc1, n, small, rows + 2.0 * B * F * S},
        {"class rows: fc2 forward", class_fc2, n, small, 2 * rows + 1.0 * B * F * S},
        {"class rows: fc2 weight gradient", class_fc2_dw, n, small, rows + 1.0 * B * F * S},
        {"class rows: fc2 input gradient", class_fc2_dx, n, small, rows + 2.0 * B * F * S},
        {"class rows: fc1 weight gradient", class_fc1_dw, n, small, rows + 1.0 * B * F * S},
        {"class rows: fc1 input gradient", class_fc1_dx, n, small, rows + 1.0 * B * F * S},
        {"proj weight gradient", proj_dw, whole, flop * C, 2 * tokens},
        {"proj input gradient", proj_dx, whole, flop * C, 2 * tokens},
        {"attention backward", attention_b, whole, 2.5 * att, 8 * tokens},
        {"qkv weight gradient", qkv_dw, L, 3 * flop * C, 4 * tokens},
        {"qkv input gradient", qkv_dx, L, 3 * flop * C, 4 * tokens},
        {"embed backward", embed_b, 1, 0, 2 * tokens},
        {"gradient norm", squares, 1, 0, 4 * P},
        {"AdamW", adamw, 1, 0, (28 + (type == F32 ? 0 : S)) * P},
        {"(norm of queries forward)", head_norm_f, 0, 0, 3 * tokens},
        {"(norm of queries backward)", head_norm_b, 0, 0, 3 * tokens},
        {"(fc1 with tanh GELU)", fc1_tanh, 0, flop * F, tokens + 2 * r * F * S},
        {"(fc2 input gradient alone)", fc2_dx, 0, flop * F, tokens + r * F * S},
    };
    be->describe(text, sizeof text);
    printf("%s, %s, batch %d: %s\n\n", model, name, B, text);
    printf("Ceilings: matrix product %.0f %cFLOP/s, copy %.2f %cB/s. One launch of each "
           "operation:\n\n",
           peak * unit, prefix, copied * unit, prefix);
    printf("| operation | in a step | us | %cFLOP/s | %cB/s | floor, us | time/floor | ms in a "
           "step |\n"
           "|---|---|---|---|---|---|---|---|\n",
           prefix, prefix);
    double all = 0, floors = 0;
    for (int i = 0; i < COUNT(ops); i++) {
        double t = seconds(ops[i].op), floor_s = fmax(ops[i].flops / peak, ops[i].bytes / copied);
        all += t * ops[i].count;
        floors += floor_s * ops[i].count;
        printf("| %s | %.0f | %.1f | %.0f | %.2f | %.1f | %.2f | %.2f |\n", ops[i].name,
               ops[i].count, 1e6 * t, unit * ops[i].flops / t, unit * ops[i].bytes / t,
               1e6 * floor_s, t / floor_s, 1e3 * t * ops[i].count);
        fflush(stdout);
    }
    printf("| sum | | | | | | %.2f | %.2f |\n\n", all / floors, 1e3 * all);
    printf("The sum would be %.0f images/s; the floors alone %.0f. The head, and attention and "
           "norms of class rows alone, are not in it.\n",
           B / all, B / floors);
    return 0;
}
