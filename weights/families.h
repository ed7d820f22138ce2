/* families.h - the names that other programs give the tensors of a Vision Transformer, as tables.
 *
 * Also what of their files may be left out, and what says that a network is another one than ours.
 * names.h reads files by these tables.
 */
#pragma once

/* How theirs becomes a piece of ours. AS_IS: the same shape. TOKENS: [1, tokens, C] of [tokens, C],
 * [C] ...; pieces follow each other along the tokens. FLAT: a vector of [H, hs]. KERNEL: JAX's
 * dense layers have [in, out], the q, k, v kernels [in, H, hs], OUT_KERNEL that behind attention
 * [H, hs, out], CONV [height, width, in, out]. FIRST_THIRD: of its rows; LAST_THIRDS: the rest. */
enum { AS_IS, TOKENS, FLAT, KERNEL, OUT_KERNEL, CONV, FIRST_THIRD, LAST_THIRDS };

/* The head of a distillation token, until the reader has made one of two: no tensor of ours. */
#define SECOND_HEAD "head_dist"

/* `#` stands for a block's number. `**` before theirs: one array holds all blocks, [L, ...]. Pieces
 * of one tensor of ours follow each other in the order of `slot`. */
typedef struct {
    const char *ours, *theirs;
    int slot, how;
} Name;

typedef struct {
    const char *title; /* "timm's" */
    const char *mark;  /* the tensor by which the family is known, and the prefix */
    const Name *name;  /* ends with a Name of NULL */
} Family;
extern const Family families[];
extern const int family_count;
/* For writing: of each tensor one name, or one for each part. transformers' two kinds of blocks,
 * its image towers, and Google's newer numbering. */
extern const Name names_vit[], names_dinov2[], names_dinov2_gated[], names_towers[], names_google[];

/* What a tensor's name says: that the network is no plain ViT, that the tensor may be left out, or
 * which other kind of model the file holds; NULL: nothing. */
const char *family_refused(const char *name);
const char *family_left_out(const char *name);
const char *family_other(const char *name);
