/* help.h - --help, by command. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

/* What a command does and the flags it is mostly used with, or with `all` every flag. */
void help_print(FILE *f, const char *command, bool all);
