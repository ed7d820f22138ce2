/* data.h - images in: data sets, their order, and batches made ahead of time. What a data set is
 * opened with, DataOptions, is in datasets/source.h.
 *
 * Everything here is a function of (seed, epoch, sample): the same bytes for any number of workers
 * or ranks, and after any resume. Images are uint8 RGB, [H, W, 3]; the model normalises them. How
 * one picture is decoded, cropped and changed is in image/image.h.
 */
#pragma once

#include "datasets/source.h"
#include "datasets/splits.h"

/* ---- data sets ---- */

typedef struct Dataset Dataset;
Dataset *data_open(const DataOptions *o, Error *e);
void data_close(Dataset *d);
long data_count(const Dataset *d);
int data_classes(const Dataset *d);
const char *data_class_name(const Dataset *d, int label);
const Names *data_class_names(const Dataset *d); /* in label order */
int data_split(const Dataset *d);                /* SPLIT_*; none: the data is not divided */
/* Prints one line, after `before`: where the images are, how many, and what was passed over; then
 * lines `note: ...`, but for those that `said` (or NULL) has too. */
void data_describe(const Dataset *d, const char *before, const Dataset *said);
bool data_classes_sorted(const Dataset *d); /* no file lists the classes */
/* Whether no file lists the classes, and another ORDER_* would number them otherwise. */
bool data_order_matters(const Dataset *d);
/* A path, "file.bin#123" or "shard.tar#0000123.jpg"; free() it. */
char *data_sample_path(const Dataset *d, long i);
int data_label(const Dataset *d, long i);
long data_damaged(const Dataset *d); /* samples found damaged so far, by this process */
/* The same by all processes that share a data set, whose own numbers add up to `reported`: a sample
 * that two of them met counts once where it matters, and more than max_damaged allows end the
 * program. They call this together; `sum` adds x[n] up over them, where that is needed. */
long data_damaged_by_all(Dataset *d, double reported, void (*sum)(double *x, int n));
/* The preprocessed sample i as epoch `epoch` sees it for the `repeat`th time, [out_h, out_w,
 * 3]. A damaged image is reported once, counted, and replaced by the next readable one. Returns the
 * label. */
int data_sample(Dataset *d, Decoder *decoder, long i, long epoch, int repeat, uint8_t *out);
/* Which sample stands at a position of a shuffled epoch: a bijection on [0, data_count). */
long data_order(Dataset *d, long epoch, long position);

/* ---- batches ---- */

/* Batches, decoded ahead by threads. Position p of the run is sample data_order(p / n, p % n), n =
 * data_count (shuffle off: sample p % n), so batches run on across epochs and a loader opened at a
 * later position continues exactly. */
typedef struct {
    int batch;
    bool shuffle;
    int repeats; /* times each sample is shown in an epoch, of 1/repeats of the samples; 0: 1 */
    long start, stride; /* batch k begins at position start + k*stride; stride 0: batch */
    long end;           /* ends before this position; 0: never */
    int workers;        /* threads; 0: as many as it turns out to take, up to max_workers */
    int max_workers;
    bool at_once;   /* all of max_workers from the start: for what is over before it turns out */
    int neighbours; /* ranks on this machine that read their shares of the same batches, besides
                       this */
} LoaderOptions;

typedef struct {
    int n;           /* images, = batch except at the end */
    uint8_t *images; /* [n, out_h, out_w, 3] */
    int *labels;     /* [n] */
    long position;   /* of the first image */
} Batch;
typedef struct Loader Loader;
Loader *loader_open(Dataset *d, const LoaderOptions *o);
const Batch *loader_next(Loader *l); /* NULL at the end; valid until the next call */
typedef struct {
    double waited;  /* seconds loader_next has blocked, in total */
    uint64_t bytes; /* of files read, in total */
    int workers;    /* at work now */
} LoaderStats;
LoaderStats loader_stats(Loader *l);
void loader_close(Loader *l);
