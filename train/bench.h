/* bench.h - the speed of training and inference: of one configuration, or of a file of them. */
#pragma once

#include "train/setup.h"

/* Times both passes of what the flags say, as the ranks that there are; a session with its config
 * in, the program's exit status out. --json FILE gets one JSON line (bench.c has its keys). */
int command_bench(Session *s);

/* Whether the flags name a file of configurations and none of them (--spec without --only): before
 * setup_config, since each is then a process of its own. */
bool bench_is_of_many(const Options *o);
/* Starts this program once for each, prints a Markdown table, and returns the exit status: 1 where
 * one failed. Its JSON lines have one number more: `efficiency`, images/s per device against the
 * configuration that `baseline` names. */
int bench_many(const Options *o, char **argv);
