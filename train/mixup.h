/* mixup.h - what happens to a step's images on their way into the model: colour twist, random
 * erasing, mixup and cutmix; and the targets that follow from it.
 *
 * Here it is only drawn: an Augment per image says what the backend's patchify does (backend.h).
 * Everything is a function of (seed, step, position in the step's batch), and partners are never
 * further apart than a group of `group` consecutive positions, which divides every micro-batch. So
 * neither micro-batches nor ranks change anything, and ranks never exchange images.
 * Crop, flip and what else happens to single images on the CPU is in image/.
 */
#pragma once

#include "backend.h"
#include "train/options.h"
#include "util/rng.h"

typedef struct {
    double mixup, cutmix;   /* alpha of their Beta distributions; 0: off */
    double to_cutmix, prob; /* probability of cutmix where both are on, and of either */
    int per, pairs;         /* MIX_PER_*, PAIRS_* */
    int group;              /* images that mix among themselves; 1 where both are off */
    double erase;           /* probability */
    int erase_mode;         /* ERASE_TO_* */
    double twist[4];        /* half-widths: brightness, contrast, saturation; hue in degrees */
    int image_h, image_w;
} Mix;

/* As the flags have it; o->color_twist must be valid. */
Mix mix_of(const Options *o, const Config *c);
/* --color-twist: "" is all zeros, "0.4" is "0.4,0.4,0.4,0". */
bool mix_parse_twist(const char *text, double twist[4], Error *e);
bool mix_mixes(const Options *o);        /* mixup or cutmix is on */
bool mix_changes_anything(const Mix *m); /* else no Augment is needed */
/* --mix-group auto: the largest divisor of the batch up to 8 or, where that is 1, the smallest
 * above. The same for any number of ranks. */
long mix_auto_group(long batch);

/* What happens to the images at positions first..first+n-1 of a step's batch; partners are counted
 * from `first`. first and n are multiples of the group. */
void mix_batch(const Mix *m, uint64_t seed, uint32_t step, uint32_t first, int n, Augment *out);

/* Targets [n, K]: each image's label smoothed, (1 - s) onehot + s / K, and of these the image's own
 * and its partner's by their shares of the pixels (augment NULL: all its own). `pixels` is H*W.
 * The loss op takes the largest target for the label: accuracy in training counts the label with
 * the larger share. */
void soft_targets(real *targets, const int *labels, int n, int K, double smoothing,
                  const Augment *augment, long pixels);
/* Each of n targets becomes 1 where it is above the threshold, and else 0. */
void harden_targets(real *targets, long n, double threshold);

/* ---- the draws by themselves ---- */

/* Beta(alpha, alpha) */
double mix_beta(double alpha, RngStream *rng);
/* The affine map of a colour twist, as Augment.colour has it; hue in degrees. */
void mix_twist_map(double brightness, double contrast, double saturation, double hue,
                   float map[12]);
