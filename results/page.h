/* page.h - report.html: how a run went and what it can do, as one page that needs nothing else.
 *
 * Everything is read back from the run's folder: log.jsonl, config.ini, eval.json, pictures.json;
 * what is missing is left out. Several runs lie over each other in the charts; what their settings
 * differ in is a table. */
#pragma once

#include "util/util.h"

/* Writes the page of runs dirs[n], and metrics.csv into each where it can. False, where there is
 * nothing to report on in one of them or the page cannot be written. */
bool page_write(char **dirs, int n, const char *path, Error *e);
enum { PAGE_RUNS = 12 };
