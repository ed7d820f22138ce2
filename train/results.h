/* results.h - what an evaluation leaves behind: a table on the screen and files in a folder.
 *
 *   eval.json      all numbers: of the whole, per class, confused pairs, calibration
 *   eval.csv       a line per class
 *   worst.csv      pictures that were wrong, the one whose label was least probable first
 *   confusion.csv  a line per label, a column per prediction; up to CONFUSION_MOST classes
 */
#pragma once

#include "train/eval.h"

enum { CONFUSION_MOST = 2000, WORST_MOST = 1000 };

/* A class as people read it: --classes lines may be `id name`. */
const char *class_title(const Session *s, const Dataset *d, int k);

/* The files, in `dir`, which is made; `step`: of the run, or -1. One rank calls it. */
bool results_write(const Session *s, const Dataset *d, const Evaluation *v, long step,
                   const char *dir, Error *e);
/* The classes, the least accurate first, and the worst pictures: a few lines each. */
void results_print(const Session *s, const Dataset *d, const Evaluation *v);
