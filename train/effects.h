/* effects.h - what is said of flags that can make no difference to the run they are given to. */
#pragma once

#include "train/session.h"

/* "note: --momentum has no effect without --opt sgd", a line for each reason; "" where all have
 * one. Of a setting in a recipe nothing is said: a recipe serves many runs, the command line this
 * one. `command` is a command of the training program, or `show` or `plan`. Device, model and
 * layout must be known (setup_config). free() it. */
char *effects_text(const Session *s, const char *command);
void effects_note(const Session *s, const char *command); /* prints it */
