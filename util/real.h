/* real.h - the type of numbers at full precision. */
#pragma once

/* The number of everything that is stored at full precision: master weights, gradients, optimiser
 * state, statistics, and whatever the oracle computes. float in the programs, double in the builds
 * that check gradients (make compiles everything twice, the second time with -DREAL=double). */
#ifndef REAL
#define REAL float
#endif
typedef REAL real;
