/* rundir.h - run directories: which there are, who may train in one, what a run begins it with. */
#pragma once

#include "train/session.h"

/* The run that a run directory, one of its checkpoints or a file in one belongs to, or NULL. */
char *run_of(const char *path);
/* "runs/a, runs/b ...": the first few runs in a folder, or NULL. */
char *runs_in(const char *dir);
/* Says what is in the folder that was taken for a run. */
_Noreturn void not_a_run(const char *dir);

/* Whether a run that is continued stays where it is: --out may name another place. */
bool run_stays(const Session *s);
/* One process at a time trains in a directory: checkpoints of two would mix. */
void lock_run(Session *s, const char *dir);
void unlock_run(Session *s);

void setup_out(Session *s); /* run directory with config.ini and log */
