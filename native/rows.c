/* Inference on the CPU, a row at a time: the parts of rows.h, and which vectors the processor has for them. */
#include "internal.h"

#include "rows.h"

#include <math.h>
#include <string.h>

#define MANY_ROWS 20   /* from so many rows on, copying a panel of the weight costs less than it saves */
#define FEW_DEPTH 8    /* rows of the weight that few rows read side by side */
#define MANY_DEPTH 256 /* with two vectors a row, a panel fits the first-level cache */

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
#define ONE_FUSED(a, b, c) __builtin_fmaf(a, b, c)
#include "rows_kernel.h"

#define TARGET
#define SUFFIX sse
#define VECTOR __m128
#define LANES 4
#define LOAD(place) _mm_loadu_ps(place)
#define STORE(place, vector) _mm_storeu_ps(place, vector)
#define ZERO _mm_setzero_ps()
#define SPLAT(number) _mm_set1_ps(number)
#define FUSED(a, b, c) _mm_add_ps(_mm_mul_ps(a, b), c)
#define ONE_FUSED(a, b, c) ((a) * (b) + (c))
#include "rows_kernel.h"

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
#define ONE_FUSED(a, b, c) __builtin_fmaf(a, b, c)
#include "rows_kernel.h"

#else
#define TARGET
#define SUFFIX plain
#define VECTOR float
#define LANES 1
#define LOAD(place) (*(place))
#define STORE(place, vector) (*(place) = (vector))
#define ZERO 0.0f
#define SPLAT(number) (number)
#define FUSED(a, b, c) ((a) * (b) + (c))
#define ONE_FUSED(a, b, c) ((a) * (b) + (c))
#include "rows_kernel.h"
#endif

/* Whether the processor has the vectors that its kind need not have. */
#if defined(__x86_64__)
#define CHOSEN(name) (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? name##_avx2 : name##_sse)
#elif defined(__aarch64__)
#define CHOSEN(name) name##_neon
#else
#define CHOSEN(name) name##_plain
#endif

EXPORT void rows_linear(const float *x, ptrdiff_t x_stride, const float *weight, ptrdiff_t weight_stride, int transposed,
                        const float *bias, const float *residual, float *out, ptrdiff_t out_stride, ptrdiff_t rows,
                        ptrdiff_t depth, ptrdiff_t columns) {
    CHOSEN(linear)
    (x, x_stride, weight, weight_stride, transposed, bias, residual, out, out_stride, rows, depth, columns);
}

EXPORT void rows_norm(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
                      ptrdiff_t rows, ptrdiff_t width) {
    for (; rows > 0; rows--, x += width, out += width) {
        double mean = 0.0, squares = 0.0;
        if (centered) {
            for (ptrdiff_t n = 0; n < width; n++) mean += x[n];
            mean /= (double)width;
        }
        for (ptrdiff_t n = 0; n < width; n++) squares += (x[n] - mean) * (x[n] - mean);
        double scale = 1.0 / sqrt(squares / (double)width + epsilon);
        for (ptrdiff_t n = 0; n < width; n++) out[n] = (float)((x[n] - mean) * scale) * weight[n] + (bias ? bias[n] : 0.0f);
    }
}

EXPORT void rows_attention(const float *query, ptrdiff_t query_stride, const float *keys, const float *values,
                           const int32_t *sequences, const int32_t *positions, const int32_t *tables, ptrdiff_t pages,
                           float soft_cap, float *scores, float *out, ptrdiff_t rows, ptrdiff_t heads, ptrdiff_t key_heads,
                           ptrdiff_t width, ptrdiff_t tokens) {
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t head = 0; head < heads; head++) {
            ptrdiff_t offset = head / (heads / key_heads) * width;
            CHOSEN(attend)
            (query + row * query_stride + head * width, keys + offset, values + offset, tables + sequences[row] * pages,
             positions[row] + 1, soft_cap, scores, out + (row * heads + head) * width, width, tokens, key_heads * width);
        }
}
