/* setup_model.h - the model's plan, its memory and its weights. */
#pragma once

#include "train/session.h"

void setup_model(Session *s, bool training); /* memory plan, initial or loaded weights */

/* Parts of it for who plans a run and does not start it. The plan but for the number of images;
 * s->type and s->split are known. Images at a time as asked for, memory aside, those of this rank's
 * step, and the group that must divide both. */
Plan setup_plan(const Session *s, bool training);
long setup_micro(Session *s, bool training, long *batch, long *group);
