/* What a training step computes on the CPU between its products, in float32: whole rows at a time, which stay in the
 * first-level cache from one pass over them to the next.
 *
 * Every function may be called from any thread. The bits of a row do not depend on the other rows; they may depend on the
 * kind of processor. */
#ifndef TRAINING_H
#define TRAINING_H

#include <stddef.h>
#include <stdint.h>

/* losses[row] = logsumexp(logits) - logits[ids[row]] of each row of logits [rows, columns], which are capped first by
 * soft_cap * tanh(logit / soft_cap) unless that is 0. With `gradients`, the logits become the derivatives of the loss times
 * weights[row] by the logits before the cap; otherwise, what they become has no meaning. */
void training_losses(float *logits, const int32_t *ids, const float *weights, float soft_cap, int gradients, float *losses,
                     ptrdiff_t rows, ptrdiff_t columns);

/* normalized = (x - mean) * scale with scale[row] = 1 / sqrt(variance + epsilon), and out = normalized * weight + bias, for
 * each row of x [rows, width]; bias may be NULL. Unless `centered`, the mean counts as 0. */
void training_norm(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
                   float *normalized, float *scale, ptrdiff_t rows, ptrdiff_t width);

/* The derivatives by x of what training_norm did, and by its weight, summed over the rows. dx may be dout. */
void training_norm_backward(const float *dout, const float *normalized, const float *scale, const float *weight, int centered,
                            float *dx, float *dweight, ptrdiff_t rows, ptrdiff_t width);

/* Heads of attention: x and out [tokens, heads, width], where x has a stride from token to token. Each head is normalized
 * as by training_norm, not centered, unless weight is NULL; and then its pairs n and n + width / 2 are rotated by angles
 * whose cosines and sines are [positions, width / 2], unless these are NULL. The position of a token is the remainder of its
 * number divided by `positions`. */
typedef struct training_heads {
    const float *weight, *cosine, *sine;
    float *normalized, *scale; /* [tokens, heads, width] and [tokens, heads], if there is a weight */
    ptrdiff_t positions, tokens, heads, width;
} training_heads;
void training_heads_forward(const training_heads *of, const float *x, ptrdiff_t x_stride, float epsilon, float *out);

/* The derivatives by x, in the place of those by out, which have a stride from token to token; and those by the weight,
 * summed over tokens and heads, if there is one. */
void training_heads_backward(const training_heads *of, float *gradients, ptrdiff_t stride, float *dweight);

/* Scores of attention [rows, keys] become exp(score - the row's largest), and `sums` [rows] their sums. Row r, of which
 * `queries` follow one another for each head, does not see the last queries - 1 - r % queries keys: there it becomes 0. */
void training_softmax(float *scores, float *sums, ptrdiff_t rows, ptrdiff_t queries, ptrdiff_t keys);

/* Gradients of probabilities [rows, keys] become (gradient - along[row]) * exponential. */
void training_softmax_backward(float *gradients, const float *exponentials, const float *along, ptrdiff_t rows,
                               ptrdiff_t keys);

/* target[ids[row]] += rows[row], in order, of rows [count, width]. */
void training_add_rows(float *target, const int32_t *ids, const float *rows, ptrdiff_t count, ptrdiff_t width);

#endif
