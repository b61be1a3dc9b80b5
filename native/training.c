/* The functions of training.h on the vectors that the processor has. */
#include "internal.h"

#include "training.h"

#include <math.h>
#include <string.h>

#define CHUNK 1024 /* terms of a sum in single precision, before it goes on in double precision */

#define KERNEL "training_kernel.h"
#include "vectors.h"

EXPORT void training_losses(float *logits, const int32_t *ids, const float *weights, float soft_cap, int gradients,
                            float *losses, ptrdiff_t rows, ptrdiff_t columns) {
    CHOSEN(losses)(logits, ids, weights, soft_cap, gradients, losses, rows, columns);
}

EXPORT void training_norm(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
                          float *normalized, float *scale, ptrdiff_t rows, ptrdiff_t width) {
    CHOSEN(norms)(x, weight, bias, epsilon, centered, out, normalized, scale, rows, width);
}

EXPORT void training_norm_backward(const float *dout, const float *normalized, const float *scale, const float *weight,
                                   int centered, float *dx, float *dweight, ptrdiff_t rows, ptrdiff_t width) {
    CHOSEN(norms_backward)(dout, normalized, scale, weight, centered, dx, dweight, rows, width);
}

EXPORT void training_heads_forward(const training_heads *of, const float *x, ptrdiff_t x_stride, float epsilon, float *out) {
    CHOSEN(heads_forward)(of, x, x_stride, epsilon, out);
}

EXPORT void training_heads_backward(const training_heads *of, float *gradients, ptrdiff_t stride, float *dweight) {
    CHOSEN(heads_backward)(of, gradients, stride, dweight);
}

EXPORT void training_softmax(float *scores, float *sums, ptrdiff_t rows, ptrdiff_t queries, ptrdiff_t keys) {
    CHOSEN(softmax)(scores, sums, rows, queries, keys);
}

EXPORT void training_softmax_backward(float *gradients, const float *exponentials, const float *along, ptrdiff_t rows,
                                      ptrdiff_t keys) {
    CHOSEN(softmax_backward)(gradients, exponentials, along, rows, keys);
}

EXPORT void training_add_rows(float *target, const int32_t *ids, const float *rows, ptrdiff_t count, ptrdiff_t width) {
    for (ptrdiff_t row = 0; row < count; row++)
        for (ptrdiff_t n = 0; n < width; n++) target[ids[row] * width + n] += rows[row * width + n];
}
