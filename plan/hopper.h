/* hopper.h - how long this program's own kernels for Hopper take, where it has one.
 *
 * The CUDA backend times each of them beside what does the same on any GPU, and takes the faster
 * (cuda/gemm_sm90.cuh, attention_sm90*.cuh). So does a forecast, by the seconds given here; they
 * are INFINITY where there is no such kernel.
 */
#pragma once

#include "backend.h"
#include "plan/gpus.h"

/* A product [M, N] over K terms, with GELU or with GELU's slope and the bias gradient in its end */
typedef struct {
    double seconds, M, N, K, bytes;
} HopperProduct;

HopperProduct hopper_forward(const Gpu *g, const LinearForward *a);
HopperProduct hopper_backward_input(const Gpu *g, const LinearBackwardInput *a);
/* Attention that moves so many bytes */
double hopper_attention(const Gpu *g, const Attention *a, bool backward, double bytes);
