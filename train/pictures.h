/* pictures.h - pictures of an evaluation for its report: those that were most wrong, and some that
 * were right, with the attention drawn over them where that is cheap. */
#pragma once

#include "train/eval.h"

/* DIR/pictures.json: JPEGs in base64, each with its file, label, prediction and their
 * probabilities; and a contact sheet of the wrong ones for TensorBoard. One rank calls it. */
bool pictures_write(Session *s, Dataset *d, const Evaluation *v, const char *dir, Error *e);
