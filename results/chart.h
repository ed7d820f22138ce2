/* chart.h - line charts as SVG: in a page, without a script. Colours are classes c0, c1 ... of the
 * page's style, so that they follow light and dark. */
#pragma once

#include "util/util.h"

typedef struct {
    const char *name;    /* what a pointer over its dots says */
    const double *x, *y; /* [n], `stride` numbers apart; NAN is left out */
    long n;
    int stride, color;
    bool dots; /* few points, each of which is seen; else a line of means over short stretches */
} Series;

enum { CHART_SERIES = 24 };
typedef struct {
    const char *title;
    const char *unit;   /* behind numbers: "%", or "" */
    double least, most; /* that the axis holds at least; NAN: as the data has it */
    Series series[CHART_SERIES];
    int n;
} Chart;

/* Nothing, where no series has a point. */
void chart_svg(FILE *f, const Chart *c);
/* "1234", "12.3k", "0.0012" */
void chart_number(double v, char *out, size_t size);
