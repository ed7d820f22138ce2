/* files.h - paths, whole text files, and files that appear under their name only when complete. */
#pragma once

#include "util/util.h"

bool path_exists(const char *path);
bool is_dir(const char *path);
bool make_dirs(const char *path, Error *e); /* mkdir -p */
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
bool save_file(const char *path, const void *bytes, size_t n, bool durable, Error *e);
bool save_text(const char *path, const char *text, Error *e); /* durable */
/* Makes what was renamed inside a directory survive a power cut. */
bool sync_dir(const char *path, Error *e);
