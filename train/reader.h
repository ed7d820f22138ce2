/* reader.h - pictures that are named, decoded ahead by threads, in the order of their names.
 *
 * Names are files, folders (all pictures below them, sorted) and `-`: a list of files on standard
 * input, one a line, which may be as long as it likes. */
#pragma once

#include "image/image.h"

typedef struct {
    char *path;
    uint8_t *pixels; /* [out_h, out_w, 3] */
    Error trouble;   /* why there are none; "" where there are */
} Picture;

typedef struct Reader Reader;
/* `room` pictures are decoded ahead at most, as evaluation sees them. */
Reader *reader_open(char **names, int n, const Preprocess *p, int threads, int room);
/* The next one, NULL at the end; valid until the next call. */
const Picture *reader_next(Reader *r);
/* Waits for the next one, or the end. False where it is a name that is missing, for so long. */
bool reader_soon(Reader *r, double seconds);
long reader_passed(Reader *r); /* files in folders that are no pictures */
void reader_close(Reader *r);
