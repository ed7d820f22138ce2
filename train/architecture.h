/* architecture.h - which model it is: the weights' own settings, --model, single settings. */
#pragma once

#include "train/session.h"

/* A weights file, that of a folder as people download them, or the best or newest checkpoint of a
 * run; free() it. */
char *find_weights(const char *path);
/* s->config alone, and what of it does not learn: later wins of the default (B/16), the weights'
 * own settings, --model, single settings. */
void setup_architecture(Session *s);
