/* Inference on the CPU, a row at a time: the parts of rows.h on the vectors that the processor has. */
#include "internal.h"

#include "crew.h"
#include "rows.h"

#include <math.h>
#include <string.h>

#define MANY_ROWS 20   /* from so many rows on, copying a panel of the weight costs less than it saves */
#define FEW_DEPTH 8    /* rows of the weight that few rows read side by side */
#define MANY_DEPTH 256 /* with two vectors a row, a panel fits the first-level cache */

#define KERNEL "rows_kernel.h"
#include "vectors.h"

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
