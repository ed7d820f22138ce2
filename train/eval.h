/* eval.h - accuracy over a data set, and the commands that compute without training. */
#pragma once

#include "train/setup.h"

typedef struct {
    double top1, top5; /* percent */
    double loss;       /* mean, without label smoothing */
    double seconds;
    long images;
} Evaluation;
/* All of d in order, by all ranks together; `stop` may name a flag that ends it early (false is
 * returned then). */
bool evaluate(Session *s, Dataset *d, const volatile int *stop, Evaluation *out);

/* The commands: a session with its config in, the program's exit status out. */
int command_eval(Session *s);
int command_predict(Session *s);
