/* data.h - images in: decoding, preprocessing, datasets, and batches made ahead of time.
 *
 * Everything here is a function of (seed, epoch, sample): the same bytes for any number of workers
 * and after any resume. Images are uint8 RGB, [H, W, 3]; the model normalises them.
 */
#ifndef DATA_H
#define DATA_H

#include "rng.h"
#include "util.h"

/* ---- image.c: image files ---- */

typedef struct {
    int w, h;
    uint8_t *rgb; /* [h, w, 3]; image_free() */
} Image;

enum { FILTER_BILINEAR, FILTER_BICUBIC };
enum { CROP_CENTER, CROP_STRETCH };

/* Pixels an image may have before it is refused as a decompression bomb (Pillow's error limit). */
#define IMAGE_MAX_PIXELS 178956970L
/* Its longest side (JPEG's limit): the scratch of a resize grows with it. */
#define IMAGE_MAX_SIDE 65500

/* Decode JPEG (CMYK and YCCK converted as Pillow does), PNG, GIF, BMP, PPM or PGM, by content and
 * not by name; EXIF orientation applied. Truncated or corrupt data is an error, as in Pillow. */
bool image_decode(const uint8_t *bytes, size_t n, Image *out, Error *e);
bool image_load(const char *path, Image *out, Error *e);
void image_free(Image *im);
/* quality 1..100; writes a temporary file and renames it */
bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e);

/* ---- resize.c: to the size a model wants ---- */

/* Pillow's Image.resize of the box (left, top, right, bottom): antialiased, separable, the
 * horizontal pass rounded to bytes first. out is [out_h, out_w, 3]. flip mirrors left and right
 * afterwards. */
void image_resize(const Image *im, double left, double top, double right, double bottom, int filter,
                  int out_w, int out_h, bool flip, uint8_t *out);
/* Evaluation. CROP_CENTER: shorter side to `resize` (the longer side truncated), then the centre
 * out_h x out_w (offset rounded, a smaller picture padded with zeros), all as in torchvision;
 * CROP_STRETCH: straight to size. `resize` 0 is image_default_resize. */
void image_eval(const Image *im, int crop, int resize, int filter, int out_w, int out_h,
                uint8_t *out);
/* What the shorter side of a w x h image becomes before the centre crop when nothing else is asked
 * for: 256/224 of what covers the crop on both sides, so 256 for 224 x 224 and any image. */
int image_default_resize(int out_w, int out_h, int w, int h);
typedef struct {
    int left, top, width, height;
} Box;
/* Crop, then resize: as image_resize, but pixels outside the box take no part in its edges. */
void image_crop_resize(const Image *im, Box b, int filter, int out_w, int out_h, bool flip,
                       uint8_t *out);
/* Random resized crop as torchvision draws it: area in [area_min, area_max] of the image,
 * log-uniform ratio in [ratio_min, ratio_max], ten attempts, then the largest central crop within
 * the ratios. */
Box image_random_box(RngStream *rng, int w, int h, double area_min, double area_max,
                     double ratio_min, double ratio_max);

/* ---- data.c: datasets ---- */

typedef struct {
    const char *spec;     /* DIR | cifar10:DIR | cifar100:DIR | mnist:DIR | fake */
    const char *classes;  /* file of class names in label order, or NULL */
    bool train;           /* DIR/train, else DIR/{val,validation,test}; DIR itself without either */
    int image_h, image_w; /* size of the images in a batch */
    int fake_classes, fake_count;
    /* preprocessing */
    bool augment;             /* random resized crop + flip; else evaluation */
    int crop, resize, filter; /* CROP_*, shorter side (0: image_default_resize), FILTER_* */
    double area_min, area_max, ratio_min, ratio_max, flip;
    uint64_t seed;
} DataOptions;

typedef struct Dataset Dataset;
Dataset *data_open(const DataOptions *o, Error *e);
void data_close(Dataset *d);
const DataOptions *data_options(const Dataset *d); /* spec and classes are NULL */
long data_count(const Dataset *d);
int data_classes(const Dataset *d);
const char *data_class_name(const Dataset *d, int label);
/* A path, or "file.bin#123"; valid until this thread asks for another. */
const char *data_sample_path(const Dataset *d, long i);
char *data_sample_path_copy(const Dataset *d, long i); /* the same; free() */
int data_label(const Dataset *d, long i);
long data_damaged(const Dataset *d); /* images replaced so far */
/* The preprocessed sample i as epoch `epoch` sees it, [image_h, image_w, 3]. A damaged image is
 * reported once, counted, and replaced by the next readable one. Returns the label. */
int data_sample(Dataset *d, long i, long epoch, uint8_t *out);

/* ---- loader.c: order and batches ---- */

/* Order of an epoch: position -> sample, a bijection on [0, n) keyed by (seed, epoch). */
long data_shuffle(uint64_t seed, long epoch, long n, long position);

/* Batches, decoded ahead by `workers` threads. Position p of the run is sample
 * data_shuffle(seed, p / n, n, p % n) (shuffle off: p % n), so batches run on across epochs and a
 * loader opened at a later position continues exactly. Ends before position `end` (0: never). */
typedef struct {
    int n;           /* images, = batch except at the end */
    uint8_t *images; /* [n, image_h, image_w, 3] */
    int *labels;     /* [n] */
    long position;   /* of the first image */
} Batch;
typedef struct Loader Loader;
Loader *loader_open(Dataset *d, int batch, bool shuffle, long start, long end, int workers);
/* The same, but batch k starts at position start + k*stride: what one of several ranks reads. */
Loader *loader_open_strided(Dataset *d, int batch, bool shuffle, long start, long stride, long end,
                            int workers);
const Batch *loader_next(Loader *l);   /* NULL at the end; valid until the next call */
double loader_waited(const Loader *l); /* seconds loader_next has blocked, in total */
void loader_close(Loader *l);

/* ---- shapes.c: the built-in image set ---- */

/* Write `dir`/{train,val}/<class>/NNNN.jpg: 10 classes of drawn shapes, size x size pixels, JPEG,
 * with random colours, pose, texture, clutter and noise. Does nothing if dir already holds the same
 * set. Reproducible from seed. */
bool shapes_write(const char *dir, int train_per_class, int val_per_class, int size, uint64_t seed,
                  Error *e);

#endif
