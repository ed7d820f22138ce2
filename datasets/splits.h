/* splits.h - the parts of a data set, by the names of folders and of shards.
 *
 * Names count in any letter case: train, training; val, valid, validation, dev; test, testing;
 * a folder's with a year behind them, as COCO's (train2017).
 */
#pragma once

#include <stdbool.h>

enum { SPLIT_NONE, SPLIT_TRAIN, SPLIT_VAL, SPLIT_TEST, SPLITS };
extern const char *const split_names[SPLITS]; /* "", "train", "val", "test" */

/* All of it: train, TRAINING, val_set, Test Images. */
int split_named(const char *name);
/* One word of a file's name ("set-train-0001.tar"); SPLIT_NONE if words contradict each other. */
int split_in(const char *name);
/* cars_train and cars_test, my-val and my-train: names that differ in such a word alone. */
bool split_pair(const char *a, const char *b);
/* Which of the splits that are there (count[k] > 0) is the one to train or to validate with: a test
 * split is for validation where there is no other. SPLIT_NONE: none is. */
int split_for(const int count[SPLITS], bool train);
