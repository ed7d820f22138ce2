/* source.h - where samples come from: what a data set is opened with, what data.c asks of each kind
 * of it, and what the kinds share.
 *
 * A kind is one file (folders.c, webdataset.c, cifar_mnist.c, fake.c) with one table of functions,
 * a SourceKind, and a function that opens it. None of them calls data.c.
 */
#pragma once

#include "image/image.h"
#include "util/names.h"

typedef struct {
    /* DIR | wds:PATTERN[::PATTERN...] | cifar10:DIR | cifar100:DIR | mnist:DIR |
     * fake[:zeros][:COUNT] */
    const char *spec;
    const char *classes;   /* file of class names in label order, or NULL */
    const char *index_dir; /* wds: folder with idx_N.txt, or NULL */
    const char *wds_label; /* cls (NULL) | EXT | EXT:KEY of a JSON object | folder */
    int class_order;       /* ORDER_*: of names that no file lists */
    const Names *like;     /* such names, where another split has settled them; or NULL */
    bool train; /* the part of DIR for this, see splits.h; all of it if it has no parts */
    Preprocess images;
    int fake_classes, fake_count;
    int num_classes; /* wds without `classes`: how many there are; 0: as many as labels occur */
    double classes_fraction; /* of the classes, the first in label order; 0 is 1: all */
    double val_fraction;     /* folder: share of each class that is for validation; 0: none */
    double per_class;        /* of each class, the first: a share up to 1, a number above; 0: all */
    int window;              /* wds: shards that are shuffled together; 0: 4 */
    /* Share of the samples that may be damaged before the program ends with an error, though ten
     * may always be; 0 is 1: all; below 0: not one. */
    double max_damaged;
    uint64_t seed;
} DataOptions;

typedef struct Source Source;

/* Positions first .. first+count of an epoch are about to be read, and this machine reads one out
 * of `every` positions. */
typedef struct {
    bool shuffle;
    long epoch, first, count;
    double every;
} Upcoming;

/* All but open and close are called by several threads at once. */
typedef struct {
    bool stretch; /* objects without margin: the evaluation's crop would cut into them */
    /* Opens the picture of sample i; false if it is damaged. */
    bool (*read)(Source *s, long i, Decoder *d, Error *e);
    /* In read's place: makes an image of the model's size itself. */
    void (*make)(const Source *s, long i, uint8_t *out);
    char *(*path)(const Source *s, long i); /* free() it */
    void (*close)(Source *s);               /* what is not in Source; may be NULL */
    /* Both may be NULL. A bijection on [0, n) in rng_shuffle's place; reading ahead. */
    long (*order)(Source *s, long epoch, long position);
    void (*ahead)(Source *s, const Upcoming *u);
} SourceKind;

/* The first member of every kind's own struct. */
struct Source {
    const SourceKind *kind;
    long n;
    int *labels;    /* [n] */
    uint64_t *item; /* [n]: where sample i is, as its kind understands it */
    Names classes;
    bool sorted;  /* the classes are in class_order, as no file lists them */
    int split;    /* SPLIT_*: which part of the data this is */
    char *place;  /* the folder or files it was found in, */
    Names passed; /* what it does not use there: ".txt" for each such file; */
    Names notes;  /* and what else is to be said once */
};

/* What stands behind a spec's prefix, without preprocessing. NULL and an error if it cannot be
 * opened as a whole. */
typedef Source *SourceOpen(const char *where, const DataOptions *o, Error *e);
/* Hidden, or what programs that look after disks and archives leave among pictures. */
bool is_litter(const char *name);
/* Whether wds:WHERE is a folder whose shards, by their names, have a part for validation. */
bool webdataset_divided(const char *where);
SourceOpen folders_open, cifar10_open, cifar100_open, mnist_open, webdataset_open, fake_open;

/* ---- source.c: what the kinds share ---- */

void source_add(Source *s, uint64_t item, int label);
/* The source as its opening returns it: `s`, or NULL, which closes it, if not ok. */
Source *source_opened(Source *s, bool ok);
/* Leaves what classes_fraction and per_class ask for. */
void source_subset(Source *s, const DataOptions *o);
/* Parts a data set that has no parts: leaves what o->train asks for. Of a class with n images,
 * those val_fraction * n (rounded; one or more, but not all) whose names, text + item, have the
 * smallest hashes are for validation: the same on every machine, wherever the folder lies. */
void source_divide(Source *s, const char *text, const DataOptions *o);
void source_close(Source *s); /* NULL does nothing */
/* each(ctx, i) for all i in [0, n), in several threads: more than there are cores, because the disk
 * is what takes time. The first i that fails gives the error; after it, no other is begun. */
bool source_parallel(int n, bool (*each)(void *ctx, int i, Error *e), void *ctx, Error *e);
/* Ends the program with one error, whichever threads come here: the data set itself is lost. */
NORETURN void source_lost(const char *hint, const char *fmt, ...) PRINTF_LIKE(2, 3);

bool image_extension(const char *ext); /* jpg, PNG, ... */
void source_note(Source *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* "DIR/train: 120 images of 3 classes; passed over: 2 .heic, 3 .txt"; free() it. */
char *source_summary(const Source *s);
/* Notes of classes without images, of a single class, and of labels from 1 on. */
void source_note_classes(Source *s);
