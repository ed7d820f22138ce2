/* gemm.cuh - matrix products, by cuBLASLt or of our own, and the linear layers made of them.
 *
 * The library multiplies column-major matrices; a row-major matrix [rows, cols] with leading
 * dimension ld is the column-major [cols, rows] with the same ld, so that every product below is
 * written for the transposed result. Which of its many algorithms is fastest for a shape, the
 * library guesses; here each is timed once, on a step's own operands, and held against the others'
 * results, before the product is made for the first time: a run and its repetition have the same
 * bits. The choice is kept: in a file per GPU and library version, and in the run's directory,
 * since another algorithm adds in another order. On Hopper products of our own (cuda/gemm_sm90.cuh)
 * are timed beside the library's, and those that do what it cannot beside its product and a pass
 * over the result: what is not faster is never used.
 *
 * Order: a product and its key, choosing an algorithm, keeping choices, linear layers.
 */
#pragma once

#include "cuda/fp8.cuh"
#include "cuda/gemm_sm90.cuh"
#include "cuda/layers.cuh"

#include <cublasLt.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

static void cublas_check(cublasStatus_t s, const char *what)
{
    if (s != CUBLAS_STATUS_SUCCESS)
        die("run scripts/gpu_check.sh correct; its log helps to find the cause",
            "cuBLASLt: %s failed with status %d", what, (int)s);
}
#define CHECK_CUBLAS(call) cublas_check(call, #call)

/* ------------------------------------------------------------------------------------------------
 * A product: D[m,n] = epilogue(op(A)[m,k] op(B)[k,n] + C), column-major */

struct Product {
    const void *A, *B;
    bool ta, tb; /* is op() a transposition? */
    void *D;
    long m, n, k, lda, ldb, ldd;
    int in_a, in, out; /* F32, BF16, F16: of A and B; of C, D, bias and aux. A and B may be in
                          8 bits, as numbers to be multiplied by these two (device memory): */
    const dev *scale_a, *scale_b;
    dev *scale_d = nullptr;  /* Fp8Scale of a D in 8 bits, which is both its copies; then bias and
                                aux are BF16 */
    const void *C = nullptr; /* nullptr: nothing is added */
    long ldc = 0;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr; /* [m] */
    void *aux = nullptr;        /* [m,n]: what goes into GELU */
    long ldaux = 0;
    /* What products of our own do, and the library's where an epilogue says it: D = act(aux) with
     * aux = op(A) op(B) + bias. With `slope`, D = op(A) op(B) act'(aux), and its sums over n. */
    int act = ACT_NONE;
    bool slope = false;
    dev *sums = nullptr; /* [m] or NULL */

    Product(const Tensor &a, bool ta, const Tensor &b, bool tb, const Tensor &d, long m, long n,
            long k)
        : A(a.p), B(b.p), ta(ta), tb(tb), D(d.p), m(m), n(n), k(k), lda(a.ld), ldb(b.ld), ldd(d.ld),
          in_a(a.type), in(b.type), out(d.type), scale_a(is_fp8(a.type) ? a.scale : nullptr),
          scale_b(is_fp8(b.type) ? b.scale : nullptr)
    {
    }
    void leave_in(const Tensor &d)
    {
        D = d.p;
        ldd = d.ld;
        out = d.type;
        scale_d = is_fp8(d.type) ? d.scale : nullptr;
    }
    bool library() const /* can it do that? */
    {
        return !act || epilogue == CUBLASLT_EPILOGUE_GELU_BIAS ||
               epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    }
};

static cublasLtHandle_t lt;
static void *workspace; /* of all products: they run one after another */
static size_t workspace_bytes;

static cudaDataType_t data_type(int type)
{
    static const cudaDataType_t types[] = {CUDA_R_32F, CUDA_R_16BF, CUDA_R_16F, CUDA_R_8F_E4M3,
                                           CUDA_R_8F_E5M2}; /* by F32 .. E5M2 */
    return types[type];
}

/* The largest power of two up to 128 that divides the address: more makes no difference. */
static uint32_t alignment(const void *p)
{
    uint32_t a = 128;
    while ((uintptr_t)p % a)
        a /= 2;
    return a;
}

/* Everything that the choice of an algorithm depends on, as text. */
static std::string product_key(const Product &p)
{
    char text[256];
    snprintf(text, sizeof text,
             "%ldx%ldx%ld %c%c ld%ld,%ld,%ld,%ld,%ld t%d,%d,%d e%d c%d a%u,%u,%u,%u,%u,%u", p.m,
             p.n, p.k, p.ta ? 'T' : 'N', p.tb ? 'T' : 'N', p.lda, p.ldb, p.C ? p.ldc : 0, p.ldd,
             p.aux ? p.ldaux : 0, p.in, p.out, cu.device.tf32, (int)p.epilogue, p.C != NULL,
             alignment(p.A), alignment(p.B), alignment(p.C), alignment(p.D), alignment(p.aux),
             alignment(p.bias));
    std::string key = text;
    if (!p.library())
        key += " act" + std::to_string(p.act) + (p.slope ? p.sums ? " slope, sums" : " slope" : "");
    if (is_fp8(p.in))
        key += " A t" + std::to_string(p.in_a);
    return key;
}

/* The library's descriptions of a product, destroyed with the object. */
struct Description {
    cublasLtMatmulDesc_t op = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;

    template <class T> void set(cublasLtMatmulDescAttributes_t what, T value)
    {
        CHECK_CUBLAS(cublasLtMatmulDescSetAttribute(op, what, &value, sizeof value));
    }
    explicit Description(const Product &p)
    {
        cublasComputeType_t compute =
            p.in == F32 && cu.device.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
        CHECK_CUBLAS(cublasLtMatmulDescCreate(&op, compute, CUDA_R_32F));
        set(CUBLASLT_MATMUL_DESC_TRANSA, p.ta ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, p.tb ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
        if (p.bias) {
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
            set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.out));
        }
        if (p.aux) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
            set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)p.ldaux);
        }
        if (is_fp8(p.in)) {
            set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.scale_a);
            set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.scale_b);
            /* sums of 14 bits will do in the forward pass alone, as in Transformer Engine */
            set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)(p.in == E4M3));
        }
        cudaDataType_t in_a = data_type(p.in_a), in = data_type(p.in), out = data_type(p.out);
        CHECK_CUBLAS(
            cublasLtMatrixLayoutCreate(&a, in_a, p.ta ? p.k : p.m, p.ta ? p.m : p.k, p.lda));
        CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&b, in, p.tb ? p.n : p.k, p.tb ? p.k : p.n, p.ldb));
        CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&c, out, p.m, p.n, p.C ? p.ldc : p.ldd));
        CHECK_CUBLAS(cublasLtMatrixLayoutCreate(&d, out, p.m, p.n, p.ldd));
    }
    ~Description()
    {
        cublasLtMatrixLayoutDestroy(d);
        cublasLtMatrixLayoutDestroy(c);
        cublasLtMatrixLayoutDestroy(b);
        cublasLtMatrixLayoutDestroy(a);
        cublasLtMatmulDescDestroy(op);
    }
    Description(const Description &) = delete;
};

/* ------------------------------------------------------------------------------------------------
 * Products of our own */

/* VIT_GEMM, for tests (of attention_sm90.cuh too): `sm90` or `sm90:N` makes them wherever they can
 * be, in the Nth way there is, and times nothing; `cublaslt` makes none. */
static struct {
    bool own, library;
    size_t way;
} forced;
long cuda_own_products; /* how many have been launched; for tests */

static void read_forced()
{
    const char *said = getenv("VIT_GEMM");
    forced = {};
    if (!said || !*said)
        return;
    forced.library = strcmp(said, "cublaslt") == 0;
    forced.own = strcmp(said, "sm90") == 0 || sscanf(said, "sm90:%zu", &forced.way) == 1;
    if (!forced.library && !forced.own)
        die("sm90, sm90:1, ... or cublaslt", "VIT_GEMM=%s names no matrix products", said);
    if (forced.own && !sm90_here())
        die("leave VIT_GEMM out", "VIT_GEMM=%s: this program has no such products for an sm_%d%d",
            said, cu.gpu.major, cu.gpu.minor);
}

/* The same product by rows: D^T [n,m] = op(B)^T [n,k] op(A)^T [k,m] */
static OwnProduct own_product(const Product &p)
{
    OwnProduct o = {};
    o.type = p.in;
    o.A = p.B, o.lda = p.ldb, o.a_along_k = !p.tb;
    o.B = p.A, o.ldb = p.lda, o.b_along_k = p.ta;
    o.end = p.slope ? END_SLOPE : p.act ? END_ACT : p.out == F32 ? END_SUM : END_PLAIN;
    o.act = p.act;
    o.x.M = (int)p.n, o.x.N = (int)p.m, o.x.K = (int)p.k;
    o.x.parts = 1;
    o.x.D = p.D, o.x.ldd = p.ldd;
    o.x.bias = p.bias;
    o.x.addend = p.slope ? p.aux : p.C;
    o.x.ldadd = p.slope ? p.ldaux : p.ldc;
    o.x.pre = p.act && !p.slope ? p.aux : nullptr;
    o.x.ldpre = p.ldaux;
    o.sums = (float *)p.sums;
    o.x.scale_a = (const float *)p.scale_b, o.x.scale_b = (const float *)p.scale_a;
    o.room = workspace, o.room_size = workspace_bytes;
    if (is_fp8(p.out))
        o.x.eight = fp8_copies_of({(dev *)p.D, p.ldd, p.out, p.scale_d}, p.n, p.m);
    return o;
}

/* The ways to make it; none: it isn't for them. */
static std::vector<int> own_ways(const Product &p)
{
    const int out = is_fp8(p.in) ? BF16 : p.in; /* where it is no sum */
    bool types = p.out == F32 ? !p.C && !p.bias : p.out == out;
    if (is_fp8(p.out))
        types = is_fp8(p.in) && p.act && p.scale_d;
    if (is_fp8(p.in))
        types &= p.in_a == E4M3 && p.scale_a && p.scale_b;
    return types && !forced.library ? sm90_ways(own_product(p)) : std::vector<int>();
}

/* ------------------------------------------------------------------------------------------------
 * Choosing an algorithm */

struct Choice {
    cublasLtMatmulAlgo_t algo;
    int own;       /* not 0: a way to make it by ourselves, and no algorithm of the library's */
    bool known;    /* false: the library can't do this product, or other kernels do it faster */
    bool measured; /* by timing; else the library's own guess */
    bool final;    /* it will not be timed any more */
    bool checked;  /* it may come from a file, which may say anything */
    bool compared; /* its result with other algorithms', and there was something to compare */
};
/* Candidates under one limit of workspace: the first one alone, where nothing is timed, or all. */
enum { FEW = 8, MOST = 64 };
using Choices = std::map<std::string, Choice>;
static cublasStatus_t multiply(const Product &p, const Description &x, const Choice &c)
{
    float one = 1, beta = p.C ? 1.0f : 0.0f;
    if (c.own) {
        sm90_multiply(own_product(p), c.own);
        cuda_own_products++;
        return CUBLAS_STATUS_SUCCESS;
    }
    return cublasLtMatmul(lt, x.op, &one, p.A, x.a, p.B, x.b, &beta, p.C ? p.C : p.D, x.c, p.D, x.d,
                          &c.algo, workspace, workspace_bytes, cu.stream);
}

static Choices shared;       /* the same in all ranks: the first one's */
static Choices own;          /* of products that other ranks may not have: in evaluation */
static bool choices_changed; /* since they were written to the cache */

/* Set while a step runs. Outside: one rank by itself, and whatever is new may be timed. */
struct Choosing {
    bool together = false; /* all ranks make the same products */
    bool time = true;      /* now */
};
static Choosing choosing;

/* What the library proposes, best guess first, without repetitions, under several limits of
 * workspace: larger ones let it split sums, which pays for weight gradients (few tiles, long sums).
 * Sums over parts are never made in 16 bits. */
static std::vector<Choice> candidates(const Product &p, const Description &x, int most)
{
    static cublasLtMatmulHeuristicResult_t found[MOST];
    std::vector<Choice> list;
    if (!p.library())
        return list;
    for (size_t limit : {workspace_bytes, workspace_bytes / 4, (size_t)0}) {
        cublasLtMatmulPreference_t want;
        CHECK_CUBLAS(cublasLtMatmulPreferenceCreate(&want));
        auto set = [&](cublasLtMatmulPreferenceAttributes_t what, auto value) {
            CHECK_CUBLAS(cublasLtMatmulPreferenceSetAttribute(want, what, &value, sizeof value));
        };
        uint32_t schemes =
            p.out == F32 ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, limit);
        set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.A));
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.B));
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.C ? p.C : p.D));
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.D));
        int n = 0;
        cublasStatus_t s =
            cublasLtMatmulAlgoGetHeuristic(lt, x.op, x.a, x.b, x.c, x.d, want, most, found, &n);
        cublasLtMatmulPreferenceDestroy(want);
        for (int i = 0; s == CUBLAS_STATUS_SUCCESS && i < n; i++) {
            const cublasLtMatmulAlgo_t &algo = found[i].algo;
            bool seen = found[i].state != CUBLAS_STATUS_SUCCESS;
            for (const Choice &other : list)
                seen |= memcmp(&other.algo, &algo, sizeof algo) == 0;
            Choice c = {};
            c.algo = algo;
            c.known = c.final = true;
            if (!seen)
                list.push_back(c);
        }
        if (most == FEW && !list.empty())
            break;
    }
    return list;
}

/* Whether this product can be made so, in the memory that there is */
static bool fits(const Product &p, const Description &x, const Choice &c)
{
    cublasLtMatmulHeuristicResult_t result;
    const std::vector<int> ways = c.own ? own_ways(p) : std::vector<int>();
    if (c.own || !p.library())
        return std::count(ways.begin(), ways.end(), c.own) > 0;
    return cublasLtMatmulAlgoCheck(lt, x.op, x.a, x.b, x.c, x.d, &c.algo, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= workspace_bytes;
}

/* Weight gradients have few tiles and long sums: the best guesses again, with the sum cut into
 * parts that are added in full precision. */
static void add_split_sums(const Product &p, const Description &x, std::vector<Choice> &list)
{
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const size_t best = std::min<size_t>(list.size(), 6);
    for (size_t i = 0; p.out == F32 && p.k >= 4096 && i < best; i++)
        for (uint32_t parts : {2u, 3u, 4u, 6u, 8u, 12u}) {
            Choice c = list[i];
            auto set = [&](cublasLtMatmulAlgoConfigAttributes_t what, uint32_t value) {
                return cublasLtMatmulAlgoConfigSetAttribute(&c.algo, what, &value, sizeof value) ==
                       CUBLAS_STATUS_SUCCESS;
            };
            bool ok = set(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, parts) &&
                      set(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, scheme);
            if (ok && fits(p, x, c))
                list.push_back(c);
        }
}

/* Those of our own, the likeliest first, behind so many others. */
static void add_own(const Product &p, std::vector<Choice> &list, size_t front)
{
    for (int way : own_ways(p)) {
        Choice c = {};
        c.own = way;
        c.known = c.final = true;
        list.insert(list.begin() + (long)std::min(list.size(), front++), c);
    }
}

/* Milliseconds of one call of f, which launches kernels, among several in a row. One in front, and
 * before short ones something longer still, keeps the GPU busy while the host asks for the others
 * (3 to 10 us each): no sample holds the host's time. `about`: what a call takes. */
template <class F> static float sample(float about, F f)
{
    static cudaEvent_t from, to;
    const float brief = 0.05f;
    const int calls = about > 0.1f ? 2 : about < 0.025f ? 8 : (int)(0.2f / about);
    float ms;
    if (!from) {
        CHECK_CUDA(cudaEventCreate(&from));
        CHECK_CUDA(cudaEventCreate(&to));
    }
    if (about < brief)
        CHECK_CUDA(cudaMemsetAsync(workspace, 0, workspace_bytes, cu.stream));
    f();
    CHECK_CUDA(cudaEventRecord(from, cu.stream));
    for (int i = 0; i < calls; i++)
        f();
    CHECK_CUDA(cudaEventRecord(to, cu.stream));
    wait_event(to);
    CHECK_CUDA(cudaEventElapsedTime(&ms, from, to));
    return ms / (float)calls;
}

static float median(std::vector<float> v)
{
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

/* A short stand-in for a result: sums over parts of its elements with signs by chance. That of a
 * difference has, on average, the difference's norm (a count sketch). What was read becomes NaN:
 * an algorithm that leaves something out leaves those. */
template <class E> __global__ void sketch_kernel(float *sums, E *d, long ld, long m, long n)
{
    enum { AT_ONCE = 8 }; /* on their way: each store would else wait for the load before it */
    const long t = (long)blockIdx.x * blockDim.x + threadIdx.x, step = (long)gridDim.x * blockDim.x;
    float sum = 0;
    for (long i = t; i < m * n; i += AT_ONCE * step) {
        E *x[AT_ONCE], v[AT_ONCE];
        each<AT_ONCE>([&](int k) {
            const long at = i + k * step;
            x[k] = d + at / m * ld + at % m;
            v[k] = at < m * n ? *x[k] : E();
        });
        each<AT_ONCE>([&](int k) {
            uint32_t h = (uint32_t)(i + k * step) * 2654435761u;
            h = (h ^ h >> 15) * 2246822519u;
            if (i + k * step < m * n) {
                sum += h >> 31 ? to_float(v[k]) : -to_float(v[k]);
                *x[k] = from_float<E>(NAN);
            }
        });
    }
    sums[t] = sum;
}
using Sketch = std::vector<float>;

/* A number in 8 bits */
template <Fp8Kind KIND> struct Fp8Number {
    uint8_t bits;
};
template <Fp8Kind KIND> __device__ inline float to_float(Fp8Number<KIND> x)
{
    return fp8_value(x.bits, KIND);
}
template <> __device__ inline Fp8Number<__NV_E4M3> from_float(float x)
{
    return {(uint8_t)fp8_pair<__NV_E4M3>(x, 0)};
}
template <> __device__ inline Fp8Number<__NV_E5M2> from_float(float x)
{
    return {(uint8_t)fp8_pair<__NV_E5M2>(x, 0)};
}

template <class E> static Sketch launch_sketch_of(const Product &p)
{
    const int block = 256, grid = (int)std::clamp(p.m * p.n / (256L * block), 1L, 256L);
    const size_t n = (size_t)(grid * block);
    launch(sketch_kernel<E>, grid, block, 0, cu.stream, (float *)workspace, (E *)p.D, p.ldd, p.m,
           p.n);
    if (!is_fp8(p.out))
        return Sketch(n);
    const Fp8Cast copies = own_product(p).x.eight; /* the other one */
    launch(sketch_kernel<E>, grid, block, 0, cu.stream, (float *)workspace + n, (E *)copies.across,
           Fp8Cast::padded(p.n), Fp8Cast::padded(p.n), p.m);
    return Sketch(2 * n);
}
static Sketch launch_sketch(const Product &p)
{
    if (p.out == E4M3)
        return launch_sketch_of<Fp8Number<__NV_E4M3>>(p);
    if (p.out == E5M2)
        return launch_sketch_of<Fp8Number<__NV_E5M2>>(p);
    Sketch s;
    by_type(p.out, [&](auto e) { s = launch_sketch_of<decltype(e)>(p); });
    return s;
}

/* Seconds after which what is tried counts as a kernel that never ends: nothing else would notice,
 * or say which. Tests lower it. */
double cuda_trial_limit = 120;

/* exit() would wait for that kernel. */
static void (*farewell)();
static void leave_without_waiting()
{
    if (farewell)
        farewell();
    fflush(NULL);
    _exit(1);
}
static void wait_for_trial(const Product &p)
{
    static cudaEvent_t done;
    if (!done)
        CHECK_CUDA(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(done, cu.stream));
    for (double since = now(); cudaEventQuery(done) == cudaErrorNotReady; usleep(50))
        if (now() - since > cuda_trial_limit) {
            farewell = die_farewell;
            die_farewell = leave_without_waiting;
            die("VIT_GEMM=cublaslt does without this program's own kernels for Hopper",
                "a kernel that was tried for %s has not ended after %g s", product_key(p).c_str(),
                cuda_trial_limit);
        }
    wait_stream(cu.stream);
}

/* Of the algorithm's result; empty where it does not work. */
static Sketch try_algorithm(const Product &p, const std::function<cublasStatus_t()> &make)
{
    launch_sketch(p); /* what is there becomes NaN */
    if (make() != CUBLAS_STATUS_SUCCESS) {
        (void)cudaGetLastError();
        return {};
    }
    Sketch s = launch_sketch(p);
    wait_for_trial(p);
    CHECK_CUDA(cudaMemcpy(s.data(), workspace, s.size() * sizeof(float), cudaMemcpyDefault));
    return s;
}
static Sketch try_algorithm(const Product &p, const Description &x, const Choice &c)
{
    return try_algorithm(p, [&] { return multiply(p, x, c); });
}

/* How far two right results may be from each other: relative norm. 16 bits: fewer than all elements
 * round another way. Sums in another order: 2^-24 times the root of how many there are. */
static double allowed_difference(const Product &p)
{
    if (is_fp8(p.in)) /* and sums of 14 bits */
        return 1e-2;
    if (p.out == BF16)
        return 4e-3;
    return p.in == F32 && !cu.device.tf32 ? 1e-4 : 2e-3;
}
static double norm2(const Sketch &s)
{
    double n = 0;
    for (float x : s)
        n += (double)x * x;
    return n;
}
static bool agree(const Sketch &a, const Sketch &b, double allowed)
{
    Sketch d(a);
    for (size_t i = 0; i < d.size(); i++)
        d[i] -= b[i];
    return norm2(d) <= allowed * allowed * norm2(b); /* no NaN agrees with anything */
}

struct Entrant {
    Choice choice;
    Sketch result;
    float ms;
};

/* Leaves those whose results agree: with that of the first three which most agree with. Where not
 * even it agrees with itself, since numbers have overflown, none is left. */
static void leave_agreeing(std::vector<Entrant> &all, double allowed)
{
    long most = 0;
    Sketch best;
    for (size_t i = 0; i < all.size() && i < 3; i++) {
        const Sketch &it = all[i].result;
        long n = std::count_if(all.begin(), all.end(),
                               [&](const Entrant &e) { return agree(e.result, it, allowed); });
        if (n > most) {
            most = n;
            best = it;
        }
    }
    auto differs = [&](const Entrant &e) { return most == 0 || !agree(e.result, best, allowed); };
    all.erase(std::remove_if(all.begin(), all.end(), differs), all.end());
    for (Entrant &e : all)
        e.choice.compared = norm2(best) > 0;
}

/* Other kernels that do what the product does, or none. */
using Instead = std::function<void()>;

/* What the library cannot do is compared with what is done instead, itself no candidate. */
static std::vector<Entrant> compared_with(const Product &p, const Instead &instead)
{
    if (p.library() || !instead)
        return {};
    auto make = [&] {
        instead();
        return CUBLAS_STATUS_SUCCESS;
    };
    return {{Choice(), try_algorithm(p, make), INFINITY}};
}

/* Every candidate once, to see whether it works and what it makes, and once for its time; three
 * times those that are not slow. It ends after so many seconds, with those that had their turn. */
static std::vector<Entrant> try_all(const Product &p, const Description &x,
                                    const std::vector<Choice> &list, const Instead &instead)
{
    const double until = now() + 3;
    float best = INFINITY, about = 1;
    std::vector<Entrant> all = compared_with(p, instead);
    for (const Choice &c : list) {
        if (!all.empty() && now() > until)
            break;
        Sketch result = try_algorithm(p, x, c);
        if (result.empty())
            continue;
        auto again = [&] { return sample(about, [&] { CHECK_CUBLAS(multiply(p, x, c)); }); };
        float ms = again();
        if (ms <= 2 * best) { /* clocks rise with the first ones */
            about = std::min(about, ms);
            ms = median({ms, again(), again()});
        }
        best = std::min(best, ms);
        all.push_back({c, result, ms});
    }
    return all;
}

/* The best few of all candidates in turns. *ms: its time */
static Choice fastest_of(const Product &p, const Description &x, const std::vector<Choice> &list,
                         const Instead &instead, float *ms)
{
    enum { FINALISTS = 5, ROUNDS = 5 };
    std::vector<Entrant> all = try_all(p, x, list, instead);
    Choice guess = all.empty() ? Choice() : all[p.library() ? 0 : all.size() - 1].choice;
    leave_agreeing(all, allowed_difference(p));
    if (all.empty()) /* nothing works, or nothing can be compared: it is tried again */
        return guess;
    std::sort(all.begin(), all.end(),
              [](const Entrant &a, const Entrant &b) { return a.ms < b.ms; });
    while (all.size() > FINALISTS || all.back().ms > 1.5f * all[0].ms)
        all.pop_back();
    std::vector<std::vector<float>> times(all.size());
    for (int r = 0; all.size() > 1 && r < ROUNDS; r++)
        for (size_t i = 0; i < all.size(); i++)
            times[i].push_back(
                sample(all[i].ms, [&] { CHECK_CUBLAS(multiply(p, x, all[i].choice)); }));
    for (size_t i = 0; all.size() > 1 && i < all.size(); i++)
        all[i].ms = median(times[i]);
    const Entrant &best = *std::min_element(
        all.begin(), all.end(), [](const Entrant &a, const Entrant &b) { return a.ms < b.ms; });
    Choice c = best.choice;
    c.measured = true;
    *ms = best.ms;
    return c;
}

/* Whether what was chosen when there was nothing to compare (gradients below a new head are zero)
 * makes what others make. */
static bool confirmed(const Product &p, const Description &x, const std::vector<Choice> &list,
                      const Instead &instead, Choice &was)
{
    std::vector<Entrant> all;
    for (size_t i = 0; i <= std::min<size_t>(list.size(), 3); i++) {
        const Choice &c = i == 0 ? was : list[i - 1];
        Sketch result = try_algorithm(p, x, c);
        if (!result.empty())
            all.push_back({c, result, (float)i});
    }
    std::rotate(all.begin(), all.begin() + !all.empty(), all.end()); /* the others have their say */
    for (const Entrant &e : compared_with(p, instead))
        all.insert(all.begin(), e);
    leave_agreeing(all, allowed_difference(p));
    for (const Entrant &e : all)
        if (e.ms == 0)
            was.compared = e.choice.compared;
    return !all.empty() && all.back().ms == 0;
}

/* Timing writes the result again and again. Where that is what is added to, it goes elsewhere, if
 * there is room; if there is not, the library's guess stays. f(the product, its description) */
template <class F> static Choice elsewhere(Product p, const Choice &otherwise, F f)
{
    if (p.C != p.D)
        return f(p);
    dev *d = cuda_alloc((size_t)(p.ldd * p.n) * type_size(p.out));
    if (!d)
        return otherwise;
    p.D = d;
    Choice c = f(p);
    cuda_release(d);
    return c;
}

static bool capturing()
{
    cudaStreamCaptureStatus status;
    CHECK_CUDA(cudaStreamIsCapturing(cu.stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

static bool timing; /* something is being timed now */

static bool may_time()
{
    return cu.device.measure && choosing.time && !timing && !capturing();
}

/* By timing. `was`: what was chosen before, if that is to be confirmed. */
static Choice choose_by_time(const Product &p, const Description &x, const Choice *was,
                             const Instead &instead)
{
    std::vector<Choice> list = candidates(p, x, MOST);
    add_split_sums(p, x, list);
    add_own(p, list, 3); /* behind those that all are compared with */
    if (list.empty())
        return Choice();
    timing = true;
    Choice c = elsewhere(p, was ? *was : list[0], [&](const Product &q) {
        Choice before = was ? *was : Choice();
        float ms = INFINITY;
        if (was && was->measured && (!was->known || confirmed(q, x, list, instead, before)))
            return before;
        Choice now = fastest_of(q, x, list, instead, &ms);
        /* 2%: among equals, one kernel rather than two */
        if (now.measured && now.known && instead && sample(ms, instead) < 0.98f * ms)
            now.known = median({sample(ms, instead), sample(ms, instead), sample(ms, instead)}) >=
                        0.98f * ms;
        return now;
    });
    timing = false;
    return c;
}

/* Without: the first of the library's guesses that it can launch, which it then has. A plain
 * product that the library refuses is one of our own, if those take it: which sizes of 8-bit
 * matrices it multiplies has differed from version to version. */
static Choice choose_by_guess(const Product &p, const Description &x, bool *launched)
{
    std::vector<Choice> list = candidates(p, x, FEW);
    if (!p.act)
        add_own(p, list, list.size());
    for (const Choice &c : list) {
        *launched = multiply(p, x, c) == CUBLAS_STATUS_SUCCESS;
        if (*launched)
            return c;
        (void)cudaGetLastError();
    }
    return Choice();
}

/* Where all ranks do the same, they take the choice of the first, or their sums would differ. */
static Choice choose(const Product &p, const Description &x, const Choice *was,
                     const Instead &instead, bool *launched)
{
    Choice c = {};
    bool time = may_time();
    if (time) /* with nothing beside it; and no rank may wait for a sum that another has not begun
               */
        settle();
    if (cu.device.rank == 0 || !choosing.together)
        c = time ? choose_by_time(p, x, was, instead) : choose_by_guess(p, x, launched);
    if (choosing.together)
        cu.device.broadcast(&c, sizeof c);
    c.final = !cu.device.measure || (time && (c.compared || !c.known));
    choices_changed |= c.measured;
    return c;
}

/* Choices of the products that are made now. What is shared changes only where all ranks make the
 * product: otherwise some would have to choose anew, which is done together, and others not. So a
 * rank alone begins with a copy. */
static bool alone()
{
    return cu.device.ranks > 1 && !choosing.together;
}
static Choice *known_choice(const std::string &key)
{
    Choices &mine = alone() ? own : shared;
    auto at = mine.find(key);
    if (alone() && at == mine.end() && shared.count(key))
        at = mine.emplace(key, shared[key]).first;
    return at == mine.end() ? nullptr : &at->second;
}

/* Whether product() would choose now. */
static bool undecided(const Product &p)
{
    if (forced.own && !own_ways(p).empty())
        return false;
    const Choice *c = known_choice(product_key(p));
    return may_time() && (!c || !c->final);
}

/* One that a 32-bit number can count: see product(). */
static bool product_part(const Product &p, const Instead &instead)
{
    Description x(p);
    const std::vector<int> ways = own_ways(p);
    if (!p.library() && ways.empty())
        return false;
    if (forced.own && !ways.empty()) {
        Choice own = {};
        own.own = ways[std::min(forced.way, ways.size() - 1)];
        CHECK_CUBLAS(multiply(p, x, own));
        return true;
    }
    std::string key = product_key(p);
    Choice *c = known_choice(key);
    bool launched = false;
    /* what a file says is held to what the library says, in every rank alike: they have the same
     * GPUs and libraries */
    if (c && c->known && !c->checked && !fits(p, x, *c))
        c = nullptr;
    if (!c || (!c->final && may_time())) {
        Choice chosen = choose(p, x, c, instead, &launched);
        c = &((alone() ? own : shared)[key] = chosen);
    }
    c->checked = true;
    if (c->known && !launched)
        CHECK_CUBLAS(multiply(p, x, *c));
    return c->known;
}

/* Whether kernels of our own for Hopper make `out` [rows, columns] faster than `portable`: found
 * out, kept and forced as for products. */
static Choice time_own(const Tensor &out, long rows, long columns, const Instead &ours,
                       const Instead &portable)
{
    const Product p(out, false, out, false, out, columns, rows, 0);
    auto made = [&](const Instead &f) {
        return try_algorithm(p, [&] {
            f();
            return CUBLAS_STATUS_SUCCESS;
        });
    };
    auto ms = [&](const Instead &f) {
        const float about = sample(1, f);
        return median({sample(about, f), sample(about, f), sample(about, f)});
    };
    Choice c = {};
    timing = true;
    const Sketch right = made(portable), mine = made(ours);
    c.own = 1;
    c.compared = norm2(right) > 0;
    c.known = agree(mine, right, 2 * allowed_difference(p)) && ms(ours) < 0.98f * ms(portable);
    c.measured = true;
    timing = false;
    return c;
}
static bool own_is_faster(const std::string &key, const Tensor &out, long rows, long columns,
                          const Instead &ours, const Instead &portable)
{
    if (forced.own || forced.library)
        return forced.own;
    Choice *c = known_choice(key);
    if (!c || (!c->final && may_time())) {
        Choice now = {};
        const bool time = may_time();
        if (time)
            settle();
        if (time && (cu.device.rank == 0 || !choosing.together))
            now = time_own(out, rows, columns, ours, portable);
        if (choosing.together)
            cu.device.broadcast(&now, sizeof now);
        now.final = !cu.device.measure || (time && (now.compared || !now.known));
        choices_changed |= now.measured;
        c = &((alone() ? own : shared)[key] = now);
    }
    return c->known && c->own;
}

/* Elements of a matrix that is multiplied at once: kernels may count them in 32 bits. Tests lower
 * it. */
long cuda_product_limit = 1L << 31;

/* Parts of at most `most`, all but the last of one size: f(from, how many) */
template <class F> static bool in_parts(long n, long most, F f)
{
    const long round = most >= 64 ? 64 : 1, parts = ceil_div(n, most / round * round);
    const long each = ceil_div(n, parts * round) * round;
    for (long at = 0; at < n; at += each)
        if (!f(at, std::min(each, n - at)))
            return false;
    return true;
}

/* Returns false where the library has no algorithm for it, or `instead` is faster. More than a
 * 32-bit number of elements: columns of D by themselves (images of one call), then parts of the sum
 * (of a weight gradient). */
static bool product(const Product &p, const Instead &instead = nullptr)
{
    if (p.m == 0 || p.n == 0)
        return true;
    long column = std::max({p.ldd, p.tb ? 1 : p.ldb, p.C ? p.ldc : 1, p.aux ? p.ldaux : 1});
    long term = std::max(p.ta ? 1 : p.lda, p.tb ? p.ldb : 1);
    long columns = std::max(1L, (cuda_product_limit - 1) / column);
    long terms = std::max(1L, (cuda_product_limit - 1) / term);
    if (!p.library() && (p.n > columns || p.k > terms))
        return false;
    if (p.n > columns)
        return in_parts(p.n, columns, [&](long at, long n) {
            Product q = p;
            q.n = n;
            q.B = dev_at((dev *)p.B, at * (p.tb ? 1 : p.ldb), p.in);
            q.D = dev_at((dev *)p.D, at * p.ldd, p.out);
            q.C = p.C ? dev_at((dev *)p.C, at * p.ldc, p.out) : nullptr;
            q.aux = p.aux ? dev_at((dev *)p.aux, at * p.ldaux, p.out) : nullptr;
            return product(q);
        });
    if (p.k > terms && p.out == F32 && p.epilogue == CUBLASLT_EPILOGUE_DEFAULT)
        return in_parts(p.k, terms, [&](long at, long k) {
            Product q = p;
            q.k = k;
            q.A = dev_at((dev *)p.A, at * (p.ta ? 1 : p.lda), p.in_a);
            q.B = dev_at((dev *)p.B, at * (p.tb ? p.ldb : 1), p.in);
            q.C = at ? p.D : p.C;
            q.ldc = at ? p.ldd : p.ldc;
            return product(q);
        });
    return product_part(p, instead);
}

static void product_or_die(const Product &p)
{
    if (!product(p))
        die("try another --precision", "cuBLASLt cannot multiply [%ld,%ld] by [%ld,%ld]", p.n, p.k,
            p.k, p.m);
}

/* ------------------------------------------------------------------------------------------------
 * Keeping choices: a line names GPU and library, then one line per product: key, tab, algorithm
 * (`sm90:` and a number: a product of our own), or `-` where other kernels are faster; `?` follows
 * one whose result has not been compared yet */

static std::string choices_title()
{
    char text[400];
    snprintf(text, sizeof text, "vit.c algorithms 1, %s, sm_%d%d, cuBLASLt %zu", cu.gpu.name,
             cu.gpu.major, cu.gpu.minor, cublasLtGetVersion());
    return text;
}

/* The first rank's file, at all ranks; "" where there is none. */
static std::string read_for_all(const char *path)
{
    Error e;
    char *text = NULL;
    if (cu.device.rank == 0 && path_exists(path))
        text = read_text(path, 16 << 20, &e);
    uint64_t n = text ? strlen(text) : 0;
    if (cu.device.ranks > 1)
        cu.device.broadcast(&n, sizeof n);
    std::string all(text ? text : "", (size_t)(text ? n : 0));
    free(text);
    all.resize((size_t)n);
    if (cu.device.ranks > 1 && n)
        cu.device.broadcast(&all[0], (size_t)n);
    return all;
}

/* `of_run`: they take the place of those that are known already. */
static void take_choices(Choices &into, const std::string &text, const char *path, bool of_run)
{
    size_t at = text.find('\n');
    if (text.empty())
        return;
    if (text.substr(0, at) != choices_title()) {
        if (of_run)
            warn("%s is of another GPU or library: the run goes on, not bit for bit", path);
        return;
    }
    while (at != std::string::npos) {
        size_t end = text.find('\n', at + 1);
        std::string line = text.substr(at + 1, end == std::string::npos ? end : end - at - 1);
        at = end;
        size_t tab = line.find('\t');
        Choice c = {};
        unsigned char *bytes = (unsigned char *)&c.algo;
        size_t n = 0;
        for (unsigned b;
             tab != std::string::npos && n < sizeof c.algo && line.size() >= tab + 3 + 2 * n &&
             sscanf(line.c_str() + tab + 1 + 2 * n, "%2x", &b) == 1;
             n++)
            bytes[n] = (unsigned char)b;
        std::string after = tab == std::string::npos ? "" : line.substr(tab + 1 + 2 * n);
        int end_of_way = 0;
        if (n == 0 && sscanf(after.c_str(), "sm90:%d%n", &c.own, &end_of_way) == 1)
            after = after.substr((size_t)end_of_way);
        c.known = (n == sizeof c.algo || c.own > 0) && (after == "" || after == "?");
        if (!c.known && !(n == 0 && after == "-"))
            continue; /* damaged: it is measured again */
        c.measured = true;
        c.final = after != "?";
        if (of_run)
            into[line.substr(0, tab)] = c;
        else
            into.emplace(line.substr(0, tab), c);
    }
}

static void write_choices(const Choices &list, const char *path)
{
    std::string text = choices_title() + "\n";
    for (const auto &[key, c] : list) {
        if (!c.measured)
            continue;
        text += key + "\t" + (c.known ? "" : "-");
        if (c.known && c.own)
            text += "sm90:" + std::to_string(c.own);
        for (size_t i = 0; c.known && !c.own && i < sizeof c.algo; i++) {
            char hex[3];
            snprintf(hex, sizeof hex, "%02x", ((const unsigned char *)&c.algo)[i]);
            text += hex;
        }
        text += c.final ? "\n" : "?\n";
    }
    if (!save_file(path, text.data(), text.size(), false, NULL)) /* the run has them in memory */
        warn("cannot write %s: matrix products will be timed again", path);
}

/* ~/.cache/vit.c/<GPU>-<library>.txt, "" where there is no home. */
static std::string choices_cache()
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if ((!cache || !*cache) && (!home || !*home))
        return "";
    std::string dir = cache && *cache ? cache : std::string(home) + "/.cache";
    Error e;
    if (!make_dirs((dir + "/vit.c").c_str(), &e))
        return "";
    std::string name = cu.gpu.name;
    for (char &c : name)
        c = c == ' ' || c == '/' ? '-' : c;
    return dir + "/vit.c/" + name + "-" + std::to_string(cublasLtGetVersion()) + ".txt";
}

/* After a step in which shapes were new. */
static void keep_choices()
{
    std::string path = choices_changed && cu.device.rank == 0 ? choices_cache() : "";
    Error e;
    char *others = path.empty() ? NULL : read_text(path.c_str(), 16 << 20, &e);
    Choices all = shared;
    if (others) /* what other runs have measured meanwhile stays */
        take_choices(all, others, path.c_str(), false);
    if (!path.empty())
        write_choices(all, path.c_str());
    free(others);
    choices_changed = false;
}

static void cuda_algorithms(const char *path, bool save)
{
    if (save && cu.device.measure)
        write_choices(shared, path);
    else if (!save)
        take_choices(shared, read_for_all(path), path, true);
}

static void gemm_init()
{
    if (!lt) {
        CHECK_CUBLAS(cublasLtCreate(&lt));
        workspace_bytes =
            cu.gpu.totalGlobalMem > (size_t)16 << 30 ? (size_t)128 << 20 : (size_t)16 << 20;
        CHECK_CUDA(cudaMalloc(&workspace, workspace_bytes));
    }
    read_forced();
    std::string cache = cu.device.measure ? choices_cache() : "";
    if (cu.device.measure)
        take_choices(shared, read_for_all(cache.c_str()), cache.c_str(), false);
}

/* ------------------------------------------------------------------------------------------------
 * Linear layers. What follows a product is done in it where the library's epilogues or products of
 * our own can do that; the rest by linear_tail and input_tail of layers.cuh. */

/* The product q and what follows it at once, if that is faster than `apart`. Where that is to be
 * found out, all ranks choose how to do it apart before the first one times it. */
static bool in_one(const Product &q, const Instead &apart)
{
    if (!q.library() && own_ways(q).empty())
        return false;
    if (undecided(q))
        apart();
    return product(q, apart);
}

static bool usable_bias(const dev *bias)
{
    return bias && alignment(bias) >= 16;
}

/* y^T = w x^T: bias and residual go into the product where nothing stands between them, and GELU
 * where 16 bits hide how it is computed: by products of our own, or by the library's, which is the
 * tanh form, and of the sum before it is rounded, so that `activate` would not do the same. */
static void cuda_linear_forward(const LinearForward *a)
{
    const bool keep = a->act && a->pre.p, bias = usable_bias(a->bias);
    const bool whole = !a->bias || bias; /* no bias remains for the tail */
    const bool plain = whole && !a->act && a->drop.p <= 0;
    const Tensor &to = keep ? a->pre : a->y;
    const int columns = a->act == ACT_SWIGLU ? 2 * a->out : a->out;
    Tensor x = a->x, w = a->w;
    if (in_fp8(x, w)) {
        cu.copies = 0;
        x = fp8_copies(a->x, a->rows, a->in, E4M3, true, false).x;
        w = fp8_copies(a->w, columns, a->in, E4M3, true, false).x;
    }
    Product p(w, true, x, false, to, columns, a->rows, a->in);
    if (bias) {
        p.epilogue = CUBLASLT_EPILOGUE_BIAS;
        p.bias = a->bias;
    }
    if (plain && a->residual.p) {
        p.C = a->residual.p;
        p.ldc = a->residual.ld;
    }
    const Instead apart = [&] {
        Product q = p;
        bool done = product(q), rest = !whole || !done;
        if (!done) { /* some epilogues want more alignment than odd shapes have */
            q.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
            q.bias = NULL;
            q.C = NULL;
            product_or_die(q);
        }
        bool add = a->residual.p && !(done && plain);
        if (rest || a->act || a->drop.p > 0 || add)
            linear_tail(a, to, rest ? a->bias : NULL);
    };
    const bool alone = whole && a->act && a->act != ACT_SWIGLU && a->drop.p <= 0 && !a->residual.p;
    if (alone && a->y.type != F32) {
        Product q = p;
        q.act = a->act;
        q.leave_in(a->y);
        q.aux = keep ? a->pre.p : NULL;
        q.ldaux = a->pre.ld;
        bool fits = bias && a->out % 8 == 0 && wide_rows(a->y) && wide_rows(a->pre);
        fits &= !is_fp8(a->y.type);
        if (fits && a->act == ACT_GELU_TANH && (a->kept || !keep))
            q.epilogue = keep ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS;
        if (in_one(q, apart))
            return;
    }
    apart();
}

/* dx^T = w^T dy^T; ACT_SWIGLU: in dx's right half, of which the tail makes both; where dx has 8
 * bits, in the scratch memory */
static void cuda_linear_backward_input(const LinearBackwardInput *a)
{
    Tensor to = a->dx;
    to.p = dev_at(to.p, a->act == ACT_SWIGLU ? a->in : 0, to.type);
    const bool fp8 = in_fp8(a->dy, a->w);
    Tensor dy = a->dy, w = a->w;
    if (fp8) {
        cu.copies = 0;
        dy = fp8_left(a->dy, a->rows, a->out);
        w = fp8_copies(a->w, a->out, a->in, E4M3, false, true).across;
    }
    if (is_fp8(to.type))
        to = {(dev *)fp8_room((size_t)a->rows * (size_t)a->in * sizeof(bf16)), a->in, BF16, NULL};
    Product p(w, fp8, dy, false, to, a->in, a->rows, a->out);
    p.C = a->accumulate ? a->dx.p : NULL;
    p.ldc = a->dx.ld;
    const Instead apart = [&] {
        product_or_die(p);
        if (is_fp8(a->dx.type))
            input_tail_fp8(a, to);
        else if (a->act || a->dbias || a->drop.p > 0)
            input_tail(a);
    };
    if (a->act && a->act != ACT_SWIGLU && a->drop.p <= 0 && a->dx.type != F32) {
        Product q = p;
        q.leave_in(a->dx);
        q.act = a->act;
        q.slope = true;
        q.aux = a->pre.p;
        q.ldaux = a->pre.ld;
        q.sums = a->dbias;
        if (in_one(q, apart))
            return;
    }
    apart();
}

/* dw^T = x^T dy, in full precision whatever the operands are */
static void cuda_linear_backward_weight(const LinearBackwardWeight *a)
{
    Tensor dw = {a->dw, a->in, F32, NULL};
    Tensor x = a->x, dy = a->dy;
    const bool fp8 = in_fp8(a->dy, a->x), both = fp8 && fp8_how.wgrad;
    Copies copies = {};
    if (fp8) { /* dy's other copy is for the input gradient */
        cu.copies = 0;
        copies = fp8_copies(a->dy, a->rows, a->out, E5M2, true, both);
    }
    if (both) {
        dy = copies.across;
        x = fp8_copies(a->x, a->rows, a->in, E4M3, false, true).across;
    }
    product_or_die(Product(x, both, dy, !both, dw, a->in, a->out, both ? x.ld : a->rows));
    if (a->dbias)
        column_sums(ptr<float>(a->dbias), a->dy, a->rows, a->out);
}
