/* eval.h - accuracy over a data set, and the commands that compute without training. */
#pragma once

#include "results/metrics.h"
#include "train/setup.h"

typedef struct {
    Metrics metrics;
    Outcome *outcomes; /* [images], in the order of the data: the same on all ranks */
    double seconds, waited; /* in all; for images that were not yet decoded, by this rank */
} Evaluation;
/* All of d, by all ranks together; `stop` may name a flag that ends it early: false is returned
 * then, and there is nothing in `out`. */
bool evaluate(Session *s, Dataset *d, const volatile int *stop, Evaluation *out);
void evaluation_free(Evaluation *v);

/* The commands: a session with its config in, the program's exit status out. */
int command_eval(Session *s);
