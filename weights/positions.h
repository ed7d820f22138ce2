/* positions.h - position embeddings for another grid of patches.
 *
 * One vector per patch, learned on one grid, is an image of C channels: a model for other pictures
 * starts from that image in another size. Four ways are in use, and differ at the borders and in
 * what they do when the grid becomes smaller:
 *
 *   timm      bicubic (a = -1/2), pixel centres, antialiased (timm's resample_abs_pos_embed)
 *   bicubic   bicubic (a = -3/4), pixel centres: what transformers computes at run time
 *   bilinear  pixel centres: NeMo, timm until 0.6 and its reader of Google's files
 *   google    bilinear between corner and corner (scipy's zoom of order 1)
 */
#pragma once

enum { POS_TIMM, POS_GOOGLE, POS_BILINEAR, POS_BICUBIC };

/* in [h, w, C] -> out [to_h, to_w, C]. `how` is one of POS_*. */
void positions_resize(const double *in, int h, int w, int C, double *out, int to_h, int to_w,
                      int how);
