/* test_hopper.cpp - tests of the stand-in for Hopper's instructions (test/cuda_on_cpu/async.cpp,
 * wgmma.cpp) through their wrappers in cuda/sm90.cuh.
 *
 * Where bytes lie is pinned by tables worked out by hand from the PTX ISA (section numbers of
 * version 9.0), since a kernel and the stand-in could misread it alike. What goes wrong on a GPU is
 * a small matrix product in the usual form (one warp copies, two warp groups multiply) with one
 * mistake each: it must compute something wrong or end with a report; so it is for two blocks that
 * share copies. It does not test the CUDA backend.
 */
#include "on_cpu.h"

#include "cuda/sm90.cuh"

#include <cmath>

using bf16 = __nv_bfloat16;
using fp16 = __half;

/* ------------------------------------------------------------------------------------------------
 * Tensor copies: where each 16 bytes of a box go. */

/* 5.5.7 Swizzling modes: lines of 128 bytes of shared memory, the number of the chunk at each
 * place. 32 and 64 bytes: lines hold several rows of the box. */
/* clang-format off */
static const int swizzle_tables[4][8][8] = {
    {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7},
     {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7},
     {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}},
    {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {0, 1, 2, 3, 4, 5, 6, 7},
     {1, 0, 3, 2, 5, 4, 7, 6}, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6},
     {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}},
    {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5},
     {3, 2, 1, 0, 7, 6, 5, 4}, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6},
     {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4}},
    {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5},
     {3, 2, 1, 0, 7, 6, 5, 4}, {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2},
     {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}},
};
/* clang-format on */

/* One box to shared memory at `offset`, as it lies there to `out`, and with another map back. */
__global__ void through(const __grid_constant__ CUtensorMap from,
                        const __grid_constant__ CUtensorMap to, int dimensions, int x, int y, int z,
                        int w, int bytes, int offset, int store, uint16_t *out)
{
    char *s = dynamic_tiles<char>();
    uint64_t *bar = reinterpret_cast<uint64_t *>(s);
    s += offset;
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(bar, uint32_t(bytes));
        if (dimensions == 2)
            tma_load_2d(s, &from, bar, x, y);
        else if (dimensions == 3)
            tma_load_3d(s, &from, bar, x, y, z);
        else
            tma_load_4d(s, &from, bar, x, y, z, w);
    }
    __syncthreads();
    mbarrier_wait(bar, 0);
    for (int i = int(threadIdx.x); i < bytes / 2; i += int(blockDim.x))
        out[i] = reinterpret_cast<uint16_t *>(s)[i];
    if (store && threadIdx.x == 0) {
        if (dimensions == 2)
            tma_store_2d(&to, s, x, y);
        else if (dimensions == 3)
            tma_store_3d(&to, s, x, y, z);
        else
            tma_store_4d(&to, s, x, y, z, w);
        tma_store_commit();
        tma_store_wait<0>();
    }
}

/* Numbers by place, so that a wrong one says where it came from. */
static std::vector<bf16> numbered(size_t n)
{
    std::vector<bf16> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = __ushort_as_bfloat16((unsigned short)(i + 1));
    return v;
}
static uint16_t bits(bf16 x)
{
    return __bfloat16_as_ushort(x);
}

static void test_swizzles()
{
    const int sizes[] = {128, 32, 64, 128}; /* bytes of a row */
    std::vector<bf16> x = numbered(64 * 64);
    bf16 *dx = device(x), *back = device(std::vector<bf16>(x.size()));
    uint16_t *out = device(std::vector<uint16_t>(64 * 64));
    for (int mode = 0; mode < 4; mode++)
        for (int trial = 0; trial < 4;
             trial++) { /* at another line of the pattern: 5.5.7, offsets */
            const uint32_t columns = uint32_t(sizes[mode] / 2), rows = 1024 / uint32_t(sizes[mode]);
            CUtensorMap from, to;
            CHECK(tensor_map<bf16>(&from, dx, {64, 64}, {2, 128}, {columns, rows}, Swizzle(mode)));
            CHECK(tensor_map<bf16>(&to, back, {64, 64}, {2, 128}, {columns, rows}, Swizzle(mode)));
            OK(cudaMemset(back, 0, x.size() * 2));
            launch(through, 1, 64, 4096, nullptr, from, to, 2, 0, 16, 0, 0, 1024,
                   1024 + 128 * trial, 1, out);
            std::vector<uint16_t> got = host(out, 512);
            int wrong = 0;
            for (uint32_t i = 0; i < 512; i++) {
                uint32_t line = i / 64, chunk = i / 8 % 8;
                uint32_t place =
                    line * 8 + uint32_t(swizzle_tables[mode][(line + uint32_t(trial)) % 8][chunk]);
                uint32_t element = place * 8 + i % 8;
                uint32_t row = 16 + element / columns, column = element % columns;
                wrong += got[i] != bits(x[row * 64 + column]);
            }
            CHECK(wrong == 0, "swizzle %d: %d of 512 wrong", mode, wrong);
            std::vector<bf16> b = host(back, x.size());
            wrong = 0;
            for (uint32_t i = 0; i < b.size(); i++) {
                bool inside = i / 64 >= 16 && i / 64 < 16 + rows && i % 64 < columns;
                wrong += bits(b[i]) != (inside ? bits(x[i]) : 0);
            }
            CHECK(wrong == 0, "swizzle %d: %d wrong after the way back", mode, wrong);
        }
    OK(cudaFree(dx));
    OK(cudaFree(back));
    OK(cudaFree(out));
}

/* Boxes that lie partly outside of a tensor [w][z][y][x] with rows of its own length: zeros come
 * in, and nothing goes out. Of three dimensions: one w, and no coordinate for it. */
static void test_edges(bool four)
{
    const int X = 50, Y = 7, Z = 3, W = four ? 2 : 1, LD = 56;
    std::vector<bf16> x = numbered(size_t(LD * Y * Z * W));
    bf16 *dx = device(x), *back = device(std::vector<bf16>(x.size()));
    uint16_t *out = device(std::vector<uint16_t>(64 * 64));
    CUtensorMap from, to;
    const uint64_t size[4] = {X, Y, Z, uint64_t(W)},
                   stride[4] = {2, LD * 2, LD * Y * 2, LD * Y * Z * 2};
    const uint32_t box[4] = {32, four ? 2u : 4, 2, four ? 2u : 1};
    const uint64_t size3[3] = {X, Y, Z}, stride3[3] = {2, LD * 2, LD * Y * 2};
    const uint32_t box3[3] = {32, 4, 2};
    for (CUtensorMap *m : {&from, &to}) {
        bf16 *p = m == &from ? dx : back;
        bool made = four ? tensor_map<bf16>(m, p, size, stride, box, SWIZZLE_64)
                         : tensor_map<bf16>(m, p, size3, stride3, box3, SWIZZLE_64);
        CHECK(made);
    }
    const int places[][4] = {{0, 0, 0, 0},   {32, 4, 1, 1},  {45, 5, 2, -1},
                             {-3, -2, 0, 1}, {-40, 0, 0, 0}, {60, 0, 1, 0}};
    for (auto &p : places) {
        OK(cudaMemset(back, 0, x.size() * 2));
        launch(through, 1, 32, 2048, nullptr, from, to, 3 + four, p[0], p[1], p[2], p[3], 512, 1024,
               1, out);
        std::vector<uint16_t> got = host(out, 256);
        std::vector<bf16> b = host(back, x.size());
        int wrong = 0, outside = 0;
        std::vector<int> stored(x.size());
        for (int i = 0; i < 256; i++) {
            const int line = i / 64, chunk = swizzle_tables[2][line][i / 8 % 8];
            int element = (line * 8 + chunk) * 8 + i % 8, at = 0;
            bool in = true;
            const int sizes[] = {X, Y, Z, W}, steps[] = {1, LD, LD * Y, LD * Y * Z};
            for (int d = 0; d < 4; d++) {
                const int c = (d == 3 && !four ? 0 : p[d]) + element % int(box[d]);
                in = in && c >= 0 && c < sizes[d];
                at += c * steps[d];
                element /= int(box[d]);
            }
            wrong += got[size_t(i)] != (in ? bits(x[size_t(at)]) : 0);
            if (in)
                stored[size_t(at)] = 1;
        }
        for (size_t i = 0; i < x.size(); i++)
            outside += bits(b[i]) != (stored[i] ? bits(x[i]) : 0);
        CHECK(wrong == 0 && outside == 0, "box at %d %d %d %d: %d, %d wrong", p[0], p[1], p[2],
              p[3], wrong, outside);
    }
    OK(cudaFree(dx));
    OK(cudaFree(back));
    OK(cudaFree(out));
}

/* What the driver refuses. */
static void test_maps()
{
    CUtensorMap m;
    char *p = device(std::vector<char>(1 << 16));
    CHECK(tensor_map<bf16>(&m, p, {64, 64}, {2, 128}, {64, 64}, SWIZZLE_128));
    CHECK(!tensor_map<bf16>(&m, p + 8, {64, 64}, {2, 128}, {64, 64}, SWIZZLE_128));
    CHECK(!tensor_map<bf16>(&m, p, {64, 64}, {2, 120}, {64, 64}, SWIZZLE_128));
    CHECK(!tensor_map<bf16>(&m, p, {64, 64}, {2, 128}, {128, 64}, SWIZZLE_128)); /* too wide */
    CHECK(!tensor_map<bf16>(&m, p, {64, 64}, {2, 128}, {64, 64}, SWIZZLE_64));
    CHECK(!tensor_map<bf16>(&m, p, {64, 512}, {2, 128}, {64, 512}, SWIZZLE_128));
    CHECK(!tensor_map<bf16>(&m, p, {64, 64}, {2, 128}, {4, 64}, SWIZZLE_NONE)); /* 8 bytes */
    CHECK(!tensor_map<bf16>(&m, p, {64, 0}, {2, 128}, {64, 64}, SWIZZLE_128));
    void *f = &m;
    cudaDriverEntryPointQueryResult found;
    OK(cudaGetDriverEntryPointByVersion("cuNothing", &f, 12000, cudaEnableDefault, &found));
    CHECK(!f && found == cudaDriverEntryPointSymbolNotFound);
    OK(cudaFree(p));
}

/* ------------------------------------------------------------------------------------------------
 * Products: where elements of operands are. */

/* 9.7.15.5.1.2.1.3 Canonical layouts, for 16-bit types (T = 8), in units of 16 bytes. K-major: for
 * each of 16 rows its two chunks along k. MN-major: for each of 16 k its chunks along m or n, as
 * many as two atoms have. `stride`, `leading`: bytes. */
struct Layout {
    const char *name;
    bool mn_major;
    Swizzle swizzle;
    uint32_t stride, leading;
    int chunks; /* in a row of the table */
    int at[16][16];
};
/* clang-format off */
static const Layout layouts[] = {
    /* Swizzle<0,4,3> o ((8,2),(8,2)):((8,64),(1,128)) */
    {"K, none", false, SWIZZLE_NONE, 128, 256, 2,
     {{0, 16}, {1, 17}, {2, 18}, {3, 19}, {4, 20}, {5, 21}, {6, 22}, {7, 23},
      {8, 24}, {9, 25}, {10, 26}, {11, 27}, {12, 28}, {13, 29}, {14, 30}, {15, 31}}},
    /* Swizzle<0,4,3> o ((8,8),(8,2)):((8,64),(1,512)): for 64 rows */
    {"K, none, 64", false, SWIZZLE_NONE, 128, 1024, 2,
     {{0, 64}, {1, 65}, {2, 66}, {3, 67}, {4, 68}, {5, 69}, {6, 70}, {7, 71},
      {8, 72}, {9, 73}, {10, 74}, {11, 75}, {12, 76}, {13, 77}, {14, 78}, {15, 79}}},
    /* Swizzle<1,4,3> o ((8,2),(8,2)):((16,128),(1,8)) */
    {"K, 32", false, SWIZZLE_32, 256, 0, 2,
     {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {9, 8}, {11, 10}, {13, 12}, {15, 14},
      {16, 17}, {18, 19}, {20, 21}, {22, 23}, {25, 24}, {27, 26}, {29, 28}, {31, 30}}},
    /* Swizzle<2,4,3> o ((8,2),(8,2)):((32,256),(1,8)) */
    {"K, 64", false, SWIZZLE_64, 512, 0, 2,
     {{0, 1}, {4, 5}, {9, 8}, {13, 12}, {18, 19}, {22, 23}, {27, 26}, {31, 30},
      {32, 33}, {36, 37}, {41, 40}, {45, 44}, {50, 51}, {54, 55}, {59, 58}, {63, 62}}},
    /* Swizzle<3,4,3> o ((8,2),(8,2)):((64,512),(1,8)) */
    {"K, 128", false, SWIZZLE_128, 1024, 0, 2,
     {{0, 1}, {9, 8}, {18, 19}, {27, 26}, {36, 37}, {45, 44}, {54, 55}, {63, 62},
      {64, 65}, {73, 72}, {82, 83}, {91, 90}, {100, 101}, {109, 108}, {118, 119}, {127, 126}}},
    /* Swizzle<0,4,3> o ((8,1,2),(8,2)):((1,8,64),(8,128)), figure 168 */
    {"MN, none", true, SWIZZLE_NONE, 128, 256, 2,
     {{0, 8}, {1, 9}, {2, 10}, {3, 11}, {4, 12}, {5, 13}, {6, 14}, {7, 15},
      {16, 24}, {17, 25}, {18, 26}, {19, 27}, {20, 28}, {21, 29}, {22, 30}, {23, 31}}},
    /* Swizzle<0,4,3> o ((8,1,8),(8,2)):((1,8,64),(8,512)): for 64 of m */
    {"MN, none, 64", true, SWIZZLE_NONE, 128, 1024, 2,
     {{0, 8}, {1, 9}, {2, 10}, {3, 11}, {4, 12}, {5, 13}, {6, 14}, {7, 15},
      {64, 72}, {65, 73}, {66, 74}, {67, 75}, {68, 76}, {69, 77}, {70, 78}, {71, 79}}},
    /* Swizzle<1,4,3> o ((8,2,2),(8,2)):((1,8,128),(16,256)), figure 169 */
    {"MN, 32", true, SWIZZLE_32, 512, 256, 4,
     {{0, 1, 16, 17}, {2, 3, 18, 19}, {4, 5, 20, 21}, {6, 7, 22, 23},
      {9, 8, 25, 24}, {11, 10, 27, 26}, {13, 12, 29, 28}, {15, 14, 31, 30},
      {32, 33, 48, 49}, {34, 35, 50, 51}, {36, 37, 52, 53}, {38, 39, 54, 55},
      {41, 40, 57, 56}, {43, 42, 59, 58}, {45, 44, 61, 60}, {47, 46, 63, 62}}},
    /* Swizzle<1,4,3> o ((8,2,4),(8,2)):((1,8,256),(16,128)): for 64 of m, k first */
    {"MN, 32, 64", true, SWIZZLE_32, 256, 512, 4,
     {{0, 1, 32, 33}, {2, 3, 34, 35}, {4, 5, 36, 37}, {6, 7, 38, 39},
      {9, 8, 41, 40}, {11, 10, 43, 42}, {13, 12, 45, 44}, {15, 14, 47, 46},
      {16, 17, 48, 49}, {18, 19, 50, 51}, {20, 21, 52, 53}, {22, 23, 54, 55},
      {25, 24, 57, 56}, {27, 26, 59, 58}, {29, 28, 61, 60}, {31, 30, 63, 62}}},
    /* Swizzle<2,4,3> o ((8,4,2),(8,2)):((1,8,256),(32,512)), figure 170 */
    {"MN, 64", true, SWIZZLE_64, 1024, 512, 8,
     {{0, 1, 2, 3, 32, 33, 34, 35}, {4, 5, 6, 7, 36, 37, 38, 39},
      {9, 8, 11, 10, 41, 40, 43, 42}, {13, 12, 15, 14, 45, 44, 47, 46},
      {18, 19, 16, 17, 50, 51, 48, 49}, {22, 23, 20, 21, 54, 55, 52, 53},
      {27, 26, 25, 24, 59, 58, 57, 56}, {31, 30, 29, 28, 63, 62, 61, 60},
      {64, 65, 66, 67, 96, 97, 98, 99}, {68, 69, 70, 71, 100, 101, 102, 103},
      {73, 72, 75, 74, 105, 104, 107, 106}, {77, 76, 79, 78, 109, 108, 111, 110},
      {82, 83, 80, 81, 114, 115, 112, 113}, {86, 87, 84, 85, 118, 119, 116, 117},
      {91, 90, 89, 88, 123, 122, 121, 120}, {95, 94, 93, 92, 127, 126, 125, 124}}},
    /* Swizzle<3,4,3> o ((8,8,2),(8,2)):((1,8,512),(64,1024)) */
    {"MN, 128", true, SWIZZLE_128, 2048, 1024, 16,
     {{0, 1, 2, 3, 4, 5, 6, 7, 64, 65, 66, 67, 68, 69, 70, 71},
      {9, 8, 11, 10, 13, 12, 15, 14, 73, 72, 75, 74, 77, 76, 79, 78},
      {18, 19, 16, 17, 22, 23, 20, 21, 82, 83, 80, 81, 86, 87, 84, 85},
      {27, 26, 25, 24, 31, 30, 29, 28, 91, 90, 89, 88, 95, 94, 93, 92},
      {36, 37, 38, 39, 32, 33, 34, 35, 100, 101, 102, 103, 96, 97, 98, 99},
      {45, 44, 47, 46, 41, 40, 43, 42, 109, 108, 111, 110, 105, 104, 107, 106},
      {54, 55, 52, 53, 50, 51, 48, 49, 118, 119, 116, 117, 114, 115, 112, 113},
      {63, 62, 61, 60, 59, 58, 57, 56, 127, 126, 125, 124, 123, 122, 121, 120},
      {128, 129, 130, 131, 132, 133, 134, 135, 192, 193, 194, 195, 196, 197, 198, 199},
      {137, 136, 139, 138, 141, 140, 143, 142, 201, 200, 203, 202, 205, 204, 207, 206},
      {146, 147, 144, 145, 150, 151, 148, 149, 210, 211, 208, 209, 214, 215, 212, 213},
      {155, 154, 153, 152, 159, 158, 157, 156, 219, 218, 217, 216, 223, 222, 221, 220},
      {164, 165, 166, 167, 160, 161, 162, 163, 228, 229, 230, 231, 224, 225, 226, 227},
      {173, 172, 175, 174, 169, 168, 171, 170, 237, 236, 239, 238, 233, 232, 235, 234},
      {182, 183, 180, 181, 178, 179, 176, 177, 246, 247, 244, 245, 242, 243, 240, 241},
      {191, 190, 189, 188, 187, 186, 185, 184, 255, 254, 253, 252, 251, 250, 249, 248}}},
};

/* 9.7.15.5.1.1.1, figures 148 and 149: thread, number of d, row, column; and a's pairs */
static const int places_d[][4] = {
    {0, 0, 0, 0}, {0, 1, 0, 1}, {0, 2, 8, 0}, {0, 3, 8, 1}, {0, 4, 0, 8}, {0, 6, 8, 8},
    {1, 0, 0, 2}, {3, 1, 0, 7}, {4, 0, 1, 0}, {31, 0, 7, 6}, {31, 3, 15, 7}, {32, 0, 16, 0},
    {63, 2, 31, 6}, {64, 5, 32, 9}, {96, 0, 48, 0}, {127, 3, 63, 7}, {127, 7, 63, 15}};
static const int places_a[][4] = { /* thread, register, row, first of two columns */
    {0, 0, 0, 0}, {0, 1, 8, 0}, {0, 2, 0, 8}, {0, 3, 8, 8}, {1, 0, 0, 2}, {4, 0, 1, 0},
    {3, 2, 0, 14}, {31, 3, 15, 14}, {32, 0, 16, 0}, {127, 3, 63, 14}};
/* clang-format on */

/* The formulas of these figures, which the tables check. */
static int row_of(int thread, int i)
{
    return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8;
}
static int column_of(int thread, int i)
{
    return i / 4 * 8 + thread % 4 * 2 + i % 2;
}
static void test_fragments()
{
    for (auto &p : places_d)
        CHECK(row_of(p[0], p[1]) == p[2] && column_of(p[0], p[1]) == p[3], "thread %d, d[%d]", p[0],
              p[1]);
    for (auto &p : places_a) { /* a[r] is d[2r], d[2r+1] of an accumulator of 16 columns */
        int i = p[1] % 2 * 2 + p[1] / 2 * 4;
        CHECK(row_of(p[0], i) == p[2] && column_of(p[0], i) == p[3], "thread %d, a[%d]", p[0],
              p[1]);
    }
}

/* Four matrices of 8x8 from a warp's registers: number 2 (32 lane + 8 i) and the next one in
 * register i. */
template <bool TRANS> __global__ void stores(uint32_t *out)
{
    uint16_t *room = dynamic_smem<uint16_t>();
    const uint32_t lane = threadIdx.x;
    uint32_t r[4];
    for (uint32_t i = 0; i < 4; i++)
        r[i] = (2 * (32 * lane + 8 * i) + 1) << 16 | 2 * (32 * lane + 8 * i);
    if (TRANS)
        stmatrix_x4_trans(room + 8 * lane, r);
    else
        stmatrix_x4(room + 8 * lane, r);
    __syncwarp();
    for (uint32_t i = 0; i < 8; i++)
        out[8 * lane + i] = room[8 * lane + i];
}
/* 9.7.14.5.16: element (row, column) of a matrix is in lane 4 row + column / 2, lower half first.
 */
template <bool TRANS> static void test_stores()
{
    uint32_t *out = device(std::vector<uint32_t>(256));
    launch(stores<TRANS>, 1, 32, 512, nullptr, out);
    std::vector<uint32_t> got = host(out, 256);
    for (uint32_t m = 0; m < 4; m++)
        for (uint32_t row = 0; row < 8; row++)
            for (uint32_t column = 0; column < 8; column++) {
                uint32_t lane = 4 * row + column / 2, want = 2 * (32 * lane + 8 * m) + column % 2;
                uint32_t at = 64 * m + (TRANS ? 8 * column + row : 8 * row + column);
                CHECK(got[at] == want, "transposed %d: %u at %u, not %u", TRANS, got[at], at, want);
            }
    OK(cudaFree(out));
}

/* A descriptor but for where shared memory begins, as an argument that is not taken for a pointer.
 */
struct Where {
    uint32_t odd, high, low;
    explicit Where(uint64_t d) : odd(1), high(uint32_t(d >> 32)), low(uint32_t(d))
    {
    }
    __device__ uint64_t get() const
    {
        return uint64_t(high) << 32 | low;
    }
};
/* d [64,N] = a b with `image` as shared memory; A from there, or from registers where they are
 * given. `times` products, of which the second begins anew. */
template <class A, class B, int N, bool mn_a, bool mn_b>
__global__ void one_product(const uint4 *image, int chunks, Where a_layout, Where b_layout,
                            const uint32_t *registers, float *out, int times)
{
    uint4 *s = dynamic_tiles<uint4>();
    const int t = int(threadIdx.x);
    for (int i = t; i < chunks; i += 128)
        s[i] = image[i];
    fence_proxy_async();
    __syncthreads();
    const uint64_t base = wgmma_operand(s, SWIZZLE_NONE, 0, 0);
    float d[N / 2];
    for (int i = 0; i < N / 2; i++)
        d[i] = 1;
    uint32_t a[4] = {};
    for (int i = 0; registers && i < 4; i++)
        a[i] = registers[4 * t + i];
    wgmma_fence(d);
    for (int k = 0; k < times; k++) {
        if (!registers)
            wgmma<A, B, mn_a, mn_b>(d, base + a_layout.get(), base + b_layout.get(), k > 1);
        else if constexpr (!mn_a)
            wgmma<A, B, mn_a, mn_b>(d, a, base + b_layout.get(), k > 1);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; i++)
        out[i * 128 + t] = d[i];
}

/* What a descriptor adds to that of shared memory's begin (9.7.15.5.1.2.2). */
static uint64_t descriptor(uint64_t begin, uint64_t stride, uint64_t leading, Swizzle swizzle)
{
    static const uint64_t code[] = {0, 3, 2, 1};
    return begin >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | code[swizzle] << 62;
}

/* Element (mn, k) of an operand in a layout of the tables, in an image of 16-bit numbers. What a
 * table does not show goes on in the same steps. */
static size_t place(const Layout &l, int mn, int k)
{
    if (!l.mn_major)
        return size_t(l.at[mn % 16][k / 8] * 8 + k % 8) + size_t(mn / 16) * l.stride;
    const int chunk = mn / 8;
    const uint32_t step = l.swizzle ? l.leading : l.stride, more = uint32_t(chunk / l.chunks);
    return size_t(l.at[k][chunk % l.chunks] * 8 + mn % 8) + more * step;
}

/* The registers of A = identity, of 16 columns. */
static std::vector<uint32_t> identity()
{
    std::vector<uint32_t> a(512);
    for (int t = 0; t < 128; t++)
        for (int r = 0; r < 4; r++) {
            int i = r % 2 * 2 + r / 2 * 4, row = row_of(t, i), column = column_of(t, i);
            uint32_t low = row == column ? 0x3C00 : 0, high = row == column + 1 ? 0x3C00 : 0;
            a[size_t(4 * t + r)] = low | high << 16;
        }
    return a;
}
/* An operand in this layout times the identity is itself: as B [16,N], as A [64,16]. */
template <int N, bool mn, bool is_b> static void test_layout(const Layout &l)
{
    const size_t half = 16384;
    const int mns = is_b ? N : 64;
    const Layout &plain = layouts[0];
    auto value = [](int m, int k) { return float(m * 16 + k); };
    std::vector<fp16> image(2 * half, fp16(NAN));
    for (int k = 0; k < 16; k++) {
        for (int m = 0; m < mns; m++)
            image[place(l, m, k)] = fp16(value(m, k));
        for (int m = 0; m < 16; m++)
            image[half + place(plain, m, k)] = fp16(m == k ? 1.0f : 0.0f);
    }
    const uint64_t mine = descriptor(0, l.stride, l.leading, l.swizzle);
    const uint64_t other = descriptor(half * 2, plain.stride, plain.leading, SWIZZLE_NONE);
    fp16 *d_image = device(image);
    uint32_t *registers = device(identity());
    float *out = device(std::vector<float>(N / 2 * 128));
    launch(one_product < fp16, fp16, N, mn && !is_b, mn && is_b >, 1, 128, image.size() * 2,
           nullptr, (const uint4 *)d_image, int(image.size() / 8), Where(mine),
           Where(is_b ? mine : other), (const uint32_t *)(is_b ? registers : nullptr), out, 1);
    std::vector<float> got = host(out, N / 2 * 128);
    int wrong = 0;
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < N / 2; i++) {
            int row = row_of(t, i), column = column_of(t, i);
            float want = is_b ? (row < 16 ? value(column, row) : 0) : value(row, column);
            wrong += got[size_t(i * 128 + t)] != want;
        }
    CHECK(wrong == 0, "%s as %c: %d wrong", l.name, is_b ? 'B' : 'A', wrong);
    OK(cudaFree(d_image));
    OK(cudaFree(registers));
    OK(cudaFree(out));
}
static void test_layouts()
{
    for (const Layout &l : layouts) {
        const int shown = l.mn_major ? 8 * l.chunks : 16;
        if (!l.mn_major)
            test_layout<16, false, true>(l);
        else if (shown == 16)
            test_layout<16, true, true>(l);
        else if (shown == 32)
            test_layout<32, true, true>(l);
        else if (shown == 64)
            test_layout<64, true, true>(l);
        else
            test_layout<128, true, true>(l);
        const bool too_small = !strcmp(l.name, "K, none") || !strcmp(l.name, "MN, none") ||
                               !strcmp(l.name, "MN, 32"); /* rows of A would lie on others */
        if (!too_small)
            l.mn_major ? test_layout<16, true, false>(l) : test_layout<16, false, false>(l);
    }
}

/* Against sums in double: every type, A from shared memory and from registers, products in a chain.
 */
struct AnyNarrow {          /* how a byte or two read as a number, written anew */
    int exponent, mantissa; /* bits */
    int bytes;
};
static double number(const AnyNarrow &t, uint32_t b)
{
    uint32_t e = b >> t.mantissa & ((1u << t.exponent) - 1), m = b & ((1u << t.mantissa) - 1);
    int bias = (1 << (t.exponent - 1)) - 1;
    double x =
        e ? ldexp(1 + ldexp(m, -t.mantissa), int(e) - bias) : ldexp(m, 1 - bias - t.mantissa);
    return b >> (t.exponent + t.mantissa) & 1 ? -x : x;
}
constexpr AnyNarrow BF16{8, 7, 2}, FP16{5, 10, 2}, E4M3{4, 3, 1}, E5M2{5, 2, 1};

/* Bits of moderate numbers, no NaNs: exponents around the bias, and now and then the smallest ones
 */
static uint32_t some_bits(const AnyNarrow &t, unsigned i)
{
    uint32_t r = unsigned(noise(i) * 1e6f + 2e6f) * 2654435761u >> 8;
    int bias = (1 << (t.exponent - 1)) - 1;
    uint32_t e = r % 16 == 0 ? 0 : uint32_t(bias - 2) + (r >> 4) % 4;
    uint32_t sign = (r >> 20 & 1) << (t.exponent + t.mantissa);
    return sign | e << t.mantissa | (r >> 8 & ((1u << t.mantissa) - 1));
}
template <class A, class B, int N>
static void test_types(const char *name, const AnyNarrow &ta, const AnyNarrow &tb)
{
    const int k = 32 / ta.bytes, times = 3;
    const size_t half = 4096; /* bytes: K-major, 128 rows of 32 bytes, SWIZZLE_32 */
    std::vector<unsigned char> image(3 * half);
    std::vector<double> a(size_t(64 * k)), b(size_t(N * k));
    std::vector<uint32_t> registers(512);
    auto put = [&](size_t first, int row, int kk, const AnyNarrow &t, uint32_t v) {
        size_t at = first + size_t(row * 32 + kk * t.bytes);
        at ^= (at >> 7 & 1) << 4;
        memcpy(&image[at], &v, size_t(t.bytes));
    };
    for (int i = 0; i < 64 * k; i++) {
        uint32_t v = some_bits(ta, unsigned(i));
        a[size_t(i)] = number(ta, v);
        put(0, i / k, i % k, ta, v);
        /* figures 148, 152: the registers' pairs or fours, in the same places as 4-byte units */
        int row = i / k, unit = i % k * ta.bytes / 4, part = i % k % (4 / ta.bytes);
        int thread = row / 16 * 32 + row % 8 * 4 + unit % 4, r = row % 16 / 8 + unit / 4 * 2;
        registers[size_t(4 * thread + r)] |= v << (8 * ta.bytes * part);
    }
    for (int i = 0; i < N * k; i++) {
        uint32_t v = some_bits(tb, 5000u + unsigned(i));
        b[size_t(i)] = number(tb, v);
        put(half, i / k, i % k, tb, v);
    }
    unsigned char *d_image = device(image);
    uint32_t *d_registers = device(registers);
    float *out = device(std::vector<float>(N / 2 * 128));
    for (int which = 0; which < 2; which++) {
        launch(one_product<A, B, N, false, false>, 1, 128, image.size(), nullptr,
               (const uint4 *)d_image, int(image.size() / 16),
               Where(descriptor(0, 256, 16, SWIZZLE_32)),
               Where(descriptor(half, 256, 16, SWIZZLE_32)),
               (const uint32_t *)(which ? d_registers : nullptr), out, times);
        std::vector<float> got = host(out, N / 2 * 128);
        double worst = 0;
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < N / 2; i++) {
                double sum = 0, size = 0;
                for (int kk = 0; kk < k; kk++) {
                    double x =
                        a[size_t(row_of(t, i) * k + kk)] * b[size_t(column_of(t, i) * k + kk)];
                    sum += x, size += fabs(x);
                }
                double off = fabs(got[size_t(i * 128 + t)] - 2 * sum) / (2 * size + 1e-30);
                worst = off >= 0 ? fmax(worst, off) : INFINITY;
            }
        /* sums of 8-bit numbers have 14 bits, neither more nor less */
        const bool cut = ta.bytes == 1;
        CHECK(worst < (cut ? ldexp(1, -13) : 1e-6) && worst >= (cut ? ldexp(1, -17) : 0),
              "%s, A from %s: off by %g", name, which ? "registers" : "shared memory", worst);
    }
    OK(cudaFree(d_image));
    OK(cudaFree(d_registers));
    OK(cudaFree(out));
}
static void test_products()
{
    using e4m3 = __nv_fp8_e4m3;
    using e5m2 = __nv_fp8_e5m2;
    test_types<bf16, bf16, 128>("bf16", BF16, BF16);
    test_types<fp16, fp16, 72>("fp16", FP16, FP16);
    test_types<e4m3, e4m3, 96>("e4m3 e4m3", E4M3, E4M3);
    test_types<e4m3, e5m2, 64>("e4m3 e5m2", E4M3, E5M2);
    test_types<e5m2, e4m3, 8>("e5m2 e4m3", E5M2, E4M3);
    test_types<e5m2, e5m2, 24>("e5m2 e5m2", E5M2, E5M2);
}

/* ------------------------------------------------------------------------------------------------
 * Clusters: which block is where, and which copies it gets. */

/* Each of four blocks copies 64 numbers of its own to some of them, and arrives at the next one.
 * 9.7.9, cp.async.bulk.tensor: with .multicast::cluster data go to the same offset, and the signal
 * to the mbarrier at the same offset, in each block of the mask. */
/* What a block has seen: its rank, how many there are, its number, its rank again; its places. */
constexpr int SEEN = 4 + 4 * 64;
static const uint32_t to_blocks[4] = {0xF, 0x2, 0x9, 0x4}; /* bits */
/* Whether each block's four places are filled */
static const int comes_from[4][4] = {{1, 0, 1, 0}, {1, 1, 0, 0}, {1, 0, 0, 1}, {1, 0, 1, 0}};

__global__ void four_blocks(const __grid_constant__ CUtensorMap x, uint32_t ranks, uint32_t copies,
                            uint16_t *out)
{
    uint16_t *s = dynamic_tiles<uint16_t>();
    uint64_t *bar = reinterpret_cast<uint64_t *>(s), *next = bar + 1;
    const uint32_t rank = cluster_rank(), mine = ranks >> 8 * rank & 0xFF;
    uint16_t *to = s + 512;
    out += blockIdx.x * SEEN;
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        mbarrier_init(next, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        tma_multicast_2d(to + 64 * rank, &x, bar, mine, 0, int(blockIdx.x));
        mbarrier_arrive_expect(bar, 128 * (copies >> 8 * rank & 0xFF));
        mbarrier_arrive_at(next, (rank + 1) % 4);
    }
    if (threadIdx.x == 0) {
        mbarrier_wait(bar, 0);
        mbarrier_wait(next, 0);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        out[0] = uint16_t(rank), out[1] = uint16_t(cluster_blocks());
    if (threadIdx.x == 95)
        out[2] = uint16_t(blockIdx.x), out[3] = uint16_t(cluster_rank());
    for (int i = int(threadIdx.x); i < 256; i += 96)
        out[4 + i] = to[i];
    cluster_sync();
}
static void test_clusters()
{
    const int blocks = 12;
    std::vector<bf16> x = numbered(blocks * 64);
    bf16 *dx = device(x);
    uint16_t *out = device(std::vector<uint16_t>(blocks * SEEN));
    CUtensorMap map;
    uint32_t ranks = 0, copies = 0; /* a byte for each block */
    for (int i = 0; i < 4; i++) {
        ranks |= to_blocks[i] << 8 * i;
        for (int from = 0; from < 4; from++)
            copies += uint32_t(comes_from[i][from]) << 8 * i;
    }
    CHECK(tensor_map<bf16>(&map, dx, {64, blocks}, {2, 128}, {64, 1}, SWIZZLE_NONE));
    for (int trial = 0; trial < 8; trial++) {
        launch_cluster(4, four_blocks, blocks, 96, 2048, nullptr, map, ranks, copies, out);
        std::vector<uint16_t> got = host(out, blocks * SEEN);
        int wrong = 0;
        for (int b = 0; b < blocks; b++) {
            const uint16_t *seen = &got[size_t(b * SEEN)];
            wrong += seen[0] != b % 4 || seen[1] != 4 || seen[2] != b || seen[3] != b % 4;
            for (int i = 0; i < 256; i++) {
                const int from = b / 4 * 4 + i / 64;
                const bool there = comes_from[b % 4][i / 64];
                wrong += seen[4 + i] != (there ? bits(x[size_t(from * 64 + i % 64)]) : 0xFFFF);
            }
        }
        CHECK(wrong == 0, "%d wrong", wrong);
    }
    cudaLaunchAttribute cluster = cluster_attribute(4);
    cudaLaunchConfig_t c = {};
    c.gridDim = 10;
    c.blockDim = 96;
    c.dynamicSmemBytes = 2048;
    c.attrs = &cluster;
    c.numAttrs = 1;
    CHECK(cudaLaunchKernelEx(&c, four_blocks, map, ranks, copies, out) ==
          cudaErrorInvalidClusterSize);
    c.gridDim = 12;
    int most = 0;
    OK(cudaOccupancyMaxActiveClusters(&most, four_blocks, &c));
    CHECK(most == 1, "%d clusters of 4 blocks on 4 multiprocessors", most);
    cluster.val.clusterDim.x = 12;
    CHECK(cudaLaunchKernelEx(&c, four_blocks, map, ranks, copies, out) ==
          cudaErrorInvalidClusterSize);
    (void)cudaGetLastError();
    OK(cudaFree(dx));
    OK(cudaFree(out));
}

/* One copy to both blocks. The second must not take for its own that the first one has it. */
template <bool waits> __global__ void one_copy(const __grid_constant__ CUtensorMap x, uint16_t *out)
{
    uint16_t *s = dynamic_tiles<uint16_t>();
    uint64_t *bar = reinterpret_cast<uint64_t *>(s);
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x == 0)
        mbarrier_arrive_expect(bar, 128);
    if (threadIdx.x == 0 && rank == 0)
        tma_multicast_2d(s + 512, &x, bar, 3, 0, 0);
    if (waits || rank == 0)
        mbarrier_wait(bar, 0);
    cluster_sync();
    out[blockIdx.x * 64 + threadIdx.x] = s[512 + threadIdx.x];
    mbarrier_wait(bar, 0);
}
template <bool waits> static int both_have_it()
{
    std::vector<bf16> x = numbered(64);
    bf16 *dx = device(x);
    uint16_t *out = device(std::vector<uint16_t>(128));
    CUtensorMap map;
    CHECK(tensor_map<bf16>(&map, dx, {64, 1}, {2, 128}, {64, 1}, SWIZZLE_NONE));
    int right = 0;
    for (int trial = 0; trial < 24; trial++) {
        launch_cluster(2, one_copy<waits>, 2, 64, 2048, nullptr, map, out);
        std::vector<uint16_t> got = host(out, 128);
        int same = 0;
        for (size_t i = 0; i < 128; i++)
            same += got[i] == bits(x[i % 64]);
        right += same == 128;
    }
    OK(cudaFree(dx));
    OK(cudaFree(out));
    return right;
}
static void test_one_copy()
{
    const int right = both_have_it<true>(), early = both_have_it<false>();
    CHECK(right == 24, "%d of 24", right);
    CHECK(early < 24, "that the other block has its copy later does not show");
}

/* ------------------------------------------------------------------------------------------------
 * C [M,N] = A [M,K] B [N,K]^T in the usual form, right or with one mistake: 384 threads, the first
 * warp group copies, the other two multiply 64 rows each; persistent, two stages. Of a pair of
 * blocks each copies its own A, and half of B for both. */

/* clang-format off */
#define MISTAKES(X) /* name, what it must say; "wrong": its result, "": either */                  \
    X(none, "")                                                                                   \
    X(full_not_waited, "")                                                                        \
    X(full_wrong_parity, "")                                                                      \
    X(empty_wrong_parity, "deadlock")                                                             \
    X(empty_not_waited, "")                                                                       \
    X(empty_too_early, "")                                                                        \
    X(empty_count, "mbarrier at")                                                                 \
    X(bytes_too_few, "")                                                                          \
    X(bytes_too_many, "bytes missing")                                                            \
    X(no_init_fence, "without mbarrier_init_fence")                                               \
    X(no_init_barrier, "is not initialised")                                                      \
    X(no_wgmma_fence, "without wgmma_fence")                                                      \
    X(one_wgmma_fence, "without wgmma_fence")                                                     \
    X(no_commit, "")                                                                              \
    X(no_wgmma_wait, "")                                                                          \
    X(one_group_less, "")                                                                         \
    X(registers_read_early, "wrong")                                                              \
    X(registers_written_early, "was written before")                                              \
    X(operand_overwritten, "before it was waited for")                                            \
    X(wrong_swizzle, "wrong")                                                                     \
    X(wrong_stride, "")                                                                           \
    X(k_not_advanced, "wrong")                                                                    \
    X(no_proxy_fence, "without fence_proxy_async")                                                \
    X(no_named_barrier, "")                                                                       \
    X(other_count, "barrier 1 of")                                                               \
    X(too_few_arrive, "named_barrier_sync")                                                       \
    X(store_not_waited, "")                                                                       \
    X(left_while_storing, "leaves the kernel")                                                    \
    X(too_many_registers, "registers together")                                                   \
    /* of pairs of blocks */                                                                      \
    X(pair_own_readers, "")                                                                       \
    X(pair_own_readers_alone, "")                                                                 \
    X(pair_no_remote_arrival, "arrivals and 0 bytes missing")                                     \
    X(pair_to_itself, "bytes missing")                                                            \
    X(pair_half_expected, "")                                                                     \
    X(pair_same_half, "")                                                                         \
    X(pair_one_fence, "fence")                                                                    \
    X(pair_no_first_sync, "no cluster_sync() since")                                              \
    X(pair_no_last_sync, "left")
enum Mistake {
#define X(name, words) name,
    MISTAKES(X)
#undef X
};
/* clang-format on */

constexpr int TM = 128, TN = 64, TK = 64, STAGES = 2, A_BYTES = TM * TK * 2, B_BYTES = TN * TK * 2;
constexpr int STAGE = A_BYTES + B_BYTES, C_BYTES = TM * TN * 2;
constexpr int SMEM = STAGES * STAGE + C_BYTES + 64;

struct Pipe { /* shared memory */
    char *s;
    uint64_t *full, *empty;
    __device__ Pipe()
    {
        s = dynamic_tiles<char>();
        full = reinterpret_cast<uint64_t *>(s + STAGES * STAGE + C_BYTES);
        empty = full + STAGES;
    }
    __device__ char *stage(int i) const
    {
        return s + i % STAGES * STAGE;
    }
    __device__ char *c(int group) const
    {
        return s + STAGES * STAGE + group * C_BYTES / 2;
    }
};

/* Half of B, from `x` and `y` on, for both blocks of a pair */
template <Mistake M>
__device__ void copy_half(char *to, const CUtensorMap &b, uint64_t *full, int x, int y)
{
    const uint32_t rank = M == pair_same_half ? 0 : cluster_rank();
    const uint32_t ranks = M == pair_to_itself ? 1u << cluster_rank() : 3;
    tma_multicast_2d(to + rank * B_BYTES / 2, &b, full, ranks, x, y);
}
template <Mistake M, bool mn>
__device__ void copy_tiles(const Pipe &p, const CUtensorMap &a, const CUtensorMap &b, int tiles,
                           int down, int steps)
{
    int i = 0;
    const bool pair = cluster_blocks() > 1;
    const int half = pair ? int(cluster_rank()) * TN / 2 : 0; /* of n, or of k */
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x))
        for (int k = 0; k < steps; k++, i++) {
            uint64_t *full = p.full + i % STAGES;
            const uint32_t parity = uint32_t(i / STAGES & 1) ^ (M == empty_wrong_parity ? 0 : 1);
            if (M != empty_not_waited)
                mbarrier_wait(p.empty + i % STAGES, parity);
            const int bytes = M == bytes_too_few        ? A_BYTES
                              : M == bytes_too_many     ? STAGE + 16
                              : M == pair_half_expected ? A_BYTES + B_BYTES / 2
                                                        : STAGE;
            mbarrier_arrive_expect(full, uint32_t(bytes));
            const int row = tile % down * TM, column = tile / down * TN;
            char *to_b = p.stage(i) + A_BYTES;
            if (mn) { /* boxes [k, 64 of m or n] */
                tma_load_2d(p.stage(i), &a, full, row, k * TK);
                tma_load_2d(p.stage(i) + A_BYTES / 2, &a, full, row + TM / 2, k * TK);
            } else {
                tma_load_2d(p.stage(i), &a, full, k * TK, row);
            }
            const int x = mn ? column : k * TK, y = (mn ? k * TK : column) + half;
            if (pair)
                copy_half<M>(to_b, b, full, x, y);
            else
                tma_load_2d(to_b, &b, full, x, y);
        }
}

/* d to shared memory as bf16, with the swizzle of c's map, and on to c. */
template <Mistake M>
__device__ void store_tile(const Pipe &p, const CUtensorMap &c, const float (&d)[TN / 2], int group,
                           int row, int column)
{
    const int t = int(threadIdx.x) % 128, lane = t % 32, barrier = 1 + group;
    const int count = M == too_few_arrive ? 256 : 128;
    if (t == 0 && M != store_not_waited)
        tma_store_read_wait<0>();
    if (M == other_count)
        named_barrier_sync(1, group ? 128 : 256);
    named_barrier_sync(barrier, count);
    for (int j = 0; j < TN / 16; j++) { /* 16 columns: lane 8i + r brings row r of matrix i */
        uint32_t r[4];
        for (int i = 0; i < 4; i++)
            r[i] = pack<bf16>(d[8 * j + 2 * i], d[8 * j + 2 * i + 1]);
        const int line = t / 32 * 16 + lane / 8 % 2 * 8 + lane % 8, chunk = 2 * j + lane / 16;
        stmatrix_x4(p.c(group) + line * 128 + (chunk ^ line % 8) * 16, r);
    }
    if (M != no_proxy_fence)
        fence_proxy_async();
    if (M != no_named_barrier)
        named_barrier_sync(barrier, count);
    if (t == 0) {
        tma_store_2d(&c, p.c(group), column, row + 64 * group);
        tma_store_commit();
    }
}

/* The step's stage may be written by whoever writes there: every block of the cluster. */
template <Mistake M> __device__ void give_back(const Pipe &p, int step)
{
    const int t = int(threadIdx.x) % 128;
    const bool own = M == pair_no_remote_arrival || M == pair_own_readers_alone;
    if (own && t == 0)
        mbarrier_arrive(p.empty + step % STAGES);
    if (!own && t < int(cluster_blocks()))
        mbarrier_arrive_at(p.empty + step % STAGES, uint32_t(t));
}

template <Mistake M, bool mn>
__device__ void multiply_tiles(const Pipe &p, const CUtensorMap &c, int tiles, int down, int steps)
{
    const int group = int(threadIdx.x) / 128 - 1, t = int(threadIdx.x) % 128;
    int i = 0;
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
        float d[TN / 2], early = 0;
        for (int k = 0; k < steps; k++, i++) {
            const uint32_t parity = uint32_t(i / STAGES & 1) ^ (M == full_wrong_parity ? 1 : 0);
            if (M != full_not_waited)
                mbarrier_wait(p.full + i % STAGES, parity);
            const Swizzle swizzle = M == wrong_swizzle ? SWIZZLE_NONE : SWIZZLE_128;
            const uint32_t stride = M == wrong_stride ? 2048 : 1024;
            uint64_t a = wgmma_operand(p.stage(i) + group * A_BYTES / 2, swizzle, stride);
            uint64_t b = wgmma_operand(p.stage(i) + A_BYTES, swizzle, stride);
            if (M != no_wgmma_fence && !(M == one_wgmma_fence && i > 0))
                wgmma_fence(d);
            for (int j = 0; j < TK / 16; j++) {
                const uint32_t bytes = M == k_not_advanced ? 0 : uint32_t(j * (mn ? 16 * 128 : 32));
                wgmma<bf16, bf16, mn, mn>(d, wgmma_advance(a, bytes), wgmma_advance(b, bytes),
                                          k + j > 0);
            }
            if (M == registers_written_early)
                d[3] = 0;
            if (M == registers_read_early)
                early = d[0];
            if (M != no_commit)
                wgmma_commit();
            if (M == operand_overwritten) /* by one who knows that all have issued */
                named_barrier_sync(1 + group, 128);
            if (M == operand_overwritten)
                *reinterpret_cast<float *>(p.stage(i) + group * A_BYTES / 2 + 4 * t) = 1;
            if (M == empty_too_early)
                give_back<M>(p, i);
            wgmma_wait<1>(d); /* the products of the step before have been read, too */
            if (k > 0 && M != empty_too_early)
                give_back<M>(p, i - 1);
        }
        if (M != no_wgmma_wait)
            M == one_group_less ? wgmma_wait<1>(d) : wgmma_wait<0>(d);
        if (M != empty_too_early)
            give_back<M>(p, i - 1);
        d[0] += early * 0;
        store_tile<M>(p, c, d, group, tile % down * TM, tile / down * TN);
    }
    if (t == 0 && M != left_while_storing)
        tma_store_wait<0>();
}

template <Mistake M, bool mn>
__global__ void __launch_bounds__(384, 1)
    whole_product(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                  const __grid_constant__ CUtensorMap c, int tiles, int down, int steps)
{
    const Pipe p;
    if (threadIdx.x == 0) {
        const bool own = M == pair_own_readers || M == pair_own_readers_alone;
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(p.full + i, 1);
            mbarrier_init(p.empty + i, M == empty_count ? 3 : own ? 2 : 2 * cluster_blocks());
        }
        if (M != no_init_fence && M != pair_one_fence)
            mbarrier_init_fence();
    }
    if (M == pair_one_fence) { /* when all are made, but by one block */
        cluster_sync();
        if (threadIdx.x == 0 && cluster_rank() == 0)
            mbarrier_init_fence();
    }
    if (M == pair_no_first_sync)
        __syncthreads();
    else if (M != no_init_barrier)
        cluster_sync();
    if (threadIdx.x < 128) {
        registers_release<40>();
        if (threadIdx.x < 32 && elect_one())
            copy_tiles<M, mn>(p, a, b, tiles, down, steps);
    } else {
        registers_take<M == too_many_registers ? 240 : 232>();
        multiply_tiles<M, mn>(p, c, tiles, down, steps);
    }
    __syncwarp(); /* the lane that copies comes late */
    if (M != pair_no_last_sync)
        cluster_sync();
}

/* Small whole numbers, so that every result is exact; sizes that leave boxes at the edges. mn: A
 * and B lie as [K,M], [K,N]. In clusters of so many blocks. */
template <Mistake M, bool mn = false>
static bool multiplies(int m, int n, int k, int trials, unsigned blocks = 1)
{
    std::vector<bf16> a(size_t(m * k)), b(size_t(n * k));
    for (size_t i = 0; i < a.size(); i++)
        a[i] = bf16(roundf(noise(unsigned(i)) * 1.4f));
    for (size_t i = 0; i < b.size(); i++)
        b[i] = bf16(roundf(noise(unsigned(i) + 77777u) * 1.4f));
    bf16 *da = device(a), *db = device(b), *dc = device(std::vector<bf16>(size_t(m * n)));
    CUtensorMap ma, mb, mc;
    const uint64_t um = uint64_t(m), un = uint64_t(n), uk = uint64_t(k);
    const uint32_t rows_of_b = 64 / blocks;
    bool right =
        (mn ? tensor_map<bf16>(&ma, da, {um, uk}, {2, 2 * um}, {64, TK}, SWIZZLE_128) &&
                  tensor_map<bf16>(&mb, db, {un, uk}, {2, 2 * un}, {64, rows_of_b}, SWIZZLE_128)
            : tensor_map<bf16>(&ma, da, {uk, um}, {2, 2 * uk}, {TK, TM}, SWIZZLE_128) &&
                  tensor_map<bf16>(&mb, db, {uk, un}, {2, 2 * uk}, {TK, rows_of_b}, SWIZZLE_128)) &&
        tensor_map<bf16>(&mc, dc, {un, um}, {2, 2 * un}, {TN, TM / 2}, SWIZZLE_128);
    const int pairs = int(blocks), across = (n + TN - 1) / TN;
    const int down = ((m + TM - 1) / TM + pairs - 1) / pairs * pairs;
    for (int trial = 0; right && trial < trials; trial++) {
        OK(cudaMemset(dc, 0xFF, size_t(m * n) * 2));
        launch_cluster(blocks, whole_product<M, mn>, dim3(blocks * (1 + unsigned(trial) % 3)), 384,
                       SMEM, nullptr, ma, mb, mc, down * across, down, (k + TK - 1) / TK);
        std::vector<bf16> c = host(dc, size_t(m * n));
        for (int i = 0; i < m * n; i++) {
            float sum = 0;
            for (int j = 0; j < k; j++)
                sum += float(a[size_t(mn ? j * m + i / n : i / n * k + j)]) *
                       float(b[size_t(mn ? j * n + i % n : i % n * k + j)]);
            right &= float(c[size_t(i)]) == sum;
        }
    }
    OK(cudaFree(da));
    OK(cudaFree(db));
    OK(cudaFree(dc));
    return right;
}

static void test_whole_product()
{
    CHECK(multiplies<none>(128, 64, 64, 6));
    CHECK(multiplies<none>(256, 128, 320, 12));
    CHECK(multiplies<none>(200, 120, 200, 12)); /* edges: rows, columns, k */
    CHECK((multiplies<none, true>(256, 128, 320, 6)));
    CHECK((multiplies<none, true>(200, 120, 200, 6)));
    CHECK(multiplies<none>(256, 64, 64, 6, 2));
    CHECK(multiplies<none>(512, 128, 320, 12, 2));
    CHECK(multiplies<none>(300, 120, 200, 12, 2)); /* the last pair's second tile is outside */
    CHECK((multiplies<none, true>(296, 120, 200, 6, 2)));
}
/* A in registers is made anew for the second product, and no fence tells it. */
__global__ void a_written(float *out)
{
    float d[4];
    uint32_t a[4] = {1, 2, 3, 4};
    wgmma_fence(d);
    wgmma<bf16, bf16>(d, a, wgmma_operand(dynamic_tiles<char>(), SWIZZLE_NONE, 128), false);
    a[0] = 5;
    wgmma<bf16, bf16>(d, a, wgmma_operand(dynamic_tiles<char>(), SWIZZLE_NONE, 128), true);
    wgmma_commit();
    wgmma_wait<0>(d);
    out[threadIdx.x] = d[0];
}
/* The copying warp alone gives registers back. */
__global__ void one_warp_releases(int)
{
    mbarrier_init(dynamic_tiles<uint64_t>() + threadIdx.x, 1);
    if (threadIdx.x < 32)
        registers_release<40>();
}
/* Block 0 copies to block 1, which does not wait for it, and then to itself. */
__global__ void copies_to_one_who_leaves(const __grid_constant__ CUtensorMap x)
{
    char *s = dynamic_tiles<char>();
    uint64_t *bar = reinterpret_cast<uint64_t *>(s);
    mbarrier_init(bar, 1);
    mbarrier_init_fence();
    cluster_sync();
    if (cluster_rank() == 0)
        tma_multicast_2d(s + 1024, &x, bar, 2, 0, 0);
    cluster_sync();
    for (uint32_t i = 0; cluster_rank() == 0 && i < 24; i++) {
        mbarrier_arrive_expect(bar, 64);
        tma_load_2d(s + 1024, &x, bar, 0, 0);
        mbarrier_wait(bar, i % 2);
    }
}
__global__ void writes_beyond(int bytes)
{
    if (cluster_rank() == 0)
        dynamic_tiles<char>()[bytes] = 0;
}
__global__ void waits_for_nothing(float *x)
{
    x[threadIdx.x] = 1;
}
__global__ void initialises(int)
{
    mbarrier_init(dynamic_tiles<uint64_t>(), 1);
}

static int scenario(const std::string &name)
{
#define X(mistake, words)                                            \
    if (name == #mistake) {                                          \
        unsigned blocks = name.find("pair_") == 0 ? 2 : 1;           \
        bool right = multiplies<mistake>(256, 128, 320, 12, blocks); \
        puts(right ? "right" : "wrong");                             \
        return !right;                                               \
    }
    MISTAKES(X)
#undef X
    CUtensorMap map;
    float *x = device(std::vector<float>(128));
    if (name == "one_warp_releases")
        launch(one_warp_releases, 1, 128, 4096, nullptr, 0);
    else if (name == "map_too_large")
        return tensor_map<float>(&map, x, {16, 9}, {4, 64}, {16, 8}, SWIZZLE_64);
    else if (name == "copies_to_one_who_leaves") {
        if (!tensor_map<float>(&map, x, {16, 8}, {4, 64}, {16, 1}, SWIZZLE_NONE))
            return 0;
        for (int i = 0; i < 16; i++)
            launch_cluster(2, copies_to_one_who_leaves, 2, 1, 2048, nullptr, map);
    } else if (name == "writes_beyond")
        launch_cluster(2, writes_beyond, 2, 1, 512, nullptr, 512);
    else if (name == "no_dependent_wait")
        for (int i = 0; i < 16; i++) {
            launch(waits_for_nothing, 1, 32, 0, nullptr, x);
            launch_dependent(waits_for_nothing, 1, 32, 0, nullptr, x);
            OK(cudaDeviceSynchronize());
        }
    else if (name == "old_gpu")
        launch(initialises, 1, 1, 64, nullptr, 0);
    else if (name == "a_written")
        launch(a_written, 1, 128, 4096, nullptr, x);
    else
        return 2;
    return cudaDeviceSynchronize() != cudaSuccess;
}
static void test_mistakes()
{
#define X(mistake, words) \
    if (mistake != none)  \
        must_die(#mistake, words);
    MISTAKES(X)
#undef X
    must_die("a_written", "A in registers was written since wgmma_fence()");
    must_die("one_warp_releases", "setmaxnreg by 32 threads");
    must_die("copies_to_one_who_leaves", "arrives in a block that has left");
    must_die("writes_beyond", "wrote beyond its dynamic shared memory");
    must_die("map_too_large", "not all in one allocation");
    if (!tsan)
        must_die("no_dependent_wait", "nowhere calls dependent_wait()");
    must_die("old_gpu", "sm_90a on a GPU of compute capability 8.0", "VIT_STANDIN_SM=80");
}

/* ------------------------------------------------------------------------------------------------
 * Dependent launches: the second kernel begins early, and must wait before it reads what the first
 * one writes, or writes what that reads. */

__global__ void first_kernel(const float *in, float *out)
{
    dependent_launch();
    out[blockIdx.x * 32 + threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x] + 1;
}
template <bool read_after, bool write_after>
__global__ void second_kernel(float *in, const float *out, float *twice)
{
    const unsigned i = blockIdx.x * 32 + threadIdx.x;
    float early = read_after ? 0 : out[i];
    if (!write_after)
        in[i] = -5;
    dependent_wait();
    twice[i] = 2 * (read_after ? out[i] : early);
    in[i] = -5;
}
/* How many of the trials are right, in a stream or as a graph. */
template <bool read_after, bool write_after> static int depends(bool graph)
{
    const unsigned n = 96;
    float *in = device(std::vector<float>(n)), *out = device(std::vector<float>(n));
    float *twice = device(std::vector<float>(n));
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t exec = nullptr;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    auto both = [&] {
        launch(first_kernel, 3, 32, 0, s, (const float *)in, out);
        launch_dependent(second_kernel<read_after, write_after>, 3, 32, 0, s, in,
                         (const float *)out, twice);
    };
    if (graph) {
        OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        both();
        OK(cudaStreamEndCapture(s, &g));
        OK(cudaGraphInstantiate(&exec, g, 0));
        OK(cudaGraphDestroy(g));
    }
    int right = 0;
    for (int trial = 0; trial < 24; trial++) {
        OK(cudaMemsetAsync(in, 0, n * 4, s));
        OK(cudaMemsetAsync(out, 0xFF, n * 4, s));
        if (graph)
            OK(cudaGraphLaunch(exec, s));
        else
            both();
        OK(cudaStreamSynchronize(s));
        right +=
            host(twice, n) == std::vector<float>(n, 2) && host(in, n) == std::vector<float>(n, -5);
    }
    if (graph)
        OK(cudaGraphExecDestroy(exec));
    OK(cudaStreamDestroy(s));
    OK(cudaFree(in));
    OK(cudaFree(out));
    OK(cudaFree(twice));
    return right;
}
static void test_dependent()
{
    for (bool graph : {false, true}) {
        int right = depends<true, true>(graph), early_read = depends<false, true>(graph);
        int early_write = depends<true, false>(graph);
        CHECK(right == 24, "%d of 24, graph %d", right, graph);
        CHECK(early_read < 24 || tsan, "reading early does not show, graph %d", graph);
        CHECK(early_write < 24 || tsan, "writing early does not show, graph %d", graph);
    }
}

int main(int argc, char **argv)
{
    setenv("VIT_STANDIN_SM", "90", 0);
    if (argc > 1 && access(argv[1], F_OK)) /* the path of the fixtures is for other tests */
        return scenario(argv[1]);
    test_swizzles();
    test_edges(false);
    test_edges(true);
    test_maps();
    test_fragments();
    test_stores<false>();
    test_stores<true>();
    test_layouts();
    test_products();
    test_clusters();
    test_one_copy();
    test_whole_product();
    test_dependent();
    test_mistakes();
    return check_report();
}
