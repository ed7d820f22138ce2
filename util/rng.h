/* rng.h - randomness as a function of counters.
 *
 * Nothing in vit.c keeps random state. A random number is philox(key, counter), where the key is
 * the seed and the counter says what the number is for: which element of which sample at which
 * step, for which purpose in which layer. So dropout, augmentation and shuffling do not depend on
 * the number of threads, workers, micro-batches or ranks, and a resumed run needs only its step.
 *
 * The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011); test/test_ops.c checks it on the vectors published with Random123.
 * Plain C, also valid as C++ and CUDA.
 */
#pragma once

#include <math.h>
#include <stdint.h>

#ifndef RNG_FN
#define RNG_FN static inline
#endif

/* What a number is for. Part of every run's bits: append, never renumber. */
enum {
    RNG_EMBED_DROPOUT = 1, /* after the position embedding; element = token*C + channel */
    RNG_ATTN_DROPOUT,      /* attention probabilities; element = (head*T + query)*T + key */
    RNG_PROJ_DROPOUT,      /* after attn.proj; element = token*C + channel */
    RNG_MLP_DROPOUT,       /* after GELU; element = token*F + channel */
    RNG_FC2_DROPOUT,       /* after mlp.fc2; element = token*C + channel */
    RNG_ATTN_PATH,         /* stochastic depth of the attention branch; element = 0 */
    RNG_MLP_PATH,          /* stochastic depth of the MLP branch; element = 0 */
    RNG_INIT,              /* initial parameters (host, double) */
    RNG_SHUFFLE,           /* order of an epoch */
    RNG_AUGMENT,           /* crop box, flip */
    RNG_MIXUP,             /* mixup and cutmix: draws for a batch or an image (host) */
    RNG_SHAPES,            /* the generated image set */
    RNG_ERASE,             /* random erasing's noise */
    RNG_ROUND,             /* stochastic rounding; element = position in the model's buffer */
    RNG_ERASE_BOX,         /* random erasing: whether, and which box (host) */
    RNG_TWIST              /* factors of a colour twist (host) */
};

typedef struct {
    uint32_t v[4];
} Philox;

/* Ten rounds over counter (c0, c1, c2, c3), key = the two halves of seed. */
RNG_FN Philox philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0;
        uint64_t b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)b;
        c2 = n2;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    Philox r = {{c0, c1, c2, c3}};
    return r;
}

/* The four numbers of elements 4*block .. 4*block+3 of one sample at one step. */
RNG_FN Philox rng_block(uint64_t seed, uint32_t block, uint32_t sample, uint32_t step, int purpose,
                        int layer)
{
    return philox(seed, block, sample, step, ((uint32_t)purpose << 16) | (uint32_t)layer);
}

/* 32 random bits to a double in (0, 1): never 0, never 1. */
RNG_FN double rng_unit(uint32_t bits)
{
    return (bits + 0.5) * (1.0 / 4294967296.0);
}

/* An element is kept when its 32 bits reach p * 2^32, hence with probability 1 - p. */
RNG_FN uint32_t rng_threshold(double p)
{
    double t = p * 4294967296.0;
    return t <= 0 ? 0 : t >= 4294967295.0 ? 4294967295u : (uint32_t)t;
}

/* A stream of doubles in (0, 1) for host code that needs a few of them in turn. */
typedef struct {
    uint64_t seed;
    uint32_t sample, step, at;
    int purpose, layer;
    Philox block;
} RngStream;

RNG_FN double rng_next(RngStream *s)
{
    if (s->at % 4 == 0)
        s->block = rng_block(s->seed, s->at / 4, s->sample, s->step, s->purpose, s->layer);
    return rng_unit(s->block.v[s->at++ % 4]);
}

/* A whole number in [0, n). */
RNG_FN int rng_below(RngStream *s, int n)
{
    return (int)(rng_next(s) * n);
}

/* A standard normal number from two uniform ones (Box and Muller 1958). */
RNG_FN double rng_normal(double u, double v)
{
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

RNG_FN double rng_next_normal(RngStream *s)
{
    double u = rng_next(s);
    return rng_normal(u, rng_next(s));
}

/* A bijection on [0, n) keyed by (seed, epoch, key): position -> element. A Feistel network of six
 * rounds over 2*bits bits, where 4^bits >= n, is a bijection there; walking its cycle until a value
 * below n comes up makes it one on [0, n), in less than four steps on average. (Black and Rogaway,
 * "Ciphers with arbitrary finite domains", CT-RSA 2002.) */
RNG_FN long rng_shuffle(uint64_t seed, long epoch, int key, long n, long position)
{
    int bits = 1;
    while (bits < 31 && 1L << (2 * bits) < n)
        bits++;
    uint32_t mask = (1u << bits) - 1;
    uint64_t x = (uint64_t)position;
    do {
        uint32_t left = (uint32_t)(x >> bits), right = (uint32_t)x & mask;
        for (uint32_t round = 0; round < 6; round++) {
            uint32_t f = rng_block(seed, right, round, (uint32_t)epoch, RNG_SHUFFLE, key).v[0];
            uint32_t next = (left ^ f) & mask;
            left = right;
            right = next;
        }
        x = (uint64_t)left << bits | right;
    } while (x >= (uint64_t)n);
    return (long)x;
}
