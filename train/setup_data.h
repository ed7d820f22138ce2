/* setup_data.h - the images of a run: its splits, and the batches of training. */
#pragma once

#include "train/session.h"

void setup_data(Session *s, bool train); /* the validation split, and the training one */
/* One split: the images of `spec` as the flags say, for training or evaluation. */
Dataset *setup_split(Session *s, const char *spec, bool train);
/* This rank's part of the training images of each step, in the order of (seed, epoch) from where
 * the run stands; NULL: it reads none (split_reads). Once there is a model. */
Loader *setup_loader(const Session *s);
