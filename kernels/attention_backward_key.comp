// Causal attention, backward, the gradients of a tile of keys and values of one key head to a workgroup
// (FlashAttention-2, Dao 2023), the query heads of its group in turn.
//
//     key_gradient[b, j, g] = SCALE sum over h, t >= j - past with first_keys[b, t] <= j of ds[h, t, j] query[b, t, h]
//     value_gradient[b, j, g] = sum over h, t >= j - past with first_keys[b, t] <= j of dropout(p[h, t, j]) gradient[b, t, h]
//
// Operands, p and ds as in attention_backward_query; key_value_gradient [B, key_length, 2 KEY_HEADS, WIDTH], first those of keys,
// its tokens GRADIENT_STRIDE elements apart. Grid: (tiles of keys, KEY_HEADS, B). numpy: Backend.attention_backward.
//
// With QUERY_PARTS, what this tile of keys adds to the gradients of its queries before SCALE is kept, too: query_parts [tiles of
// keys, B, query_length, QUERY_HEADS, WIDTH], which attention_query_sums adds up. It is written where a query sees one of the keys.
//
// The results of a thread are those of 4 FOURS neighbouring keys, of which it has every ROW_THREADS-th quad. Probabilities,
// then gradients of scores, change owners by way of shared memory.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_tiles.glsl"
layout(local_size_x_id = 0) in;

const uint OUT_QUADS = (QUADS + ROW_THREADS - 1) / ROW_THREADS;
const uint TILE_QUADS = OUT_QUADS * ROW_THREADS;
const uint QUERY_QUADS = (QUADS + COLUMN_THREADS - 1) / COLUMN_THREADS;
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = FOURS * COLUMN_THREADS + 1;
const uint SLICE_ROWS = TILE_QUERIES < 16 ? TILE_QUERIES : 16;
const uint ROWS_AT = TILE_QUERIES * SCORE_PITCH;
const uint ROWS_SPACE = ROWS_AT + SLICE_ROWS * PITCH;
const uint STAGED_ROWS = (SLICE_ROWS * TILE_QUADS + THREADS - 1) / THREADS;

// Of a slice of queries and one of keys, or of all scores and a slice of rows of queries or gradients.
shared vec4 space[SLICES_SPACE > ROWS_SPACE ? SLICES_SPACE : ROWS_SPACE];
shared vec2 row_numbers[TILE_QUERIES];  // logsumexp and delta

#include "attention_dropout.glsl"

vec4 staged_rows[STAGED_ROWS];

// The first of rows of queries or gradients, which must have a name.
#define FETCH_ROWS(rows) FETCH(staged_rows, STAGED_ROWS, SLICE_ROWS, TILE_QUADS, 0, rows)

// Adds to `results` the products of scores[ROWS FOURS] with `rows` of queries or gradients, times `factor`, of which
// staged_rows has the first ones. `following` is as for ADD_PRODUCTS.
#define ADD_RESULTS(results, scores, factor, rows, following)                                                         \
    for (uint first = 0; first < TILE_QUERIES; first += SLICE_ROWS) {                                                  \
        barrier();                                                                                                     \
        if (first == 0) {                                                                                              \
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n)                                                         \
                space[(row + ROW_THREADS * (n / FOURS)) * SCORE_PITCH + n % FOURS * COLUMN_THREADS + column] = scores[n];\
        }                                                                                                              \
        [[unroll]] for (uint i = 0; i < STAGED_ROWS; ++i) {                                                            \
            const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;                      \
            if (token < SLICE_ROWS) space[ROWS_AT + token * PITCH + index % TILE_QUADS] = staged_rows[i] * (factor);   \
        }                                                                                                              \
        barrier();                                                                                                     \
        if (first + SLICE_ROWS < TILE_QUERIES) {                                                                       \
            Rows others = rows_from(rows, first + SLICE_ROWS);                                                   \
            FETCH_ROWS(others)                                                                                         \
        } else {                                                                                                       \
            following                                                                                                  \
        }                                                                                                              \
        for (uint t = 0; t < SLICE_ROWS; ++t) {                                                                        \
            vec4 factors[FOURS];                                                                                       \
            [[unroll]] for (uint f = 0; f < FOURS; ++f)                                                                \
                factors[f] = space[(first + t) * SCORE_PITCH + f * COLUMN_THREADS + four_of];                          \
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {                                                          \
                vec4 numbers = space[ROWS_AT + t * PITCH + quad_of + c * ROW_THREADS];                                 \
                [[unroll]] for (uint i = 0; i < 4 * FOURS; ++i)                                                        \
                    results[i * OUT_QUADS + c] = fma(vec4(factors[i / 4][i % 4]), numbers, results[i * OUT_QUADS + c]);\
            }                                                                                                          \
        }                                                                                                              \
    }

// The first of the tile's keys, for the gradients of queries.
const uint KEY_ROWS = SLICE_ROWS < TILE_KEYS ? SLICE_ROWS : TILE_KEYS;
const uint STAGED_KEY_ROWS = (KEY_ROWS * QUADS + THREADS - 1) / THREADS;
vec4 staged_keys[STAGED_KEY_ROWS];
#define FETCH_KEYS(rows) FETCH(staged_keys, STAGED_KEY_ROWS, KEY_ROWS, QUADS, 0, rows)

void main() {
    const uint column = column_among(COLUMN_THREADS), row = row_among(COLUMN_THREADS);
    // Of the results.
    const uint quad_of = column_among(ROW_THREADS), four_of = row_among(ROW_THREADS);
    const uint first_key = gl_WorkGroupID.x * TILE_KEYS;
    const uint key_head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
    const uint past = key_length - query_length;
    const uint key_start = sequence * key_batch_stride + first_key * key_token_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start =
        sequence * value_batch_stride + first_key * value_token_stride + key_head * VALUE_HEAD_STRIDE;
    const uint end_query = end_of_queries(sequence, first_key + TILE_KEYS);
    const uint whole_end = end_of_queries(sequence, first_key + 1);  // queries from here on do not see every key
    const uint start_query = (first_key - min(first_key, past)) / TILE_QUERIES * TILE_QUERIES;

    vec4 key_result[4 * FOURS * OUT_QUADS], value_result[4 * FOURS * OUT_QUADS];
    [[unroll]] for (uint i = 0; i < 4 * FOURS * OUT_QUADS; ++i) key_result[i] = value_result[i] = vec4(0.0);

    Rows keys = Rows(key, key_start, key_token_stride, key_length - first_key);
    Rows values = Rows(value, value_start, value_token_stride, key_length - first_key);
    for (uint head = key_head * GROUP; head < (key_head + 1) * GROUP; ++head) {
        Rows all_queries =
            Rows(query, sequence * query_batch_stride + head * QUERY_HEAD_STRIDE, query_token_stride, query_length);
        const uint gradient_start = (sequence * query_length * QUERY_HEADS + head) * WIDTH;
        Rows all_gradients = Rows(gradient, gradient_start, QUERY_HEADS * WIDTH, query_length);
        Rows begin_queries = rows_from(all_queries, start_query);
        FETCH_SLICES(0, begin_queries, keys)
        for (uint first_query = start_query; first_query < end_query; first_query += TILE_QUERIES) {
            Rows queries = rows_from(all_queries, first_query), gradients = rows_from(all_gradients, first_query);
            Rows next_queries = rows_from(queries, TILE_QUERIES);
            barrier();  // row_numbers may still be read
            for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES; i += THREADS) {
                uint t = first_query + i, index = (sequence * QUERY_HEADS + head) * query_length + t;
                row_numbers[i] = t < query_length ? vec2(logsumexp.at[index], delta.at[index]) : vec2(0.0);
            }
            if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
            vec4 scores[ROWS * FOURS], products[ROWS * FOURS];
            [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) scores[i] = products[i] = vec4(0.0);
            ADD_PRODUCTS(scores, query_factor(), queries, keys, FETCH_ROWS(gradients))
            const bool whole = first_key + TILE_KEYS <= past + first_query + 1 && first_query + TILE_QUERIES <= whole_end;
            vec4 probabilities[ROWS * FOURS], kept_scaled[ROWS * FOURS];
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * (n / FOURS);
                probabilities[n] = probabilities_of(scores[n], row_numbers[tile_row].x);
                if (!whole) probabilities[n] = seen_of(probabilities[n], sequence, first_query + tile_row, first_key + four * 4);
                kept_scaled[n] = probabilities[n];
                if (DROPOUT == 1)
                    kept_scaled[n] *= KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
            }
            ADD_RESULTS(value_result, kept_scaled, 1.0, gradients, FETCH_SLICES(0, gradients, values))
            ADD_PRODUCTS(products, 1.0, gradients, values, FETCH_ROWS(queries))
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * (n / FOURS);
                if (DROPOUT == 1) products[n] *= KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
                products[n] = probabilities[n] * (products[n] - row_numbers[tile_row].y);
                if (SOFT_CAP != 0.0) products[n] *= 1.0 - scores[n] * scores[n];
            }
            ADD_RESULTS(key_result, products, query_factor(), queries,
                        if (QUERY_PARTS == 1) { FETCH_KEYS(keys) } else FETCH_SLICES(0, next_queries, keys))
            if (QUERY_PARTS == 1) {
                vec4 result[ROWS * QUERY_QUADS];
                [[unroll]] for (uint i = 0; i < ROWS * QUERY_QUADS; ++i) result[i] = vec4(0.0);
                for (uint first = 0; first < TILE_KEYS; first += KEY_ROWS) {
                    barrier();
                    [[unroll]] for (uint i = 0; i < STAGED_KEY_ROWS; ++i) {
                        const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / QUADS;
                        if (token < KEY_ROWS) space[ROWS_AT + token * PITCH + index % QUADS] = staged_keys[i];
                    }
                    barrier();
                    if (first + KEY_ROWS < TILE_KEYS) {
                        Rows others = rows_from(keys, first + KEY_ROWS);
                        FETCH_KEYS(others)
                    } else {
                        FETCH_SLICES(0, next_queries, keys)
                    }
                    for (uint four = 0; four < KEY_ROWS / 4; ++four) {
                        vec4 ds[ROWS];
                        [[unroll]] for (uint r = 0; r < ROWS; ++r)
                            ds[r] = space[(row + ROW_THREADS * r) * SCORE_PITCH + first / 4 + four];
                        [[unroll]] for (uint i = 0; i < 4; ++i) {
                            [[unroll]] for (uint c = 0; c < QUERY_QUADS; ++c) {
                                vec4 numbers = space[ROWS_AT + (four * 4 + i) * PITCH + min(column + c * COLUMN_THREADS, QUADS - 1)];
                                [[unroll]] for (uint r = 0; r < ROWS; ++r)
                                    result[r * QUERY_QUADS + c] = fma(vec4(ds[r][i]), numbers, result[r * QUERY_QUADS + c]);
                            }
                        }
                    }
                }
                [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                    const uint t = first_query + row + ROW_THREADS * r;
                    if (t < query_length) {
                        const uint part = gl_WorkGroupID.x * gl_NumWorkGroups.z + sequence;
                        const uint start = ((part * query_length + t) * QUERY_HEADS + head) * WIDTH;
                        [[unroll]] for (uint c = 0; c < QUERY_QUADS; ++c)
                            write_quad(query_parts, start, column + c * COLUMN_THREADS, result[r * QUERY_QUADS + c]);
                    }
                }
            }
        }
    }

    [[unroll]] for (uint i = 0; i < 4 * FOURS; ++i) {
        uint j = first_key + i / 4 * BLOCK_KEYS + four_of * 4 + i % 4;
        if (j < key_length) {
            uint start = (sequence * key_length + j) * GRADIENT_STRIDE + key_head * WIDTH;
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                uint quad = quad_of + c * ROW_THREADS;
                // The queries were multiplied by query_factor().
                write_quad(key_value_gradient, start, quad, key_result[i * OUT_QUADS + c] * (SCALE / query_factor()));
                write_quad(key_value_gradient, start + KEY_HEADS * WIDTH, quad, value_result[i * OUT_QUADS + c]);
            }
        }
    }
}
