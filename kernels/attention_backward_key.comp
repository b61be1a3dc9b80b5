// Causal attention, backward, the gradients of a tile of keys and values of one key head to a workgroup
// (FlashAttention-2, Dao 2023), the query heads of its group in turn.
//
//     key_gradient[b, j, g] = SCALE sum over h, t >= j - past with first_keys[b, t] <= j of ds[h, t, j] query[b, t, h]
//     value_gradient[b, j, g] = sum over h, t >= j - past with first_keys[b, t] <= j of dropout(p[h, t, j]) gradient[b, t, h]
//
// Operands, p and ds as in attention_backward_query; key_gradient and value_gradient [B, key_length, KEY_HEADS, WIDTH],
// their tokens GRADIENT_STRIDE elements apart. Grid: (tiles of keys, KEY_HEADS, B). numpy: Backend.attention_backward.
//
// Thread (row, column) owns of a tile's scores ROWS queries and four neighbouring keys; of the results those four keys
// and every ROW_THREADS-th quad. Scores change owners by way of shared memory.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
layout(local_size_x_id = 0) in;

const uint ROW_THREADS = THREADS / COLUMN_THREADS;
const uint TILE_QUERIES = ROW_THREADS * ROWS;
const uint TILE_KEYS = COLUMN_THREADS * 4;
const uint OUT_QUADS = (QUADS + ROW_THREADS - 1) / ROW_THREADS;
const uint TILE_QUADS = OUT_QUADS * ROW_THREADS;
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = COLUMN_THREADS + 1;
const uint STAGED = (TILE_QUERIES * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 query_tile[TILE_QUERIES * PITCH];
shared vec4 gradient_tile[TILE_QUERIES * PITCH];
shared vec4 key_tile[TILE_KEYS * PITCH];
shared vec4 value_tile[TILE_KEYS * PITCH];
shared vec4 probability_tile[TILE_QUERIES * SCORE_PITCH];
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

vec4 staged_queries[STAGED], staged_gradients[STAGED];

void main() {
    // Neighbouring threads own neighbouring quads of the results, but neighbouring keys of the scores.
    const uint column = gl_LocalInvocationIndex % COLUMN_THREADS, row = gl_LocalInvocationIndex / COLUMN_THREADS;
    const uint quad_of = gl_LocalInvocationIndex % ROW_THREADS, four_of = gl_LocalInvocationIndex / ROW_THREADS;
    const uint first_key = gl_WorkGroupID.x * TILE_KEYS;
    const uint key_head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
    const uint past = key_length - query_length;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint end_query = end_of_queries(sequence, first_key + TILE_KEYS);
    const uint start_query = (first_key - min(first_key, past)) / TILE_QUERIES * TILE_QUERIES;

    for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * TILE_QUADS; i += THREADS) {
        uint token = i / TILE_QUADS, quad = i % TILE_QUADS, j = first_key + token;
        bool exists = j < key_length;
        // Key 4 c + i lies at row i COLUMN_THREADS + c, so that neighbouring threads read neighbouring rows.
        uint slot = (token % 4 * COLUMN_THREADS + token / 4) * PITCH + quad;
        key_tile[slot] = exists ? read_quad(key, key_start + j * key_token_stride, quad) : vec4(0.0);
        value_tile[slot] = exists ? read_quad(value, value_start + j * value_token_stride, quad) : vec4(0.0);
    }
    vec4 key_result[4 * OUT_QUADS], value_result[4 * OUT_QUADS];
    [[unroll]] for (uint i = 0; i < 4 * OUT_QUADS; ++i) key_result[i] = value_result[i] = vec4(0.0);

    for (uint head = key_head * GROUP; head < (key_head + 1) * GROUP; ++head) {
        const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
        for (uint first_query = start_query; first_query < end_query; first_query += TILE_QUERIES) {
            [[unroll]] for (uint i = 0; i < STAGED; ++i) {
                uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS, quad = index % TILE_QUADS;
                uint t = first_query + token;
                staged_queries[i] = staged_gradients[i] = vec4(0.0);
                if (token < TILE_QUERIES && t < query_length) {
                    uint gradient_start = ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH;
                    staged_queries[i] = read_quad(query, query_start + t * query_token_stride, quad) * query_factor();
                    staged_gradients[i] = read_float_quad(gradient, gradient_start, quad);
                }
            }
            float row_logsumexp[ROWS], row_delta[ROWS];
            uint row_first[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                uint t = first_query + row + ROW_THREADS * r;
                uint index = (sequence * QUERY_HEADS + head) * query_length + t;
                row_logsumexp[r] = t < query_length ? logsumexp.at[index] : 0.0;
                row_delta[r] = t < query_length ? delta.at[index] : 0.0;
                row_first[r] = first_seen(sequence, t);
            }
            barrier();
            [[unroll]] for (uint i = 0; i < STAGED; ++i) {
                uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
                if (token < TILE_QUERIES) {
                    query_tile[token * PITCH + index % TILE_QUADS] = staged_queries[i];
                    gradient_tile[token * PITCH + index % TILE_QUADS] = staged_gradients[i];
                }
            }
            if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
            barrier();

            vec4 scores[ROWS], products[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r] = products[r] = vec4(0.0);
            for (uint quad = 0; quad < QUADS; ++quad) {
                vec4 q[ROWS], g[ROWS];
                [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                    q[r] = query_tile[(row + ROW_THREADS * r) * PITCH + quad];
                    g[r] = gradient_tile[(row + ROW_THREADS * r) * PITCH + quad];
                }
                [[unroll]] for (uint i = 0; i < 4; ++i) {
                    vec4 k = key_tile[(i * COLUMN_THREADS + column) * PITCH + quad];
                    vec4 v = value_tile[(i * COLUMN_THREADS + column) * PITCH + quad];
                    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                        scores[r][i] = multiply_add(q[r], k, scores[r][i]);
                        products[r][i] = multiply_add(g[r], v, products[r][i]);
                    }
                }
            }
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                const uint tile_row = row + ROW_THREADS * r;
                vec4 factors = vec4(1.0), probabilities;
                if (DROPOUT == 1) factors = KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, column);
                [[unroll]] for (uint i = 0; i < 4; ++i) {
                    const uint j = first_key + column * 4 + i;
                    bool seen = j <= past + first_query + tile_row && j >= row_first[r];
                    probabilities[i] = score_probability(scores[r][i], row_logsumexp[r], seen);
                    products[r][i] = probabilities[i] * (products[r][i] * factors[i] - row_delta[r]);
                    if (SOFT_CAP != 0.0) products[r][i] *= 1.0 - scores[r][i] * scores[r][i];
                }
                probability_tile[tile_row * SCORE_PITCH + column] = probabilities * factors;
                score_tile[tile_row * SCORE_PITCH + column] = products[r];
            }
            barrier();
            for (uint t = 0; t < TILE_QUERIES; ++t) {
                vec4 p = probability_tile[t * SCORE_PITCH + four_of], ds = score_tile[t * SCORE_PITCH + four_of];
                [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                    vec4 q = query_tile[t * PITCH + quad_of + c * ROW_THREADS];
                    vec4 g = gradient_tile[t * PITCH + quad_of + c * ROW_THREADS];
                    [[unroll]] for (uint i = 0; i < 4; ++i) {
                        key_result[i * OUT_QUADS + c] = fma(vec4(ds[i]), q, key_result[i * OUT_QUADS + c]);
                        value_result[i * OUT_QUADS + c] = fma(vec4(p[i]), g, value_result[i * OUT_QUADS + c]);
                    }
                }
            }
        }
    }

    [[unroll]] for (uint i = 0; i < 4; ++i) {
        uint j = first_key + four_of * 4 + i;
        if (j < key_length) {
            uint start = (sequence * key_length + j) * GRADIENT_STRIDE + key_head * WIDTH;
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                uint quad = quad_of + c * ROW_THREADS;
                // The queries were multiplied by query_factor().
                write_quad(key_gradient, start, quad, key_result[i * OUT_QUADS + c] * (SCALE / query_factor()));
                write_quad(value_gradient, start, quad, value_result[i * OUT_QUADS + c]);
            }
        }
    }
}
