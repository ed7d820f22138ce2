/* backend.h - the operations that a device must offer: formula, shapes, what is overwritten.
 *
 * B images  T tokens per image  C width  H heads  hs head size (C = H*hs)  F width of the MLP
 * K classes  P side of a patch  Np patches. dx is the gradient of x. Matrices are row-major; a
 * linear layer's weight is [out, in]. backend_cpu.c is these formulas in plain C.
 */
#pragma once

#include "model/params.h"

/* About forty operations on device memory. Rules that hold for all of them:
 *  - Everything is asynchronous on one stream, in call order, except where an entry says otherwise.
 *  - A Tensor carries its type. A plain `dev *` that an op reads as a parameter (bias, gamma, cls,
 *    ...) has the type of the op's Tensors; statistics, images that are no bytes, targets and every
 *    gradient of a parameter are `real`.
 *  - What an op writes it overwrites, parameter gradients included (their sum over micro-batches is
 *    made by `add`, once per unit); the one exception is the residual stream's gradient, into which
 *    residual_norm_backward accumulates.
 *  - Every op is deterministic.
 *  - What changes from step to step is read from StepState in device memory, so that a step is the
 *    same sequence of calls every time and can be captured and replayed. */

/* A matrix operand: rows of `ld` elements from one to the next. `type` and, for 8-bit types,
 * `scale` say how its elements are stored; backend_cpu knows F32 alone, stored as `real`. U64 is
 * the type of counters. A linear layer's operands in BF16 that have a scale are multiplied in 8
 * bits: see Fp8. */
enum { F32, BF16, F16, E4M3, E5M2, U64 };
typedef struct {
    dev *p;
    long ld;
    int type;
    dev *scale;
} Tensor;

static inline size_t type_size(int type)
{
    static const unsigned char size[] = {sizeof(real), 2, 2, 1, 1, 8};
    return size[type];
}

/* The place n elements further on; NULL stays NULL. */
static inline dev *dev_at(dev *p, long n, int type)
{
    return p ? (dev *)((char *)p + n * (long)type_size(type)) : NULL;
}

/* What a process is and what its device shall do; given to init before anything else. */
typedef struct {
    int threads;       /* CPU: 0: as many as the machine has, shared among its ranks */
    int type;          /* F32, BF16 or F16, of activations and working weights */
    bool tf32;         /* F32: matrix products of operands rounded to 10 bits of mantissa */
    bool fp8;          /* BF16: there will be operands with a scale */
    bool measure;      /* choose matrix products' algorithms by timing them */
    int rank, ranks;   /* of this process and in all; device memory is each its own */
    int local_rank;    /* which of this machine's devices it takes */
    bool ordered;      /* sums in one order on every machine, at the price of speed */
    void (*broadcast)(void *data, size_t bytes); /* rank 0's bytes to all; waits */
    void (*check)(void); /* ends this process where another rank has ended: for who waits long */
} Device;

/* Factors that keep small gradients above fp16's smallest number. DYNAMIC: NVIDIA's (Micikevicius
 * et al. 2018, with Megatron's hysteresis): halved once `hysteresis` updates have overflowed since
 * it last grew, doubled after `interval` good ones in a row. AUTO: Graphcore's: with each update,
 * halved where more than 1e-7 of the activation gradients counted by `count_large` were above 0.125
 * of fp16's maximum or the step was skipped, else doubled. Both stay within 1 .. 2^32. */
enum { SCALING_NONE, SCALING_STATIC, SCALING_DYNAMIC, SCALING_AUTO };
typedef struct {
    int kind;
    double init;
    int interval, hysteresis;
} LossScaling;

/* The state of a step, in device memory. The host writes the first part before a micro-batch.
 * The tally is summed over the ranks with the step's statistics: what they must know of each other
 * at every step costs no message of its own. */
enum { TALLY = 2 };
typedef struct {
    uint64_t seed;
    double lr;
    uint32_t step;    /* counter of all random numbers */
    uint32_t sample0; /* first image of this micro-batch within the global batch */
    real tally[TALLY];
    /* the device's part: */
    uint32_t t;       /* updates done: Adam's t; a skipped step does not advance it */
    uint32_t skip;    /* this step's gradients are not finite: leave the parameters alone */
    uint32_t skipped; /* steps skipped since the start of the run */
    uint32_t skipped_in_row; /* not counting those whose loss scale could still be lowered */
    double grad_norm;        /* global L2 norm before clipping */
    double clip;             /* factor on every gradient: min(1, max_norm / (norm + 1e-6)) */
    double loss_scale;       /* of dlogits; 1 without fp16 */
    uint32_t good_steps;     /* in a row since the loss scale last changed */
    uint32_t patience;       /* overflows until it is lowered: hysteresis, counting down */
    uint64_t large, counted; /* by count_large, since the last update */
} StepState;
#define STEP_HOST_BYTES offsetof(StepState, t)

/* Products of 8-bit numbers (Micikevicius et al. 2022). Where the Tensors x and w of a linear layer
 * have a scale, in the backward pass dy and the other one, copies of them are multiplied: x and w
 * rounded to E4M3 (4 bits of exponent, 3 of mantissa, up to 448), dy to E5M2 (up to 57344), each
 * times a power of two, so that rounding is relative to a number whatever the scale. Beyond the
 * largest number is that number; what is not finite becomes NaN. Tensor.scale points to an
 * Fp8Scale. Widths are multiples of 16.
 *   delayed  2^-margin * the largest power of two that takes the largest |x| of the last `history`
 *            steps into the type's range (Transformer Engine's recipe of the same name)
 *   current  the same of the tensor itself, which is read once more
 * Where nothing else reads such an operand and its delayed scale is to be used, whoever makes it
 * can write the copies instead of it: a Tensor [rows, n] of type E4M3 or E5M2, with ld = n, is what
 * products want, of the numbers rounded to BF16 first: its copy and, behind it, its transposition.
 * Its memory is as large as in BF16, and 15 n + 255 bytes more. It may be
 *   E4M3  the y of residual_norm_forward, of linear_forward and activate (with pre, and without a
 *         residual), then the x of linear_forward and linear_backward_weight
 *   E5M2  the dx of linear_backward_input and, where Tq is T, the dqkv of attention_backward, then
 *         dy */
typedef struct {
    float inverse; /* of the scale of the copy made last: first, since products read it alone */
    float scale;   /* delayed; 0: there is none yet */
    float amax;    /* largest |x| of the step so far */
    float now;     /* of the tensor whose current scale is being made */
} Fp8Scale;
typedef struct {
    bool current;  /* how all operands are scaled; a scale that is not there yet is kept */
    bool learns;   /* part of a step: notes amax */
    bool wgrad;    /* weight gradients are products of 8-bit numbers too */
    int margin;
} Fp8;
/* Whose scales a step ends with: all ranks', in one table. */
typedef struct {
    dev *scales;  /* Fp8Scale[n], in threes: of an x, a w, a dy */
    dev *amax;    /* real [n][history]: the newest first */
    dev *all;     /* Fp8Scale[ranks][n]: every rank's table; one rank's: `scales` itself */
    int n, ranks, history, margin;
} Fp8Update;

/* A point in the order of calls, for wait() and send(); 0 is the beginning. */
typedef uint64_t Ticket;

/* Ranks that talk to each other; NULL: this one alone. */
typedef struct Group Group;

/* Dropout of one op: keep with probability 1-p, scale by 1/(1-p). The bits are
 * rng_block(seed, element/4, sample, step, purpose, layer); element counts within one sample of the
 * whole matrix: where tensor parallelism gives this rank some of its columns (of attention: heads),
 * `first` is its first one and `of` how many there are in all; of = 0: all of them are here. */
typedef struct {
    double p;
    int purpose, layer;
    int first, of;
} Drop;

/* y = act(x @ w^T + bias), dropped out, + residual. ACT_SWIGLU (Shazeer 2020): the product has two
 * halves, y = silu(left) * right; w, bias and pre, which must be given, are for 2 out columns. */
typedef struct {
    Tensor y;         /* [rows, out] */
    Tensor x;         /* [rows, in] */
    Tensor w;         /* [out, in] */
    dev *bias;        /* [out] or NULL */
    int rows, in, out;
    int act;          /* ACT_* */
    Tensor pre;       /* [rows, out]: where act is given, saves x @ w^T + bias for backward */
    Tensor residual;  /* [rows, out], may not be y; p NULL: none */
    Drop drop;        /* after act */
    int tokens;       /* rows per sample, for dropout's counters */
    bool kept;        /* `activate` will not be asked to make y again */
} LinearForward;

/* dx = (dy @ w) * act'(pre), with the dropout mask of the forward pass. ACT_SWIGLU: dx, pre and
 * dbias have 2 in columns, the gradients of left and of right. With scales, linear_backward_weight
 * was called just before, with the same dy. */
typedef struct {
    Tensor dx;       /* [rows, in] */
    Tensor dy;       /* [rows, out] */
    Tensor w;        /* [out, in] */
    int rows, in, out;
    int act;         /* of the layer that made x: its act, its pre, its dropout */
    Tensor pre;      /* [rows, in] */
    dev *dbias;      /* [in]: column sums of dx, that layer's bias gradient; NULL: not wanted */
    Drop drop;
    int tokens;
    bool accumulate; /* dx += instead, where dx is a sum of two products; without act and drop */
} LinearBackwardInput;

/* dw = dy^T @ x */
typedef struct {
    dev *dw;    /* [out, in] */
    dev *dbias; /* [out]: column sums of dy, where no other op has made them; NULL: not wanted */
    Tensor dy;  /* [rows, out] */
    Tensor x;   /* [rows, in] */
    int rows, in, out;
} LinearBackwardWeight;

/* Images to the matrix of patches, one row a patch, columns (channel, row, column) as the weight of
 * patch_embed has them. Float images [B,3,H,W] are taken as they are. U8 images [B,H,W,3] are
 * normalised, (v/255 - mean) / std, after what `augment` asks for, in this order:
 *   colour  (r,g,b)/255 becomes clamp(M (r,g,b)/255 + t, 0, 1), M = colour[0..8] by rows and
 *           t = colour[9..11]: brightness, contrast, saturation and hue are such maps
 *   erase   the pixels in `erased` become, normalised, 0 (ERASE_ZERO) or a standard normal
 *           (ERASE_NOISE) by Box and Muller, sqrt(-2 ln u0) cos(2 pi u1), of the first two numbers
 *           of rng_block(seed, (c*H + row)*W + column, sample, step, RNG_ERASE, 0)
 *           (Zhong et al. 2020)
 * and a pixel of image b of either kind becomes the partner's in `cut` (cutmix, Yun et al. 2019),
 * elsewhere lambda*b + (1-lambda)*partner (mixup, Zhang et al. 2018), the partner with its own
 * colour and erasing. So an image that is not mixed has lambda = 1 and an empty cut; mixup alone
 * has an empty cut, cutmix alone lambda = 1. */
enum { ERASE_NONE, ERASE_ZERO, ERASE_NOISE };
typedef struct {
    int32_t y, x, h, w; /* rows y..y+h-1, columns x..x+w-1; h = 0: empty */
} Rect;
typedef struct {
    float lambda;
    int32_t partner; /* sample of the same micro-batch */
    int32_t use_colour, erase;
    Rect erased, cut;
    float colour[12];
} Augment;
typedef struct {
    Tensor out; /* [B*Np, 3*P*P] */
    const dev *images;
    bool u8;
    const dev *augment; /* Augment[B] or NULL */
    int B, H, W, P;
    double mean[3], std[3];
} Patchify;

/* x = drop(concat(cls, patches) + pos) and its gradients; pos NULL: no positions, where T is
 * cls_tokens: the same rows for every image */
typedef struct {
    Tensor x;         /* [B*T, C]; backward: the gradient of it, dropped out in place */
    Tensor patches;   /* [B*Np, C]; backward: written with the gradient */
    dev *cls, *pos;   /* [cls_tokens, C], [T, C]; backward: dcls, dpos, which are real */
    dev *dbias;       /* backward: [C], column sums of dpatches; NULL: not wanted */
    int B, T, cls_tokens, C;
    Drop drop;
} Embed;

/* The residual step and the norm behind it, in one pass.
 *   x_out = x + s * gamma_ls * drop(branch)       (branch.p NULL: x_out is not written)
 *   y     = (x_out - mean) * rstd * gamma + beta  (gamma NULL: no norm)
 * s = 0 with probability `path.p`, else 1/(1-path.p), once per sample (stochastic depth).
 * LayerNorm over C: Ba et al. 2016; rstd = 1/sqrt(var + eps), biased variance.
 * Backward, with dx the gradient of the residual stream:
 *   dx      += LayerNorm'(dy)                    (gamma NULL: left as it is; see fresh)
 *   dbranch  = s * gamma_ls * drop(dx)           (dbranch.p NULL: it is dx itself)
 *   dgamma, dbeta [C] with the norm; dls, dbias [C], column sums of dbranch, where not NULL */
typedef struct {
    Tensor x, x_out, branch, y;
    dev *gamma, *beta;
    dev *mean, *rstd; /* real [rows], saved for backward */
    const dev *ls;    /* [C] layer scale or NULL */
    Drop drop, path;
    double eps;
    int rows, C, tokens; /* tokens: rows per sample */
    /* backward: x is the norm's input (x_out of the forward pass) */
    Tensor dy, dx, dbranch;
    dev *dgamma, *dbeta, *dls, *dbias;
    int fresh; /* with gamma. 0: dx is added to; 1: it is written, whatever was there; n: rows 0, n,
                * 2n ... are added to, the others written */
} ResidualNorm;

/* Softmax attention, every head: out = drop(softmax(q k^T / sqrt(hs))) v, for the first Tq of the
 * T query rows. q, k and v of a token are columns [0,C), [C,2C), [2C,3C) of qkv, heads inside.
 * lse [B,H,Tq] saves the log of each softmax denominator: backward recomputes the probabilities, so
 * that no T x T matrix is stored (Dao et al. 2022). Backward writes dqkv (the q columns of the
 * first Tq rows of each sample alone) and dbias [3C], its column sums; delta [B,H,Tq] is room for
 * the sums over a head of dout * out; dbias NULL: not wanted. The CUDA backend takes hs up to 128.
 */
typedef struct {
    Tensor qkv;  /* [B*T, 3C] */
    Tensor out;  /* [B*Tq, C] */
    dev *lse, *delta; /* real */
    int B, T, Tq, heads, hs;
    Drop drop;
    Tensor dqkv, dout;
    dev *dbias;
} Attention;

/* A norm of each head's hs numbers by themselves, in place: x = (x - mean) * rstd * gamma + beta,
 * with `input` a copy of x as it was, of which the backward pass makes mean and rstd again.
 * Backward: x has the gradient of the norm's output and becomes that of its input. */
typedef struct {
    Tensor x;         /* [rows, heads*hs] */
    Tensor input;     /* [rows, heads*hs] */
    dev *gamma, *beta; /* [hs] */
    dev *dgamma, *dbeta; /* real [hs], sums over rows and heads */
    double eps;
    int rows, heads, hs;
} HeadNorm;

/* y = mean of tokens first..end-1; backward: dx of those tokens = dy / (end - first), of the others
 * 0, or what it was (beside: another pooling has written them) */
typedef struct {
    Tensor y; /* [B, C] */
    Tensor x; /* [B*T, C] */
    int B, T, C, first, end;
    bool beside;
} Pool;

/* Loss per sample, its gradient and whether the prediction is right, in one pass.
 * softmax: -sum_k target_k log softmax_k; sigmoid: sum_k of the binary cross-entropies.
 * dlogits = loss_scale * scale * dloss/dlogits; stats[sample0 + b] = {loss, top-1 hit, top-5 hit},
 * where the label is the largest target; a tie between logits counts against the label. A logit
 * that is not finite hits nothing. */
typedef struct {
    Tensor logits, dlogits; /* [B, K]; dlogits.p NULL: not wanted */
    const dev *targets;     /* real [B, K] */
    dev *stats;             /* real [images of the step, 3] */
    int B, K, kind;         /* LOSS_* */
    double scale;
} Loss;

/* One pass of an optimiser over chunks of parameters. With g = clip * grad / loss_scale (decay
 * where the chunk's flag says so), lr times the chunk's rate, t = updates including this one:
 *   adamw  m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w = w (1 - lr wd) - lr mh / (sqrt(vh) + eps)
 *          (Loshchilov & Hutter 2019); mh = m / (1 - b1^t), vh = v / (1 - b2^t)
 *   adam   the same with g + wd w in place of g and no decay of w (Kingma & Ba 2015)
 *   sgd    m = momentum m + g + wd w (m = g + wd w the first time); w = w - lr m
 *   lamb   u = mh / (sqrt(vh) + eps) + wd w; w = w - lr r u; r = |w| / |u| per tensor of two or
 *          more dimensions (1 where either is 0), else 1 (You et al. 2020)
 * ema = d ema + (1 - d) w, where ema is given, d = min(ema_decay, (1 + t) / (10 + t)): a young
 * average forgets the random weights that it began with (as tf.train.ExponentialMovingAverage with
 * num_updates). Nothing happens when state->skip, nor to chunks of rate 0: their gradient may be
 * anything. */
enum { OPT_ADAMW, OPT_ADAM, OPT_SGD, OPT_LAMB };
typedef struct {
    int kind;
    double beta1, beta2, eps, momentum, weight_decay;
    double ema_decay;
} OptConfig;
typedef struct {
    const OptConfig *opt;
    const dev *chunks; /* Chunk[n]; another rank's are empty */
    int n;
    dev *w;            /* master weights */
    dev *work;         /* working weights in work_type; w itself: there are none besides */
    int work_type;
    bool stochastic;   /* round w to work up or down by chance, in proportion: the bits of element i
                          of chunk c are rng_block(seed, (c * VIT_CHUNK + i) / 4, 0, t,
                          RNG_ROUND, 0); what is frozen, to the nearest */
    dev *grad;         /* lamb_direction leaves u in it */
    dev *exp_avg;      /* m; sgd: its momentum */
    dev *exp_avg_sq;   /* v; sgd does without */
    dev *ema;          /* or NULL */
    dev *norms;        /* lamb: real [2][n], per chunk sums of squares of w and of u */
} OptStep;

/* How large the largest calls will be. */
typedef struct {
    int B, T, C, H; /* of a micro-batch: images, tokens, width, heads */
    int F, K, R;    /* other widths: MLP, classes, representation */
    int chunks;
    bool fp8;       /* linear layers' operands have scales */
} Sizes;

typedef struct Backend {
    const char *name;  /* "cpu", "cuda" */
    const char *built; /* what was compiled in: libraries, architectures */
    bool asynchronous; /* the host can prepare a step while the device computes the one before */
    void (*init)(const Device *d);
    int (*threads)(void);
    void (*describe)(char *out, size_t size); /* device and libraries, one line */
    double (*peak_flops)(void);               /* of matrix products in this type; 0: not known */
    double (*busy)(void); /* share of the last moment in which the device computed; -1: not known */
    /* Which algorithm each matrix product uses, where there is a choice: written to or read from a
     * text file, so that a run that is continued has the same bits. No file to read: no matter. */
    void (*algorithms)(const char *path, bool save);

    /* memory; sizes in bytes. alloc returns zeroed, 256-byte aligned memory or NULL. */
    double (*memory_free)(void); /* that alloc could still give; -1: not known */
    dev *(*alloc)(size_t bytes);
    void (*release)(dev *p);
    void *(*host_alloc)(size_t bytes); /* pinned where that means something */
    void (*host_release)(void *p);
    /* blocking, any host memory, after everything before */
    void (*upload)(dev *dst, const void *src, size_t bytes);
    void (*download)(void *dst, const dev *src, size_t bytes);
    /* asynchronous, host memory of host_alloc, which must be left alone until wait(ticket).
     * send runs beside what was called before it, from `after` on; what is called later waits for
     * it. fetch runs in order. */
    Ticket (*send)(dev *dst, const void *src, size_t bytes, Ticket after);
    Ticket (*fetch)(void *dst, const dev *src, size_t bytes);
    Ticket (*mark)(void);        /* everything called so far */
    void (*wait)(Ticket ticket); /* the host waits */
    void (*copy)(dev *dst, const dev *src, size_t bytes);
    void (*zero)(dev *dst, size_t bytes);
    void (*convert)(dev *dst, int dst_type, const dev *src, int src_type, long n);
    void (*add)(dev *sum, const dev *x, long n); /* sum += x, real */

    /* Call body(arg), or repeat what it called the last time it was run under this key: the key
     * must tell apart whatever makes body call something else. together: all ranks do the same. */
    void (*run)(uint64_t key, bool together, void (*body)(void *), void *arg);
    /* The StepState that the ops below read, and room for sums on their way: scratch_bytes says how
     * much that is. */
    size_t (*scratch_bytes)(const Sizes *s);
    void (*bind)(dev *state, dev *scratch, size_t scratch_bytes);
    /* How operands with a scale are scaled from now on; and the end of a step: where it was not
     * skipped, its amax, the largest over the ranks, is the newest of the history, of which the
     * next step's scale is made. Operands whose amax was 0 (none was seen) or not finite keep what
     * they have. NULL where a device has no such products. */
    void (*fp8)(const Fp8 *how);
    void (*fp8_update)(const Fp8Update *u);

    void (*linear_forward)(const LinearForward *a);
    void (*linear_backward_input)(const LinearBackwardInput *a);
    void (*linear_backward_weight)(const LinearBackwardWeight *a);
    /* y = act(pre), dropped out: what linear_forward made of a->pre, again and bit for bit. x, w,
     * bias and residual are not looked at. */
    void (*activate)(const LinearForward *a);
    void (*patchify)(const Patchify *a);
    void (*embed_forward)(const Embed *a);
    void (*embed_backward)(const Embed *a);
    void (*residual_norm_forward)(const ResidualNorm *a);
    void (*residual_norm_backward)(const ResidualNorm *a);
    void (*attention_forward)(const Attention *a);
    void (*attention_backward)(const Attention *a);
    void (*head_norm_forward)(const HeadNorm *a);
    void (*head_norm_backward)(const HeadNorm *a);
    void (*pool_forward)(const Pool *a);
    void (*pool_backward)(const Pool *a); /* x is dx, y is dy */
    void (*loss)(const Loss *a);

    /* adds to state: counted += rows*cols, large += elements beyond 0.125 * 65504 or not finite */
    void (*count_large)(Tensor x, int rows, int cols);
    /* partial[i] = sum of squares of chunk i of x; 0 where it is empty, frozen or a CHUNK_COPY,
     * also in lamb_direction's two: sums over the ranks count each element of the model once */
    void (*sum_squares)(dev *partial, const dev *x, const dev *chunks, int n);
    /* From the partial sums, in order: grad_norm (divided by loss_scale), clip (max_norm 0: no
     * clipping), skip where the norm is not finite, skipped and t. */
    void (*finish_norm)(const dev *partial, int n, double max_norm);
    void (*adam)(const OptStep *a); /* adam and adamw */
    void (*sgd)(const OptStep *a);
    void (*lamb_direction)(const OptStep *a); /* moments, u, and the partial norms */
    void (*lamb_apply)(const OptStep *a);     /* combines the norms per tensor, updates w */
    /* the working weights from w, as the optimiser's last update rounded them */
    void (*round_weights)(const OptStep *a);
    /* after the optimiser: the next step's loss scale, its counters, and skipped_in_row */
    void (*scale_loss)(const LossScaling *s);

    /* Between the ranks. All ranks call split together: those of one colour become a group, in
     * the order of their ranks; a group of one is NULL. Groups last until the end. What a group is
     * called, a constant, messages say of a rank that hangs; for that a backend notes where it is
     * (util/calls.h). */
    Group *(*split)(int colour, const char *name);
    /* Asynchronous beside the ops: they begin when what was called before is done, those of one
     * group in the order of calls, which is the same on all its ranks. What is called later waits
     * for one of them after `join` with its ticket; until then it may not touch the operands. What
     * began inside a body of run() is joined there. A NULL group does nothing. Sums are F32, BF16
     * or F16, of counters U64. A CPU makes them in the order of the ranks, in `real`, and rounds
     * once; a GPU with Device.ordered makes them in one order on all machines, else in one that
     * stays the same for the same machines. */
    Ticket (*all_reduce)(Group *g, dev *x, int type, long n); /* x = sum over the ranks */
    /* own [n] = this rank's part of the sum of x [ranks * n]; own may be that part of x itself */
    Ticket (*reduce_scatter)(Group *g, dev *own, const dev *x, int type, long n);
    /* x [ranks * n] = each rank's own [n]; own may be this rank's part of x */
    Ticket (*all_gather)(Group *g, dev *x, const dev *own, int type, long n);
    /* To or from rank number `peer` of the group; never inside a body of run(). A pass does not
     * wait for the receiver, unless it is joined. */
    Ticket (*pass)(Group *g, int peer, const dev *x, size_t bytes);
    Ticket (*receive)(Group *g, int peer, dev *x, size_t bytes);
    void (*join)(Ticket t); /* 0: nothing */
    /* bytes that this rank has sent in all of them so far, as a ring sends them: of an all_reduce
     * 2 (r-1)/r of x, of a reduce_scatter or all_gather (r-1) times own */
    double (*sent)(void);
    /* seconds so far that what is called after a join has had to wait for its collective */
    double (*waited)(void);
    void (*end)(void); /* takes leave of the other ranks; nothing is called after it */
} Backend;

const Backend *backend_cpu(void);
/* The same of tensors in bf16: not in a program that computes in double. */
const Backend *backend_cpu_bf16(void);
/* Whether this CPU multiplies bf16 faster than floats. */
bool backend_cpu_bf16_pays(void);
/* Only in programs that were built with nvcc: elsewhere the name is NULL. */
const Backend *backend_cuda(void) __attribute__((weak));
#define PROGRAM (backend_cuda ? "./train_gpu" : "./train_cpu")
/* First thing in main(): where OpenBLAS does not know the CPU and has chosen slow kernels, or
 * OpenMP would spin at barriers, start the program again with the variables that say better. */
void backend_cpu_reexec(char **argv);
/* Dies where the program was built without MPI, over which ranks on CPUs add their gradients. */
void backend_cpu_need_mpi(void);
