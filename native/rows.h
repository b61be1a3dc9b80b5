/* What a step of inference computes on the CPU, in float32: functions in which the bits of a row do not depend on how many
 * rows there are. They may depend on the kind of processor.
 *
 * Strides are in elements, and 1 within a row. Every function may be called from any thread, and each of its rows, heads or
 * columns may be computed by a call of its own. */
#ifndef ROWS_H
#define ROWS_H

#include <stddef.h>
#include <stdint.h>

/* out = x @ weight + bias + residual: x [rows, depth], weight [depth, columns], out [rows, columns]; bias [columns] and
 * residual, which lies as out does, may be NULL. With `transposed`, weight is the transpose of a matrix [columns, depth]
 * that has this stride. Each element is one sum over the depth, in a fixed order. */
void rows_linear(const float *x, ptrdiff_t x_stride, const float *weight, ptrdiff_t weight_stride, int transposed,
                 const float *bias, const float *residual, float *out, ptrdiff_t out_stride, ptrdiff_t rows,
                 ptrdiff_t depth, ptrdiff_t columns);

/* out = (x - mean) / sqrt(variance + epsilon) * weight + bias for each row of x [rows, width]; bias may be NULL. Unless
 * `centered`, the mean counts as 0. */
void rows_norm(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
               ptrdiff_t rows, ptrdiff_t width);

/* Attention of query [rows, heads, width] to the positions 0 to positions[row] of sequences[row]. Keys and values
 * [blocks, tokens, key_heads, width] of position p stand in block tables[sequence][p / tokens], which has `pages` entries
 * for each sequence. Scores are capped by soft_cap * tanh(score / soft_cap) unless that is 0. `scores` has room for
 * positions[row] + 1 numbers; out lies as [rows, heads, width]. */
void rows_attention(const float *query, ptrdiff_t query_stride, const float *keys, const float *values,
                    const int32_t *sequences, const int32_t *positions, const int32_t *tables, ptrdiff_t pages,
                    float soft_cap, float *scores, float *out, ptrdiff_t rows, ptrdiff_t heads, ptrdiff_t key_heads,
                    ptrdiff_t width, ptrdiff_t tokens);

#endif
