/* weights.h - a model's weights in a file: what model it holds, its tensors in and out.
 *
 * A weights file holds every tensor of the parameter tables (model/params.h) under timm's name and
 * in timm's shape. Ours says in its metadata what the shapes cannot (heads, epsilons, pooling,
 * normalisation). A foreign one may be of another kind (open.h) and have other names (names.h).
 *
 * Files know nothing of ranks: every tensor is there once, in whole. Each rank reads and writes the
 * elements that it holds, at their places in the file. Where it keeps them is no matter here: a
 * TensorSet says which they are, and copies them, a piece at a time.
 */
#pragma once

#include "model/params.h"
#include "weights/hub.h"
#include "weights/positions.h"
#include "weights/safetensors.h"

/* What a weights file says about its model, and what it leaves open. Ours says all in its metadata;
 * of a foreign one the tensors tell the dimensions, and files beside it (hub.h) the rest. What
 * nobody says is assumed: heads as the preset of these dimensions has them (else width / 64), eps
 * 1e-6, erf GELU, ImageNet's mean and deviation. */
typedef struct {
    const char *setting; /* of Config */
    char text[120];      /* "3 heads, as Ti/16 (--heads)" */
} Assumption;
enum { MAX_ASSUMPTIONS = 8 };
typedef struct {
    Config config;   /* classes is 0 where the file has no head */
    char form[256];  /* "transformers' names under vit., config.json"; "" for ours */
    char notes[768]; /* what of the file is left out, or was added; "" for nothing */
    Assumption assumed[MAX_ASSUMPTIONS];
    int assumptions;
    Hub hub; /* also of the images that the model expects */
} WeightsInfo;
/* image_h, image_w: the size of its images, where that was said, else 0: a grid of patches that is
 * no square can be told by it. */
bool weights_describe(const char *path, int image_h, int image_w, WeightsInfo *w, Error *e);
/* The same, and the tensors themselves, under our names and in our shapes; st_close() them. */
SafeTensors *weights_open(const char *path, int image_h, int image_w, WeightsInfo *w, Error *e);
/* All elements of one of them; free() it. NULL and an error where it is not there. */
real *weights_values(const SafeTensors *f, const char *name, long *n, Error *e);
/* The configuration alone; `assumed` receives one line of text ("" for ours). */
bool weights_config(const char *path, Config *c, char *assumed, size_t size, Error *e);
/* Whether a file of ours was saved with this configuration, but for the settings in `may_change`
 * (NULL-terminated names): a run goes on with the model that it had. */
bool weights_same_config(const SafeTensors *f, const Config *c, const char *const *may_change,
                         Error *e);

/* A number for every parameter: the weights, a moment, an average. In a file its tensors are called
 * prefix + name.
 * kept: this rank has elements *begin .. *end - 1 of its part of p (none: they are equal), in the
 * buffer from the place on that it returns. once: of ranks that have the same ones, one only.
 * copy: between `values` [n] and the buffer from place `at` on: to it where a file is read, from it
 * where one is written. */
typedef struct TensorSet TensorSet;
typedef void TensorCopy(const TensorSet *set, long at, long n, real *values);
struct TensorSet {
    const char *prefix; /* "exp_avg." */
    void *owner, *buffer;
    long (*kept)(const TensorSet *set, const Param *p, bool once, long *begin, long *end);
    TensorCopy *copy;
};

/* Every tensor of the sets must be in the file in its shape, and the file has no others. Nothing is
 * copied before all are known to fit: check, then read. HEAD and NO_HEAD look at that part alone,
 * of model and file; with PART it is no matter what else the file has. Errors name the tensor and
 * both shapes. */
enum { WEIGHTS_WHOLE, WEIGHTS_HEAD, WEIGHTS_NO_HEAD, WEIGHTS_PART };
bool weights_check(const SafeTensors *f, const Layout *l, const TensorSet *sets, int n, int extent,
                   Error *e);
bool weights_read(const SafeTensors *f, const Layout *l, const TensorSet *sets, int n, int extent,
                  Error *e);
/* Both, for a file of weights from anywhere. With LOAD_NEW_HEAD a head of another shape (or none)
 * leaves the model's as it was initialised. Position embeddings of another grid of patches are
 * resized, in the way LOAD_POS(POS_*). `report` receives one line about both. */
enum { LOAD_NEW_HEAD = 1 };
#define LOAD_POS(how) ((how) << 1)
bool weights_load(const char *path, const Layout *l, const TensorSet *sets, int n, int how,
                  char *report, size_t size, Error *e);
/* Of an open file, prefix + "pos_embed", whose grid is that of a file of ours (`model`): resized to
 * the layout's, where it is another. */
void weights_resize_positions(SafeTensors *f, const SafeTensors *model, const char *prefix,
                              const Layout *l, int how);

/* A weights file of ours, with its metadata. */
StWriter *weights_create(const char *path, const Layout *l);
/* Declares the sets, which are all that w will hold; and, once it has begun, writes what this rank
 * has of them. */
void weights_declare(StWriter *w, const Layout *l, const TensorSet *sets, int n);
bool weights_write(StWriter *w, const Layout *l, const TensorSet *sets, int n, Error *e);

/* What to do about a train_state.safetensors that lacks something. */
extern const char weights_state_hint[];
