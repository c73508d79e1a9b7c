#pragma once
#include <sae/core/version.hpp>

#include <Eigen/Core>

// What a user may rely on, and what is checked before anything else is compiled. No other macro reaches a consumer:
// SAE_VERSION_MAJOR, SAE_VERSION_MINOR, SAE_VERSION_PATCH and SAE_ABI (core/version.hpp), SAE_NOINLINE, SAE_X86, SAE_TARGET and SAE_NEON (here).
#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "sae needs C++20 (-std=c++20 or later)"
#endif
#if !EIGEN_VERSION_AT_LEAST(3, 4, 0)
#error "sae needs Eigen 3.4.0 or later"
#endif

#if defined(_MSC_VER)
#define SAE_NOINLINE __declspec(noinline)
#else
#define SAE_NOINLINE __attribute__((noinline))
#endif

// SAE_X86 is 1 where a function can be compiled for other instructions than the rest of the program: SAE_TARGET("avx2,fma").
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SAE_X86 1
#define SAE_TARGET(features) __attribute__((target(features)))
#else
#define SAE_X86 0
#define SAE_TARGET(features)
#endif

// SAE_NEON is 1 on 64-bit ARM, which has NEON always.
#if defined(__aarch64__) && defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define SAE_NEON 1
#else
#define SAE_NEON 0
#endif
