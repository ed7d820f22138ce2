/* files.h - paths, whole text files, and files that appear under their name only when complete. */
#pragma once

#include "util/util.h"

bool path_exists(const char *path);
const char *path_trouble(const char *missing); /* why path_exists has just said no; or `missing` */
bool is_dir(const char *path);
bool make_dirs(const char *path, Error *e); /* mkdir -p */
/* Directories that a walk has been to: links may lead in circles. */
typedef struct {
    uint64_t (*seen)[2]; /* [n]: device and inode; free() it */
    int n;
} Visited;
/* 1: `dir` comes up for the first time, by whichever path; 0: again; -1 and errno: it cannot be
 * looked at. */
int visit(Visited *v, const char *dir);
/* A whole file, zero-terminated; free() it. NULL and an error if it is longer, or holds zeros. */
char *read_text(const char *path, size_t max_bytes, Error *e);
/* Reads n bytes from `at` on, or as many as there are: how many, or -1 and errno. */
long read_at(int fd, void *bytes, size_t n, uint64_t at);

/* Every file that is written is written so: as PATH.PID.tmp, then renamed. Who reads PATH sees all
 * of it or what was there before, also after a crash or a full disk. A failure removes the
 * temporary file; a process that is killed leaves it. `durable` files survive a power cut too: file
 * and directory are synced, which takes milliseconds. Errors name the path and what stands in the
 * way. */
typedef struct FileWriter FileWriter;
FileWriter *file_create(const char *path, Error *e);
bool file_write(FileWriter *f, const void *bytes, size_t n, Error *e);
bool file_publish(FileWriter *f, bool durable, Error *e); /* frees f in any case */
void file_abandon(FileWriter *f);                         /* NULL does nothing */
/* A file of known length may be written in pieces of any order, by several processes: one creates
 * it and gives it its length; then the others join, with the process id of that one, write, sync
 * and abandon their handle; then the first publishes it. The length comes before they open it, for
 * clients of NFS take what lies behind the end that they know for zeros, and would write those over
 * the pieces of others. file_length takes the space too where the file system can: a full disk
 * shows there. */
FileWriter *file_join(const char *path, long pid, Error *e);
bool file_length(FileWriter *f, uint64_t bytes, Error *e);
bool file_write_at(FileWriter *f, const void *bytes, size_t n, uint64_t at, Error *e);
bool file_sync(FileWriter *f, Error *e);
bool save_file(const char *path, const void *bytes, size_t n, bool durable, Error *e);
bool save_text(const char *path, const char *text, Error *e); /* durable */
/* Takes PATH as a lock, until unlock_file or the end of this process, whatever ends it; the file
 * says whose it is. A descriptor, or -1 and an error that names who has it. Where the file system
 * knows no locks, or another host's process has left the file behind, that is warned of. `what` is
 * locked, as errors call it. */
int lock_file(const char *path, const char *what, Error *e);
void unlock_file(const char *path, int fd);
/* Makes what was renamed inside a directory survive a power cut. */
bool sync_dir(const char *path, Error *e);
