/* flags.h - what the commands of ./vit share: each is a Command with a table of flags, which drives
 * parsing and --help. A command returns its exit status, or ends the program through die().
 */
#pragma once

#include "util/util.h"

typedef enum { FLAG_TEXT, FLAG_NUMBER, FLAG_BYTES, FLAG_SWITCH } FlagKind;
typedef struct {
    const char *name, *what, *help; /* `--name what  help` */
    FlagKind kind;
    void *at;         /* const char *, long, long, bool: its value beforehand is the default */
    long least, most; /* of numbers; bytes may end in K, M or G, powers of 1000 */
} Flag;

typedef struct Command {
    const char *name, *summary, *usage, *help;
    const Flag *flags;
    int n_flags;
    int (*run)(const struct Command *c, int argc, char **argv); /* argv[0] is the command's name */
    void (*more_help)(FILE *f);                                 /* or NULL */
} Command;

/* Takes the command's flags out of argv, and leaves the others. Prints help and exits for --help;
 * dies for a wrong value. */
void flags_take(const Command *c, int *argc, char **argv);
/* On stderr, "note: --link, --gbit have no effect on one machine": of `names`, divided by blanks,
 * those that were given, unless what they are for `works`. */
void flags_note(bool works, const char *names, const char *where);
/* Dies if anything is left, naming the nearest flag. */
void flags_none_left(const Command *c, int argc, char **argv);
