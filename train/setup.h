/* setup.h - from flags to a session whose data and model are ready.
 *
 * A command (train.c, eval.c) fills a Session step by step, in this order; what it does not need it
 * leaves out:
 *
 *   setup_options   flags, recipes, the run's config.ini
 *   setup_config    device; weights or preset, then flags (setup_architecture)
 *   setup_data      the validation split, and the training one
 *   setup_model     memory plan, initial or loaded weights
 *   setup_length    steps of the run; training alone, as
 *   setup_out       run directory with config.ini and log
 *
 * All of them end the program through die() when something is wrong. Ranks other than the first do
 * the same and keep silent.
 */
#pragma once

#include "train/architecture.h"
#include "train/rundir.h"
#include "train/schedule.h"
#include "train/setup_data.h"
#include "train/setup_model.h"
#include "train/setup_options.h"

void setup_config(Session *s);
void session_free(Session *s);
