// Causal attention, backward, the gradients of a tile of keys and values of one key head to a workgroup
// (FlashAttention-2, Dao 2023), the query heads of its group in turn.
//
//     key_gradient[b, j, g] = SCALE sum over h, t >= j - past with first_keys[b, t] <= j of ds[h, t, j] query[b, t, h]
//     value_gradient[b, j, g] = sum over h, t >= j - past with first_keys[b, t] <= j of dropout(p[h, t, j]) gradient[b, t, h]
//
// Operands, p and ds as in attention_backward_query; key_gradient and value_gradient [B, key_length, KEY_HEADS, WIDTH],
// their tokens GRADIENT_STRIDE elements apart. Grid: (tiles of keys, KEY_HEADS, B). numpy: Backend.attention_backward.
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
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = FOURS * COLUMN_THREADS + 1;
const uint STAGED = (TILE_QUERIES * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 key_tile[TILE_KEYS * PITCH];
shared vec4 value_tile[TILE_KEYS * PITCH];
shared vec4 query_tile[TILE_QUERIES * PITCH];  // queries, their gradients, and queries again
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];
shared vec2 row_numbers[TILE_QUERIES];  // logsumexp and delta

#include "attention_dropout.glsl"

// Quads of a tile of queries or gradients on their way from memory to shared memory.
vec4 staged[STAGED];

void fetch_queries(uint start, uint first_query) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS, t = first_query + token;
        bool exists = token < TILE_QUERIES && t < query_length;
        staged[i] = exists ? read_quad(query, start + t * query_token_stride, index % TILE_QUADS) : vec4(0.0);
    }
}

void fetch_gradients(uint sequence, uint head, uint first_query) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS, t = first_query + token;
        uint start = ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH;
        bool exists = token < TILE_QUERIES && t < query_length;
        staged[i] = exists ? read_float_quad(gradient, start, index % TILE_QUADS) : vec4(0.0);
    }
}

void put(float factor) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
        if (token < TILE_QUERIES) query_tile[token * PITCH + index % TILE_QUADS] = staged[i] * factor;
    }
}

void main() {
    const uint column = column_among(COLUMN_THREADS), row = row_among(COLUMN_THREADS);
    // Of the results.
    const uint quad_of = column_among(ROW_THREADS), four_of = row_among(ROW_THREADS);
    const uint first_key = gl_WorkGroupID.x * TILE_KEYS;
    const uint key_head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
    const uint past = key_length - query_length;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint end_query = end_of_queries(sequence, first_key + TILE_KEYS);
    const uint whole_end = end_of_queries(sequence, first_key + 1);  // queries from here on do not see every key
    const uint start_query = (first_key - min(first_key, past)) / TILE_QUERIES * TILE_QUERIES;

    for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * TILE_QUADS; i += THREADS) {
        uint token = i / TILE_QUADS, quad = i % TILE_QUADS, j = first_key + token;
        bool exists = j < key_length;
        uint place = slot_of(token) * PITCH + quad;
        key_tile[place] = exists ? read_quad(key, key_start + j * key_token_stride, quad) : vec4(0.0);
        value_tile[place] = exists ? read_quad(value, value_start + j * value_token_stride, quad) : vec4(0.0);
    }
    vec4 key_result[4 * FOURS * OUT_QUADS], value_result[4 * FOURS * OUT_QUADS];
    [[unroll]] for (uint i = 0; i < 4 * FOURS * OUT_QUADS; ++i) key_result[i] = value_result[i] = vec4(0.0);

// Adds to `results` the products of what score_tile has with the rows of query_tile.
#define ADD_RESULTS(results)                                                                                           \
    for (uint t = 0; t < TILE_QUERIES; ++t) {                                                                          \
        vec4 factors[FOURS];                                                                                           \
        [[unroll]] for (uint f = 0; f < FOURS; ++f) factors[f] = score_tile[t * SCORE_PITCH + f * COLUMN_THREADS + four_of];\
        [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {                                                              \
            vec4 numbers = query_tile[t * PITCH + quad_of + c * ROW_THREADS];                                          \
            [[unroll]] for (uint i = 0; i < 4 * FOURS; ++i)                                                            \
                results[i * OUT_QUADS + c] = fma(vec4(factors[i / 4][i % 4]), numbers, results[i * OUT_QUADS + c]);    \
        }                                                                                                              \
    }

    for (uint head = key_head * GROUP; head < (key_head + 1) * GROUP; ++head) {
        const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
        for (uint first_query = start_query; first_query < end_query; first_query += TILE_QUERIES) {
            fetch_queries(query_start, first_query);
            barrier();
            put(query_factor());
            for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES; i += THREADS) {
                uint t = first_query + i, index = (sequence * QUERY_HEADS + head) * query_length + t;
                row_numbers[i] = t < query_length ? vec2(logsumexp.at[index], delta.at[index]) : vec2(0.0);
            }
            if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
            barrier();
            vec4 scores[ROWS * FOURS], products[ROWS * FOURS];
            [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) scores[i] = products[i] = vec4(0.0);
            ADD_PRODUCTS(scores, query_tile, key_tile)
            const bool whole = first_key + TILE_KEYS <= past + first_query + 1 && first_query + TILE_QUERIES <= whole_end;
            vec4 probabilities[ROWS * FOURS];
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * (n / FOURS);
                probabilities[n] = probabilities_of(scores[n], row_numbers[tile_row].x);
                if (!whole) probabilities[n] = seen_of(probabilities[n], sequence, first_query + tile_row, first_key + four * 4);
                vec4 kept_scaled = probabilities[n];
                if (DROPOUT == 1) kept_scaled *= KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
                score_tile[tile_row * SCORE_PITCH + four] = kept_scaled;
            }
            fetch_gradients(sequence, head, first_query);
            barrier();
            put(1.0);
            barrier();
            ADD_RESULTS(value_result)
            ADD_PRODUCTS(products, query_tile, value_tile)
            fetch_queries(query_start, first_query);
            barrier();
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * (n / FOURS);
                if (DROPOUT == 1) products[n] *= KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
                vec4 gradients = probabilities[n] * (products[n] - row_numbers[tile_row].y);
                if (SOFT_CAP != 0.0) gradients *= 1.0 - scores[n] * scores[n];
                score_tile[tile_row * SCORE_PITCH + four] = gradients;
            }
            put(query_factor());
            barrier();
            ADD_RESULTS(key_result)
        }
    }

    [[unroll]] for (uint i = 0; i < 4 * FOURS; ++i) {
        uint j = first_key + i / 4 * BLOCK_KEYS + four_of * 4 + i % 4;
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
