/* vit.h - the model: its memory plan, and the calls that train.c makes.
 *
 * What a Vision Transformer is made of stands in model/config.h (settings) and model/params.h
 * (every tensor, once), what a device must offer in backend.h, what this rank owns in dist.h.
 *
 * Names of the field:  B images  T tokens per image  C width  H heads  hs head size (C = H*hs)
 * F width of the MLP  L blocks  K classes  P side of a patch  Np patches (T = class tokens + Np).
 * dx is the gradient of x. Matrices are row-major; a linear layer's weight is [out, in].
 */
#pragma once

#include "dist.h"

/* A block's activations, one line each: field, what it stores (ACT: numbers of the model's type,
 * STAT: real ones), elements, and what it costs to make it again for the backward pass: elementwise
 * operations next to NOTHING, attention is CHEAP, products are DEAR, and statistics are so small
 * that they are saved ALWAYS. A is the width of this rank's heads: C, or C / tp; F, F1 and H are
 * this rank's too, F1 = vit_hidden / tp. Without a backward pass nothing is saved: all blocks share
 * one set. */
enum { ALWAYS, NOTHING, CHEAP, DEAR };
#define BLOCK_ACTS(X)                                                                              \
    X(norm1_mean, STAT, B * T, ALWAYS)                                                             \
    X(norm1_rstd, STAT, B * T, ALWAYS)                                                             \
    X(norm1_y, ACT, B * T * C, NOTHING)     /* LN1(x) */                                           \
    X(qkv, ACT, B * T * 3 * A, DEAR)                                                               \
    X(qk, ACT, c->qk_norm ? B * T * 2 * A : 0, DEAR) /* q and k before their norms */              \
    X(lse, STAT, B * H * T, ALWAYS)                                                                \
    X(att, ACT, B * T * A, CHEAP)           /* heads concatenated */                               \
    X(branch1, ACT, c->layer_scale ? B * T * C : 0, DEAR) /* attn.proj's output, kept for dls1 */  \
    X(mid, ACT, B * T * C, DEAR)            /* residual stream between attention and MLP */        \
    X(norm2_mean, STAT, B * T, ALWAYS)                                                             \
    X(norm2_rstd, STAT, B * T, ALWAYS)                                                             \
    X(norm2_y, ACT, B * T * C, NOTHING)     /* LN2(mid) */                                         \
    X(fc1, ACT, B * T * F1, DEAR)           /* before GELU; with SwiGLU gate and value */          \
    X(gelu, ACT, B * T * F, NOTHING)                                                               \
    X(branch2, ACT, c->layer_scale ? B * T * C : 0, DEAR) /* mlp.fc2's output, kept for dls2 */

#define X(field, ...) dev *field;
typedef struct { BLOCK_ACTS(X) } BlockActs;
#undef X
#define X(field, ...) ACT_##field,
enum { BLOCK_ACTS(X) BLOCK_ACT_COUNT };
#undef X

/* What the backward pass makes again instead of finding it saved (Chen et al. 2016).
 *   SELECTIVE  what is CHEAP: norms, attention from q, k and v, GELU
 *   FULL       everything but each group's input, and what `keep` names: of a block's activations
 *              those whose bit 1 << ACT_* is set. Groups of one block, the first `blocks`: NeMo's
 *              block method; longer groups: its uniform one; keep = 1 << ACT_mid: Graphcore's
 *              stash in the middle of a layer.
 *   LIGHT      what costs next to NOTHING: norms and GELU; and a unit's working weights in 16 bits
 *              are made of its master weights whenever a pass comes to it (Units.transient) */
enum { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL, RECOMPUTE_LIGHT };
typedef struct {
    int kind;
    int blocks; /* of each stage, the first so many; 0: all */
    int group;  /* blocks from one saved stream to the next; 0: 1 */
    unsigned keep;
} Recompute;

/* The products of the blocks' linear layers (qkv, proj, fc1, fc2) in 8 bits: Fp8 in backend.h. All
 * else is in the plan's type, which is BF16 then, and so is the last block of a model that reads
 * its class tokens alone, but for what all tokens need of it. */
typedef struct {
    bool on;
    bool current;    /* current scaling; else delayed, from when its history is full */
    bool skip_ends;  /* the first and the last block in BF16 */
    bool wgrad_bf16; /* weight gradients in BF16 */
    int history;     /* steps */
    int margin;
} Fp8Plan;

typedef struct {
    int max_batch;       /* images in one micro-batch */
    int batch;           /* images of a whole step, all ranks; 0: max_batch */
    int in_flight;       /* micro-batches between their forward and backward pass; 0: as many as
                            the split needs */
    const Split *split;  /* which part of the model this rank has; NULL: all */
    Recompute recompute;
    bool offload;        /* the optimiser's state is in the host's memory */
    int type;            /* F32, BF16, F16: activations and working weights */
    bool training;       /* plan gradients, optimiser state and saved activations */
    bool keep_streams;   /* compute every row of every block, and keep each block's stream and qkv:
                            to be looked at */
    bool float_images;   /* vit_set_batch may be given images of floats */
    bool ema;
    int decay;           /* DECAY_* */
    double layer_decay;  /* of the learning rate (layout_rates); 0: 1 */
    int frozen;          /* units that do not learn (layout_rates) */
    int position;        /* POSITION_*: whether positions learn (vit_set_positions) */
    OptConfig opt;
    double clip;         /* global norm; 0: off */
    LossScaling scaling;
    Fp8Plan fp8;
    bool stochastic;     /* stochastic rounding of the working weights */
    void (*gap)(dev *p, size_t bytes); /* tests: told of room left between any two buffers */
} Plan;

/* One of two sets of inputs: the host fills one while the device computes on the other. */
typedef struct {
    dev *images, *targets, *augment, *state;                        /* state: the host's part */
    void *host_images, *host_targets, *host_augment, *host_state;   /* on their way there */
    Ticket sent, state_sent; /* the host's parts may be written again */
    Ticket used;             /* the device's parts may be */
} Inputs;

/* What belongs to one micro-batch, from its inputs to the end of its backward pass. */
typedef struct {
    int B;            /* images */
    int number;       /* of the micro-batch in its step */
    uint32_t sample0; /* its first image within the step's */
    int loss_images;  /* the loss is divided by this */
    bool last;        /* of this rank in this step: gradients go to the other ranks */
    bool train_mode;  /* dropout and drop path are on */
    bool images_u8, use_augment;
    Inputs inputs[2];
    int set; /* which of them is this micro-batch's */
    Ticket passed;    /* its stream, on its way to the next stage */
    Ticket shared[2]; /* images and targets, on their way to the next tensor parallel rank */
    /* activations, of this stage alone; what blocks[l] do not save lies in the model's `again` */
    BlockActs *blocks;
    dev **stream; /* [L+1]: residual stream before block 0 and after each block, [B,T,C] */
    dev *patches, *patch_out, *embed_x, *embed_mean, *embed_rstd;
    dev *final_y, *final_mean, *final_rstd, *pooled, *rep, *rep_pre, *logits, *dlogits;
    dev *found; /* [B,D] what pooling made, where a norm comes after it */
    struct {    /* attention pooling: B rows each, but qkv */
        dev *query, *qkv, *lse, *att, *mid, *mean, *rstd, *norm, *fc1, *gelu;
    } map;
} Micro;

/* What a step came to. */
typedef struct {
    StepState state; /* after it */
    real *stats;     /* [images of the step or evaluation, 3] as the loss op has them */
    real *tally;     /* [TALLY]: sums over the ranks of what vit_tell was given */
    Ticket ready;
} StepResult;

typedef struct Model {
    Config config;
    Plan plan;
    const Backend *be;
    uint64_t id;     /* of this model among all of the process */
    Split split;     /* which ranks have what */
    Axis classes;    /* tensor parallel ranks that share the head's classes; else alone */
    Layout *layout;  /* units, tensors, chunks */
    Units own;       /* weights, gradients and optimiser state */
    dev *memory[3];  /* the three allocations: parameters, activations, inputs */
    Arena host;      /* the optimiser's state, where the host has it */
    size_t bytes_acts, bytes_inputs; /* those of parameters: own.bytes_* */

    Micro *micro;    /* [plan.in_flight] */
    Micro *now;      /* the one whose inputs were set last */
    int begun;       /* micro-batches of this step */

    /* scratch, of one block at a time, or one group of blocks that is recomputed */
    BlockActs *again; /* [group]: activations that are not saved */
    dev **streams;    /* [group]: the residual stream before each of its blocks but the first */
    dev *branch;     /* a branch's output on its way into the residual stream */
    dev *dstream, *dbranch, *dy, *dwide, *dqkv, *dpooled, *drep; /* gradients */
    dev *dstream_sums;    /* real [C], column sums of dstream, */
    bool has_sums;        /* where the pass has just made them */
    Ticket returned; /* dstream, on its way to the stage before */
    dev *delta;      /* of attention_backward */
    dev *scratch;    /* the backend's */
    size_t scratch_bytes;

    /* scales of 8-bit copies; NULL: none */
    dev *scales, *all_scales, *amax_history; /* as Fp8Update has them */
    uint32_t fp8_since; /* the step with which the history began */

    /* the step */
    StepState state; /* host copy; the device's part is fresh after vit_state */
    dev *state_dev, *stats; /* stats: [images of the step, 3], then the tally */
    StepResult results[2];
    void *result_state[2]; /* results[i].state on its way from the device */
    uint32_t steps;  /* updates and evaluations: results[steps % 2] is the next to be written */
} Model;

/* Layout, memory plan, allocation; weights are zero. Dies if c is impossible or memory is short. */
Model *vit_create(const Config *c, const Plan *plan, const Backend *be);
void vit_free(Model *m);
/* Bytes that vit_create would take: of the device by class, and of the host's for the optimiser. */
typedef struct {
    double weights, gradients, optimiser, activations, inputs, host;
} Memory;
Memory vit_memory(const Config *c, const Plan *plan, const Backend *be);
/* Those of the device together, and the largest max_batch up to the plan's for which they fit into
 * `bytes`; 0: none. */
double vit_bytes(const Config *c, const Plan *plan, const Backend *be);
int vit_largest_batch(const Config *c, const Plan *plan, const Backend *be, double bytes);

/* All parameters by param_init's schemes; an average starts where the weights do. */
bool vit_init(Model *m, const char *scheme, uint64_t seed, double head_bias, double layer_scale,
              Error *e);
/* Fixed positions as the plan has them, in the weights and their average; none: nothing happens. */
void vit_set_positions(Model *m);

/* Bytes of one image as vit_set_batch takes it. */
size_t vit_image_bytes(const Config *c, bool u8);
/* Inputs of the next micro-batch, copied; B <= max_batch. targets [B,K] or NULL; augment
 * Augment[B] or NULL. Images and targets count on the first stage's first tensor parallel rank
 * (split_reads), from which the others have them: those may give NULL. */
void vit_set_batch(Model *m, int B, const void *images, bool u8, const real *targets,
                   const Augment *augment);

/* A step of training: vit_begin_step; for each of its micro-batches, as run_schedule (dist.h) says,
 * vit_set_batch and vit_micro_forward, then vit_micro_backward; then vit_update. Nothing of it
 * waits for the device, but vit_set_batch for the inputs before the last. */
void vit_begin_step(Model *m, uint32_t step, double lr, uint64_t seed);
/* What this rank has to say to all, with the micro-batches that follow. A step's result has the
 * sums over the ranks of what its last micro-batch was told. tally [TALLY] */
void vit_tell(Model *m, const real *tally);
/* Forward, and the loss divided by `batch`. first_sample: of the micro-batch's images within the
 * step's `batch`. */
void vit_micro_forward(Model *m, int first_sample, int batch);
/* Backward, of micro-batch number `micro` of the step; last: of this rank in this step. */
void vit_micro_backward(Model *m, int micro, bool last);
void vit_micro_step(Model *m, int first_sample, int batch, bool last); /* one after the other */
void vit_update(Model *m);                    /* norm, clip, optimiser */
/* The result of the newest update or evaluation (ago 0) or the one before (ago 1), which it waits
 * for; valid until two more have begun. NULL: there was none. */
const StepResult *vit_result(Model *m, int ago);

void vit_evaluate(Model *m);                  /* images, targets -> logits, stats; no dropout */
void vit_stats(const Model *m, real *out);    /* [B,3] of the last micro-batch; waits */
void vit_logits(const Model *m, real *out);   /* [B,K] of the last micro-batch; waits */

/* The parts of a forward pass, for tests and for those who want to do something between them. */
void vit_forward(Model *m, bool train_mode);  /* images -> logits */
void vit_loss(Model *m, double scale);        /* logits, targets -> stats (training: dlogits too) */

const StepState *vit_state(Model *m);         /* waits for the device */
void vit_set_state(Model *m, const StepState *s);
/* The largest numbers of the last steps, real [vit_scales][history], newest first; 0: none; and the
 * step with which the history began: what a run goes on with. No scales: nothing happens. */
int vit_scales(const Model *m);
void vit_amax(const Model *m, real *amax);
void vit_set_amax(Model *m, const real *amax, uint32_t since);
/* Any activation as real numbers, n of them from element `offset` on: tests compare them. */
void vit_read_act(const Model *m, const dev *buffer, long offset, long n, real *out);
