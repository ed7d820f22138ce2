/* cublaslt.cpp - D = epilogue(alpha op(A) op(B) + beta C + bias) on OpenBLAS.
 *
 * Operands become float, products are summed in float, the epilogue is computed in float, and the
 * result is rounded once. Takes A, B: f32, bf16 or f16 (the same), D: that type or f32, C: as D;
 * or A, B: e4m3 and e4m3 or e5m2, D: bf16, f16 or f32, as a Hopper does (fp8_status). Three algorithms with different orders of summation, so that bits depend on the choice:
 *
 *   0  one sgemm; no workspace; any alignment
 *   1  split-K: two halves of K into workspace, then their sum
 *   2  pieces of 64 of K, one after another; claims a large workspace and writes all over it
 *
 * Stricter than the library: operands must lie inside allocations of device memory, an algorithm
 * refuses pointers less aligned than its heuristic was told, and bias and aux have D's type.
 */
#include "cublasLt.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_fp8.h"
#include "standin.h"

#include <algorithm>
#include <cblas.h>
#include <unistd.h>

using namespace standin;

struct cublasLtContext {
    int unused;
};
struct cublasLtMatmulDescOpaque_t {
    cublasComputeType_t compute;
    cublasOperation_t transA = CUBLAS_OP_N, transB = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    void *bias = nullptr, *aux = nullptr;
    int64_t aux_ld = 0;
    int32_t bias_type = -1, aux_type = -1; /* -1: D's */
    const float *scale[2] = {}; /* of A, of B: in device memory, NULL: 1 */
    int8_t fast = 0;            /* sums may be less exact; here they are not */
};
struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;
    int64_t batch_offset = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace = 0;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
    uint32_t alignment[4] = {256, 256, 256, 256};
};
using Desc = cublasLtMatmulDescOpaque_t;
using Layout = cublasLtMatrixLayoutOpaque_t;

/* What cublasLtMatmulAlgo_t::data holds: [0] MAGIC, [1] number, [2 + i] alignment of A, B, C, D. */
constexpr uint64_t MAGIC = 0x76697463706f6e63u;
enum { ALGOS = LT_ALGOS, PIECE = 64 };
int standin::products[LT_ALGOS], standin::gelu_products;

static bool is_fp8(cudaDataType_t t)
{
    return t == CUDA_R_8F_E4M3 || t == CUDA_R_8F_E5M2;
}
static size_t size_of(cudaDataType_t t)
{
    return t == CUDA_R_32F ? 4 : is_fp8(t) ? 1 : 2;
}
static bool known(cudaDataType_t t)
{
    return t == CUDA_R_32F || t == CUDA_R_16BF || t == CUDA_R_16F || is_fp8(t);
}
static size_t bytes_of(const Layout &l)
{
    if (!l.rows || !l.cols || l.batch < 1)
        return 0;
    return (size_t(l.batch - 1) * size_t(l.batch_offset) + (l.cols - 1) * size_t(l.ld) + l.rows) *
           size_of(l.type);
}

/* ------------------------------------------------------------------------------------------------
 * Descriptors. */

#define NAMES(X)                                                                                  \
    X(CUBLAS_STATUS_SUCCESS)                                                                      \
    X(CUBLAS_STATUS_NOT_INITIALIZED) X(CUBLAS_STATUS_ALLOC_FAILED) X(CUBLAS_STATUS_INVALID_VALUE) \
        X(CUBLAS_STATUS_ARCH_MISMATCH) X(CUBLAS_STATUS_MAPPING_ERROR)                             \
            X(CUBLAS_STATUS_EXECUTION_FAILED) X(CUBLAS_STATUS_INTERNAL_ERROR)                     \
                X(CUBLAS_STATUS_NOT_SUPPORTED)
const char *cublasGetStatusName(cublasStatus_t s)
{
    switch (s) {
#define X(name) \
    case name:  \
        return #name;
        NAMES(X)
#undef X
    }
    return "unknown cuBLAS status";
}
const char *cublasGetStatusString(cublasStatus_t s)
{
    return cublasGetStatusName(s);
}
const char *cublasLtGetStatusName(cublasStatus_t s)
{
    return cublasGetStatusName(s);
}
const char *cublasLtGetStatusString(cublasStatus_t s)
{
    return cublasGetStatusName(s);
}
size_t cublasLtGetVersion()
{
    return CUBLAS_VERSION;
}
size_t cublasLtGetCudartVersion()
{
    return CUDART_VERSION;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    int devices;
    if (!h)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (cudaGetDeviceCount(&devices) != cudaSuccess)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *h = new cublasLtContext{0};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete h;
    return h ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (!d)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = new Desc{compute};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}

/* Copies an attribute whose size must be right. */
template <class T> static cublasStatus_t set(T &to, const void *value, size_t bytes)
{
    if (!value || bytes != sizeof to)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
/* One that has only one value here. */
template <class T> static cublasStatus_t must(T only, const void *value, size_t bytes)
{
    T given;
    if (set(given, value, bytes) != CUBLAS_STATUS_SUCCESS)
        return CUBLAS_STATUS_INVALID_VALUE;
    return given == only ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes)
{
    if (!d)
        return CUBLAS_STATUS_INVALID_VALUE;
    int32_t ignored;
    switch (what) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return set(d->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return must(CUDA_R_32F, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return must(CUBLASLT_POINTER_MODE_HOST, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(d->transA, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(d->transB, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return set(d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        return set(d->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
        return set(ignored, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        return set(d->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return set(d->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
        return set(d->scale[0], value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        return set(d->scale[1], value, bytes);
    case CUBLASLT_MATMUL_DESC_FAST_ACCUM:
        return set(d->fast, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    if (!l)
        return CUBLAS_STATUS_INVALID_VALUE;
    *l = new Layout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t what,
                                                const void *value, size_t bytes)
{
    if (!l)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return set(l->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return must(CUBLASLT_ORDER_COL, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return set(l->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return set(l->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return set(l->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return set(l->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return set(l->batch_offset, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    if (!p)
        return CUBLAS_STATUS_INVALID_VALUE;
    *p = new cublasLtMatmulPreferenceOpaque_t;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void *value, size_t bytes)
{
    if (!p)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
        return must(uint32_t(0), value, bytes);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return set(p->reduction, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return set(p->alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return set(p->alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return set(p->alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return set(p->alignment[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* ------------------------------------------------------------------------------------------------
 * Algorithms. */

static bool has(const Desc &d, int bit)
{
    return d.epilogue & bit;
}
static bool uses_bias(const Desc &d)
{
    return has(d, CUBLASLT_EPILOGUE_BIAS) || has(d, 16) || has(d, CUBLASLT_EPILOGUE_BGRADA) ||
           has(d, CUBLASLT_EPILOGUE_BGRADB);
}

/* Of 8-bit operands, what cuBLAS's manual asks for on Ada and Hopper, and what PyTorch found to
 * hold: A transposed and B not, not both E5M2, sums over multiples of 16, columns of A and D and
 * rows that begin at multiples of 16 bytes; how many columns B has is free. The bias is bf16 but
 * with an f16 result. No kernel has the gradient of GELU or of a bias in its epilogue. */
static cublasStatus_t fp8_status(const Desc *d, const Layout *A, const Layout *B, const Layout *C,
                                 const Layout *D)
{
    if (!is_fp8(B->type) || (A->type == CUDA_R_8F_E5M2 && B->type == CUDA_R_8F_E5M2))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->transA != CUBLAS_OP_T || d->transB != CUBLAS_OP_N || is_fp8(D->type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (A->rows % 16 || A->cols % 16 || A->ld % 16 || B->ld % 16 || D->ld % 8 || C->ld % 8)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (has(*d, 64) || has(*d, 16) || has(*d, CUBLASLT_EPILOGUE_BGRADA) ||
        has(*d, CUBLASLT_EPILOGUE_BGRADB))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess || 10 * p.major + p.minor < 89)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return D->type == CUDA_R_32F && uses_bias(*d) ? CUBLAS_STATUS_NOT_SUPPORTED
                                                  : CUBLAS_STATUS_SUCCESS;
}

/* Whether the product exists: types, shapes, epilogue; pointers come later. */
static cublasStatus_t check(const Desc *d, const Layout *A, const Layout *B, const Layout *C,
                            const Layout *D)
{
    if (!d || !A || !B || !C || !D)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (const Layout *l : {A, B, C, D})
        if (!known(l->type) || l->ld < int64_t(l->rows) || l->batch < 1 || l->batch_offset < 0 ||
            l->batch != D->batch)
            return CUBLAS_STATUS_INVALID_VALUE;
    if ((d->transA != CUBLAS_OP_N && d->transA != CUBLAS_OP_T) ||
        (d->transB != CUBLAS_OP_N && d->transB != CUBLAS_OP_T))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    uint64_t m = d->transA ? A->cols : A->rows, k = d->transA ? A->rows : A->cols;
    uint64_t n = d->transB ? B->rows : B->cols, k2 = d->transB ? B->cols : B->rows;
    if (k != k2 || m != D->rows || n != D->cols || m != C->rows || n != C->cols || !m || !n || !k)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (C->type != D->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (is_fp8(A->type)) {
        if (cublasStatus_t s = fp8_status(d, A, B, C, D); s != CUBLAS_STATUS_SUCCESS)
            return s;
    } else if (A->type != B->type || (D->type != A->type && D->type != CUDA_R_32F) ||
               d->scale[0] || d->scale[1] || d->fast) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (d->compute != CUBLAS_COMPUTE_32F && d->compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
        !(d->compute == CUBLAS_COMPUTE_32F_FAST_TF32 && A->type == CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    switch (d->epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_DGELU_BGRAD:
    case CUBLASLT_EPILOGUE_BGRADA:
    case CUBLASLT_EPILOGUE_BGRADB:
        break;
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT && D->batch > 1)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (uses_bias(*d) && d->bias_type != -1 && d->bias_type != D->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (has(*d, 128)) {
        if (d->aux_type != -1 && d->aux_type != D->type)
            return CUBLAS_STATUS_NOT_SUPPORTED;
        if (d->aux_ld < int64_t(m) || d->aux_ld % 8)
            return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static size_t workspace_of(uint64_t algo, const Layout &D)
{
    size_t sum = D.rows * D.cols * sizeof(float) * size_t(D.batch);
    return algo == 0 ? 0 : algo == 1 ? 2 * sum : 2 * sum + (1 << 20);
}

/* The alignment up to which a kernel may rely on the base and on every column. */
static uint32_t alignment_of(uint32_t promised, const Layout &l)
{
    uint32_t a = std::min(promised, uint32_t(16));
    while (a > size_of(l.type) && size_t(l.ld) * size_of(l.type) % a)
        a /= 2;
    return std::max(a, uint32_t(size_of(l.type)));
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                              cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *returned)
{
    if (!h)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!preference || wanted < 1 || !results || !returned)
        return CUBLAS_STATUS_INVALID_VALUE;
    *returned = 0;
    if (cublasStatus_t s = check(d, A, B, C, D); s != CUBLAS_STATUS_SUCCESS)
        return s;
    const Layout *all[4] = {A, B, C, D};
    uint32_t alignment[4], least = 16;
    for (int i = 0; i < 4; i++) {
        alignment[i] = alignment_of(preference->alignment[i], *all[i]);
        least = std::min(least, alignment[i]);
    }
    if (is_fp8(A->type) && least < 16)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    /* the fastest first: which one that is depends on the shape, as it does on a GPU */
    uint64_t first = (D->rows + D->cols + A->cols) / 8 % ALGOS;
    for (uint64_t i = 0; i < ALGOS && *returned < wanted; i++) {
        uint64_t algo = (first + i) % ALGOS;
        if (algo && least < 16)
            continue;
        if (algo == 1 && !(preference->reduction & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE))
            continue;
        if (workspace_of(algo, *D) > preference->workspace)
            continue;
        cublasLtMatmulHeuristicResult_t *r = &results[(*returned)++];
        *r = {};
        r->algo.data[0] = MAGIC;
        r->algo.data[1] = algo;
        for (int j = 0; j < 4; j++)
            r->algo.data[2 + j] =
                algo || is_fp8(A->type) ? alignment[j] : size_of(all[j]->type);
        r->workspaceSize = workspace_of(algo, *D);
        r->state = CUBLAS_STATUS_SUCCESS;
        r->wavesCount = 1;
    }
    return *returned ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                       cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                       cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    if (!h)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!algo || !result || algo->data[0] != MAGIC || algo->data[1] >= ALGOS)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (cublasStatus_t s = check(d, A, B, C, D); s != CUBLAS_STATUS_SUCCESS)
        return s;
    const Layout *all[4] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        if (algo->data[2 + i] > alignment_of(16, *all[i]))
            return CUBLAS_STATUS_NOT_SUPPORTED;
    *result = {*algo, workspace_of(algo->data[1], *D), CUBLAS_STATUS_SUCCESS, 1, {}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t what,
                                                    const void *value, size_t bytes)
{
    uint32_t v = 0;
    if (!algo || algo->data[0] != MAGIC || !value || bytes != sizeof v)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&v, value, sizeof v);
    if (what == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
        return v == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE ? CUBLAS_STATUS_SUCCESS
                                                           : CUBLAS_STATUS_NOT_SUPPORTED;
    if (what != CUBLASLT_ALGO_CONFIG_SPLITK_NUM || v < 1 || v > 2)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    algo->data[1] = v == 2;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t what,
                                                    void *value, size_t bytes, size_t *written)
{
    if (!algo || algo->data[0] != MAGIC)
        return CUBLAS_STATUS_INVALID_VALUE;
    uint32_t v = 0;
    switch (what) {
    case CUBLASLT_ALGO_CONFIG_ID:
        v = uint32_t(algo->data[1]);
        break;
    case CUBLASLT_ALGO_CONFIG_SPLITK_NUM:
        v = algo->data[1] == 1 ? 2 : 1;
        break;
    case CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME:
        v = algo->data[1] == 1 ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : 0;
        break;
    default:
        break;
    }
    if (written)
        *written = sizeof v;
    if (!value || bytes < sizeof v)
        return bytes || value ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
    memcpy(value, &v, sizeof v);
    return CUBLAS_STATUS_SUCCESS;
}

/* ------------------------------------------------------------------------------------------------
 * The product. */

struct Fp8Values { /* of every code */
    float of[256];
    explicit Fp8Values(__nv_fp8_interpretation_t kind)
    {
        for (int i = 0; i < 256; i++)
            of[i] = fp8_float(uint8_t(i), kind);
    }
};
static float read(const void *p, size_t i, cudaDataType_t t)
{
    if (t == CUDA_R_32F)
        return static_cast<const float *>(p)[i];
    if (is_fp8(t)) {
        static const Fp8Values values[2] = {Fp8Values(__NV_E4M3), Fp8Values(__NV_E5M2)};
        return values[t == CUDA_R_8F_E5M2].of[static_cast<const uint8_t *>(p)[i]];
    }
    uint16_t bits = static_cast<const uint16_t *>(p)[i];
    return t == CUDA_R_16BF ? bf16_float(bits) : half_float(bits);
}
static void write(void *p, size_t i, cudaDataType_t t, float v)
{
    if (t == CUDA_R_32F)
        static_cast<float *>(p)[i] = v;
    else
        static_cast<uint16_t *>(p)[i] = t == CUDA_R_16BF ? bf16_bits(v) : half_bits(v);
}
static float tf32(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7F800000u) == 0x7F800000u)
        return x;
    return __uint_as_float((u + 0xFFFu + (u >> 13 & 1)) & ~0x1FFFu);
}

/* A matrix as float, packed: column-major with ld = rows. */
static std::vector<float> widen(const void *from, const Layout &l, size_t offset, bool to_tf32)
{
    std::vector<float> to(l.rows * l.cols);
    for (size_t j = 0; j < l.cols; j++) {
        float *column = &to[j * l.rows];
        size_t at = offset + j * size_t(l.ld);
        for (size_t i = 0; i < l.rows; i++)
            column[i] = read(from, at + i, l.type);
        for (size_t i = 0; to_tf32 && i < l.rows; i++)
            column[i] = tf32(column[i]);
    }
    return to;
}

/* d/dx of x Phi(x) in the tanh approximation, and the function itself. */
static float gelu(float x, float *slope)
{
    const float c = 0.7978845608028654f; /* sqrt(2/pi) */
    float t = tanhf(c * (x + 0.044715f * x * x * x));
    if (slope)
        *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * c * (1 + 3 * 0.044715f * x * x);
    return 0.5f * x * (1 + t);
}

struct Product {
    Desc d;
    Layout lA, lB, lC, lD;
    const void *A, *B, *C;
    void *D, *workspace;
    size_t workspace_bytes;
    float alpha, beta;
    uint64_t algo;
    unsigned sleep; /* us */
};

static void sgemm(const Product &p, const float *a, const float *b, float *sum, size_t k0,
                  size_t k1, float beta)
{
    size_t lda = p.lA.rows, ldb = p.lB.rows;
    cblas_sgemm(CblasColMajor, p.d.transA ? CblasTrans : CblasNoTrans,
                p.d.transB ? CblasTrans : CblasNoTrans, blasint(p.lD.rows), blasint(p.lD.cols),
                blasint(k1 - k0), 1.0f, a + (p.d.transA ? k0 : k0 * lda), blasint(lda),
                b + (p.d.transB ? k0 * ldb : k0), blasint(ldb), beta, sum, blasint(p.lD.rows));
}

/* Sums over K of the rows of op(A), or columns of op(B), or over the columns of D. */
static void bias_gradient(const Product &p, const std::vector<float> &a,
                          const std::vector<float> &b, const std::vector<float> &sum)
{
    size_t m = p.lD.rows, n = p.lD.cols, k = p.d.transA ? p.lA.rows : p.lA.cols;
    bool of_a = p.d.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    bool of_b = p.d.epilogue == CUBLASLT_EPILOGUE_BGRADB;
    for (size_t i = 0; i < (of_b ? n : m); i++) {
        double s = 0;
        for (size_t j = 0; j < (of_a || of_b ? k : n); j++)
            s += of_a   ? a[p.d.transA ? i * k + j : j * m + i]
                 : of_b ? b[p.d.transB ? j * n + i : i * k + j]
                        : sum[j * m + i];
        write(p.d.bias, i, p.lD.type, float(s));
    }
}

static void multiply(const Product &p, size_t batch)
{
    bool to_tf32 = p.d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    std::vector<float> a = widen(p.A, p.lA, batch * size_t(p.lA.batch_offset), to_tf32);
    std::vector<float> b = widen(p.B, p.lB, batch * size_t(p.lB.batch_offset), to_tf32);
    size_t m = p.lD.rows, n = p.lD.cols, k = p.d.transA ? p.lA.rows : p.lA.cols;
    std::vector<float> sum(m * n);
    if (p.algo == 1 && k > 1) {
        float *half = static_cast<float *>(p.workspace); /* really there: a smaller one shows */
        sgemm(p, a.data(), b.data(), half, 0, k / 2, 0);
        sgemm(p, a.data(), b.data(), half + m * n, k / 2, k, 0);
        for (size_t i = 0; i < m * n; i++)
            sum[i] = half[i] + half[m * n + i];
    } else {
        size_t piece = p.algo == 2 ? size_t(PIECE) : k;
        for (size_t at = 0; at < k; at += piece)
            sgemm(p, a.data(), b.data(), sum.data(), at, std::min(at + piece, k), at ? 1.0f : 0.0f);
    }
    float alpha = p.alpha; /* scales are read when the product is made, not when it is asked for */
    for (const float *scale : p.d.scale)
        alpha *= scale ? *scale : 1.0f;
    size_t offC = batch * size_t(p.lC.batch_offset), offD = batch * size_t(p.lD.batch_offset);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < m; i++) {
            float v = alpha * sum[j * m + i];
            if (p.beta != 0)
                v += p.beta * read(p.C, offC + j * size_t(p.lC.ld) + i, p.lC.type);
            if (has(p.d, CUBLASLT_EPILOGUE_BIAS))
                v += read(p.d.bias, i, p.lD.type);
            size_t aux = j * size_t(p.d.aux_ld) + i;
            if (has(p.d, CUBLASLT_EPILOGUE_GELU)) {
                if (has(p.d, 128))
                    write(p.d.aux, aux, p.lD.type, v);
                v = gelu(v, nullptr);
            } else if (has(p.d, 64)) {
                float slope;
                gelu(read(p.d.aux, aux, p.lD.type), &slope);
                v *= slope;
            }
            sum[j * m + i] = v;
            write(p.D, offD + j * size_t(p.lD.ld) + i, p.lD.type, v);
        }
    if (uses_bias(p.d) && !has(p.d, CUBLASLT_EPILOGUE_BIAS))
        bias_gradient(p, a, b, sum);
}

/* The library owns the workspace from the first byte to the last: whoever keeps data there, or in
 * memory that overlaps it, finds NaNs. Beyond the first MiB a line of every page must do. */
static void spoil_workspace(const Product &p)
{
    char *w = static_cast<char *>(p.workspace);
    size_t all = std::min(p.workspace_bytes, size_t(1) << 20);
    if (w)
        memset(w, 0xFF, all);
    for (size_t at = all; w && at < p.workspace_bytes; at += 4096)
        memset(w + at, 0xFF, std::min(size_t(64), p.workspace_bytes - at));
}

/* Operands must exist, be as aligned as the algorithm relies on, and not be overwritten. */
static bool pointers_ok(const Product &p, const uint64_t *alignment)
{
    const void *all[4] = {p.A, p.B, p.beta != 0 ? p.C : nullptr, p.D};
    const Layout *layout[4] = {&p.lA, &p.lB, &p.lC, &p.lD};
    for (int i = 0; i < 4; i++) {
        if (i == 2 && p.beta == 0)
            continue;
        if (!all[i] || !is_device(all[i], bytes_of(*layout[i])))
            return false;
        if (uintptr_t(all[i]) % (alignment ? alignment[i] : size_of(layout[i]->type)))
            return false;
    }
    for (const float *scale : p.d.scale)
        if (scale && (!is_device(scale, sizeof *scale) || uintptr_t(scale) % 4))
            return false;
    size_t bias = p.d.epilogue == CUBLASLT_EPILOGUE_BGRADB ? p.lD.cols : p.lD.rows;
    if (uses_bias(p.d) && (!p.d.bias || !is_device(p.d.bias, bias * size_of(p.lD.type))))
        return false;
    if (has(p.d, 128)) {
        Layout aux = p.lD;
        aux.ld = p.d.aux_ld;
        if (!p.d.aux || uintptr_t(p.d.aux) % 16 || !is_device(p.d.aux, bytes_of(aux)))
            return false;
    }
    if (p.beta != 0 && p.C == p.D && p.lC.ld != p.lD.ld)
        return false;
    return !p.workspace_bytes ||
           (uintptr_t(p.workspace) % 16 == 0 && is_device(p.workspace, p.workspace_bytes));
}

/* What tests let algorithms do: each setting is a set of bits, 1 << number. WRONG: a corner of D is
 * twice what it should be; SILENT: D is not written; FAIL: it cannot be launched; SLOW: it takes
 * VIT_STANDIN_LT_MS longer (and with VIT_STANDIN_LT_SLOW_GELU, whatever has such an epilogue: 1, or
 * has none: 2). */
static bool does(const char *what, uint64_t algo)
{
    return setting(what, 0) >> algo & 1;
}
/* The first after the host has waited takes longer by chance, as on a GPU that waits for the host:
 * up to VIT_STANDIN_LT_IDLE ms. */
static unsigned delay(const Product &p)
{
    static Random random = {uint64_t(setting("VIT_STANDIN_SEED", 1))};
    bool slow = does("VIT_STANDIN_LT_SLOW", p.algo);
    slow |= setting("VIT_STANDIN_LT_SLOW_GELU", 0) == (has(p.d, CUBLASLT_EPILOGUE_GELU) ? 1 : 2);
    unsigned us = slow ? 1000 * unsigned(setting("VIT_STANDIN_LT_MS", 20)) : 0;
    return us + (idle() ? random.below(1 + 1000 * unsigned(setting("VIT_STANDIN_LT_IDLE", 0))) : 0);
}
static void spoil_corner(const Product &p)
{
    for (size_t j = 0; j < 8 && j < p.lD.cols; j++)
        for (size_t i = 0; i < 8 && i < p.lD.rows; i++) {
            size_t at = j * size_t(p.lD.ld) + i;
            write(p.D, at, p.lD.type, 2 * read(p.D, at, p.lD.type));
        }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t Adesc, const void *B,
                              cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C,
                              cublasLtMatrixLayout_t Cdesc, void *D, cublasLtMatrixLayout_t Ddesc,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    if (!h)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!alpha || !beta || (workspace_bytes && !workspace))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (cublasStatus_t s = check(d, Adesc, Bdesc, Cdesc, Ddesc); s != CUBLAS_STATUS_SUCCESS)
        return s;
    cublasLtMatmulHeuristicResult_t checked;
    if (algo) {
        cublasStatus_t s =
            cublasLtMatmulAlgoCheck(h, d, Adesc, Bdesc, Cdesc, Ddesc, algo, &checked);
        if (s != CUBLAS_STATUS_SUCCESS)
            return s;
        if (checked.workspaceSize > workspace_bytes)
            return CUBLAS_STATUS_INVALID_VALUE;
    }
    Product p = {*d,
                 *Adesc,
                 *Bdesc,
                 *Cdesc,
                 *Ddesc,
                 A,
                 B,
                 C,
                 D,
                 workspace,
                 workspace_bytes,
                 *static_cast<const float *>(alpha),
                 *static_cast<const float *>(beta),
                 algo ? algo->data[1] : 0,
                 0};
    if (!pointers_ok(p, algo ? algo->data + 2 : nullptr))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (does("VIT_STANDIN_LT_FAIL", p.algo))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    const bool silent = does("VIT_STANDIN_LT_SILENT", p.algo);
    const bool wrong = does("VIT_STANDIN_LT_WRONG", p.algo);
    p.sleep = delay(p);
    products[p.algo]++;
    gelu_products += has(p.d, CUBLASLT_EPILOGUE_GELU);
    cudaError_t e = enqueue(stream, [p, silent, wrong] {
        usleep(p.sleep);
        spoil_workspace(p);
        for (size_t i = 0; !silent && i < size_t(p.lD.batch); i++)
            multiply(p, i);
        if (wrong)
            spoil_corner(p);
        spoil_workspace(p);
        return true;
    });
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
