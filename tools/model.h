/* model.h - the model that a command of ./vit is given: a file of weights, a folder as a hub has
 * it, or a run of ours.
 */
#pragma once

#include "tools/flags.h"
#include "weights/export.h"

typedef struct {
    char *file;      /* of the weights */
    char *run;       /* the run's directory that they are of; NULL: no run's */
    WeightsInfo info;
    SafeTensors *f;  /* under our names */
    char **labels;   /* [classes], or NULL */
    double crop_pct; /* how evaluation prepares images: the run's settings, the files beside the */
    int crop, interpolation; /* weights, or what the training program assumes */
} ToolModel;

/* The first word of argv that is no flag names it; it is taken out, and so are settings of the
 * model (--heads 3, --act quick_gelu), which come before what is found. Dies where there is none.
 * A run's is its best checkpoint, which eval takes. */
void tool_model_open(ToolModel *m, const Command *c, int *argc, char **argv);
void tool_model_close(ToolModel *m);
/* What was found and what was assumed, on stderr. */
void tool_model_say(const ToolModel *m);
Export tool_model_export(const ToolModel *m);
