/* setup_options.h - from the command line to Options: built-in recipes, recipes, the config.ini of
 * a run that is continued or evaluated. */
#pragma once

#include "train/session.h"

void setup_options(Session *s, int argc, char **argv);
/* Whether --data names files of pixels (CIFAR's, MNIST's), which are small and not cropped to be
 * evaluated. */
bool setup_pixels(const char *spec);
