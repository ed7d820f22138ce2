/* history.h - how a run went, read back from its log.jsonl. */
#pragma once

#include "util/report.h"

/* Numbers of a report of steps, by their names in STEP_NUMBERS (util/report.h): H_step, H_epoch,
 * H_loss ...; and of an evaluation. Where a line lacks one it is NAN. */
#define X(number, known) H_##number,
enum { STEP_NUMBERS(X) STEP_COLUMNS };
#undef X
#define EVAL_NUMBERS(X) \
    X(step) X(epoch) X(top1) X(top5) X(loss) X(balanced) X(macro_f1) X(ece) X(images) X(seconds)
#define X(number) E_##number,
enum { EVAL_NUMBERS(X) EVAL_COLUMNS };
#undef X
extern const char *const step_columns[STEP_COLUMNS], *const eval_columns[EVAL_COLUMNS];

typedef struct {
    long rows;
    int columns;
    double *at; /* [rows, columns] */
} Table;

typedef struct {
    Table steps, evals;
    /* of the last start and end */
    char device[256], data[1024], built[512], host[128], started[32];
    double total, train_images, val_images, classes, parameters, forward_gflop, batch, ranks;
    double seconds; /* of all starts; of the last one to its newest report, if it has not ended */
    double damaged;
    bool ended;
} History;

/* Of DIR/log.jsonl. What a run that was interrupted did beyond the checkpoint it went on from, it
 * did again: the later lines count. Lines that are no JSON are passed over. */
bool history_read(const char *dir, History *h, Error *e);
void history_free(History *h);
/* DIR/metrics.csv: reports and evaluations, a line each, in order. */
bool history_csv(const History *h, const char *dir, Error *e);
