/* Inference on the CPU, a row at a time: the parts of rows.h, and which vectors the processor has for them. */
#include "internal.h"

#include "crew.h"
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

static void product(const void *part) { CHOSEN(linear)(part); }

EXPORT void rows_linear_parts(const rows_product *parts, ptrdiff_t count, ptrdiff_t threads) {
    share_out(product, parts, sizeof *parts, (size_t)count, (size_t)threads);
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

static void attended(const void *of) {
    const rows_attended *part = of;
    ptrdiff_t width = part->width;
    for (ptrdiff_t row = 0; row < part->rows; row++)
        for (ptrdiff_t head = 0; head < part->heads; head++) {
            ptrdiff_t offset = head / (part->heads / part->key_heads) * width;
            CHOSEN(attend)
            (part->query + row * part->query_stride + head * width, part->keys + offset, part->values + offset,
             part->tables + part->sequences[row] * part->pages, part->positions[row] + 1, part->soft_cap, part->scores,
             part->out + (row * part->heads + head) * width, width, part->tokens, part->key_heads * width);
        }
}

EXPORT void rows_attention_parts(const rows_attended *parts, ptrdiff_t count, ptrdiff_t threads) {
    share_out(attended, parts, sizeof *parts, (size_t)count, (size_t)threads);
}
