/* on_cpu.h - what tests of the stand-in for CUDA share: device memory, and programs with a mistake.
 *
 * Those run as `test_NAME SCENARIO` in a process of their own, which must die, or end badly, with
 * the right words.
 */
#pragma once

#include "check.h"

#include "cuda/launch.cuh"

#include <string>
#include <unistd.h>
#include <vector>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
constexpr bool tsan = true;
#else
constexpr bool tsan = false;
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
constexpr bool asan = true;
#else
constexpr bool asan = false;
#endif

/* TSan's processes sleep for a second before they end, unless told otherwise. */
extern "C" const char *__tsan_default_options()
{
    return "atexit_sleep_ms=0";
}

void cuda_check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return;
    printf("FAIL %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}
#define OK(call) cuda_check(call, #call)

/* Device memory with the contents of a vector, and back. */
template <class T> static T *device(const std::vector<T> &v)
{
    T *p;
    OK(cudaMalloc(&p, v.size() * sizeof(T)));
    OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <class T> static std::vector<T> host(const T *p, size_t n)
{
    std::vector<T> v(n);
    OK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}
[[maybe_unused]] static float noise(unsigned i) /* in -1..1 */
{
    i = (i + 1) * 2654435761u;
    i = (i ^ i >> 15) * 2246822519u;
    return float(int(i ^ i >> 13)) / 2147483648.0f;
}

/* Runs this program with an argument; its output and whether it ended well. */
static bool run_scenario(const std::string &settings, const char *name, std::string *said)
{
    char exe[512] = "", line[512];
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0)
        return false;
    FILE *p = popen((settings + " '" + exe + "' " + name + " 2>&1").c_str(), "r");
    said->clear();
    while (p && fgets(line, sizeof line, p))
        *said += line;
    return p && pclose(p) == 0;
}
[[maybe_unused]] static void must_die(const char *name, const char *words,
                                      const char *settings = "")
{
    std::string said;
    bool well = run_scenario(settings, name, &said);
    CHECK(!well, "%s ended well", name);
    CHECK(said.find(words) != std::string::npos, "%s said: %.600s", name, said.c_str());
}
