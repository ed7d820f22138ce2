/* parallel.h - from flags to how the ranks share the model: tensor, data and pipeline parallelism,
 * ZeRO, and what is recomputed. */
#pragma once

#include "train/session.h"

/* s->split, from --tp, --pp, --layers-per-stage, --zero and what belongs to them, and one line
 * about it. All ranks call it together. A run that goes on keeps its layout, where that fits the
 * ranks that there are now. */
void parallel_split(Session *s);
/* The split of one of so many ranks by the same flags, which nobody has met yet. */
bool parallel_new(Split *s, const Options *o, const Config *c, int rank, int ranks, Error *e);
/* --recompute and what belongs to it; light: what auto is. */
Recompute parallel_recompute(const Options *o, bool light);
/* Whether a forward pass needs other ranks: then all take as many of them, and stop together. */
bool parallel_together(const Session *s);
