/* Includes the file KERNEL once for each kind of vectors that the processor may have; a file of loops that is compiled so
 * names its functions with NAMED, and CHOSEN finds those for the processor at hand.
 *
 * VECTOR is the type, of LANES floats, which the operators of C work on; LOAD, STORE, ZERO, SPLAT and FUSED (a * b + c) are
 * what else there is; LARGER is b where one is not a number; ONE_FUSED is FUSED of single floats, rounded as often. TARGET
 * lets a function use the kind's instructions. */
#define JOINED_(a, b) a##_##b
#define JOINED(a, b) JOINED_(a, b)
#define NAMED(name) JOINED(name, SUFFIX)
#define UNROLLED _Pragma("GCC unroll 8")

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET __attribute__((target("avx2,fma")))
#define SUFFIX avx2
#define VECTOR __m256
#define LANES 8
#define LOAD(place) _mm256_loadu_ps(place)
#define STORE(place, vector) _mm256_storeu_ps(place, vector)
#define ZERO _mm256_setzero_ps()
#define SPLAT(number) _mm256_set1_ps(number)
#define FUSED(a, b, c) _mm256_fmadd_ps(a, b, c)
#define LARGER(a, b) _mm256_max_ps(a, b)
#define ONE_FUSED(a, b, c) __builtin_fmaf(a, b, c)
#include KERNEL
#undef TARGET
#undef SUFFIX
#undef VECTOR
#undef LANES
#undef LOAD
#undef STORE
#undef ZERO
#undef SPLAT
#undef FUSED
#undef LARGER
#undef ONE_FUSED

#define TARGET
#define SUFFIX sse
#define VECTOR __m128
#define LANES 4
#define LOAD(place) _mm_loadu_ps(place)
#define STORE(place, vector) _mm_storeu_ps(place, vector)
#define ZERO _mm_setzero_ps()
#define SPLAT(number) _mm_set1_ps(number)
#define FUSED(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define LARGER(a, b) _mm_max_ps(a, b)
#define ONE_FUSED(a, b, c) ((a) * (b) + (c))
#include KERNEL

/* Whether the processor has the vectors that its kind need not have. */
#define CHOSEN(name) (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? name##_avx2 : name##_sse)

#elif defined(__aarch64__)
#include <arm_neon.h>
#define TARGET
#define SUFFIX neon
#define VECTOR float32x4_t
#define LANES 4
#define LOAD(place) vld1q_f32(place)
#define STORE(place, vector) vst1q_f32(place, vector)
#define ZERO vdupq_n_f32(0.0f)
#define SPLAT(number) vdupq_n_f32(number)
#define FUSED(a, b, c) vfmaq_f32(c, a, b)
#define LARGER(a, b) vbslq_f32(vcgtq_f32(a, b), a, b)
#define ONE_FUSED(a, b, c) __builtin_fmaf(a, b, c)
#include KERNEL
#define CHOSEN(name) name##_neon

#else
typedef float one_float __attribute__((vector_size(sizeof(float))));
#define TARGET
#define SUFFIX plain
#define VECTOR one_float
#define LANES 1
#define LOAD(place) ((one_float){*(place)})
#define STORE(place, vector) ((void)(*(place) = (vector)[0]))
#define ZERO ((one_float){0.0f})
#define SPLAT(number) ((one_float){number})
#define FUSED(a, b, c) ((a) * (b) + (c))
#define LARGER(a, b) ((a)[0] > (b)[0] ? (a) : (b))
#define ONE_FUSED(a, b, c) ((a) * (b) + (c))
#include KERNEL
#define CHOSEN(name) name##_plain
#endif
