/* predict.h - the predict command: classes, features and attention of pictures that are named. */
#pragma once

#include "train/setup.h"

int command_predict(
    Session *s); /* the program's exit status: 1 where a picture could not be read */
