/* draw.h - contact sheets: pictures side by side with lines of text, and heat over a picture. */
#pragma once

#include "util/util.h"

typedef struct {
    uint8_t *rgb; /* [h, w, 3] */
    int w, h;
} Canvas;

/* A title, then tiles of an image with lines of text under it. */
typedef struct {
    Canvas canvas;
    int w, h, zoom; /* of an image, and its pixels' size */
    int lines, tile_w, tile_h, top, columns;
} Sheet;

/* For `count` images of w x h pixels; free(canvas.rgb). Dies with the hint where that is too large
 * to draw. */
Sheet sheet_new(int w, int h, int lines, int count, int columns, const char *hint);
void sheet_title(const Sheet *s, const char *title);
/* rgb [h, w, 3] as tile number `tile`, with `lines` texts, the first in black. */
void sheet_tile(const Sheet *s, long tile, const uint8_t *rgb, char lines[][256]);

/* Colours rgb [h, w, 3] by map [rows, columns], from its least number (dark) to its
 * largest (bright). */
void draw_heat(uint8_t *rgb, int w, int h, const float *map, int rows, int columns);

/* By the name's end: JPEG, or PNG. */
bool canvas_write(const Canvas *c, const char *path, Error *e);
