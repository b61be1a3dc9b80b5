/* What a step of inference computes on the CPU, in float32: functions in which the bits of a row do not depend on how many
 * rows there are. They may depend on the kind of processor.
 *
 * Strides are in elements, and 1 within a row. Every function may be called from any thread, and each row and column may
 * be a part of its own. */
#ifndef ROWS_H
#define ROWS_H

#include <stddef.h>
#include <stdint.h>

/* out = x @ weight + bias + residual: x [rows, depth], weight [depth, columns], out [rows, columns]; bias [columns] and
 * residual, which lies as out does, may be NULL. With `transposed`, weight is the transpose of a matrix [columns, depth]
 * that has this stride. Each element is one sum over the depth, in a fixed order, which comes to stand in `sums`
 * [rows, columns]: that may be out, but threads that do parts side by side hold each other up where theirs are neighbours. */
typedef struct rows_product {
    const float *x, *weight, *bias, *residual;
    float *sums, *out;
    ptrdiff_t x_stride, weight_stride, sums_stride, out_stride, transposed, rows, depth, columns;
} rows_product;

/* Products that are parts of one, on up to `threads` threads. */
void rows_linear_parts(const rows_product *parts, ptrdiff_t count, ptrdiff_t threads);

/* out = (x - mean) / sqrt(variance + epsilon) * weight + bias for each row of x [rows, width]; bias may be NULL. Unless
 * `centered`, the mean counts as 0. */
void rows_norm(const float *x, const float *weight, const float *bias, float epsilon, int centered, float *out,
               ptrdiff_t rows, ptrdiff_t width);

/* Attention of query [rows, heads, width] to the positions 0 to positions[row] of sequences[row]. Keys and values
 * [blocks, tokens, key_heads, width] of position p stand in block tables[sequence][p / tokens], which has `pages` entries
 * for each sequence. Scores are capped by soft_cap * tanh(score / soft_cap) unless that is 0. `scores` has room for
 * positions[row] + 1 numbers; out lies as [rows, heads, width]. */
typedef struct rows_attended {
    const float *query, *keys, *values;
    const int32_t *sequences, *positions, *tables;
    float *scores, *out;
    ptrdiff_t query_stride, pages, rows, heads, key_heads, width, tokens;
    float soft_cap;
} rows_attended;

/* Rows that are parts of all, on up to `threads` threads. */
void rows_attention_parts(const rows_attended *parts, ptrdiff_t count, ptrdiff_t threads);

#endif
