// Causal attention, backward, the gradient of a tile of queries of one head to a workgroup (FlashAttention-2, Dao 2023).
//
//     p = exp2(cap(query . key SCALE) - logsumexp),  ds = p (dropout(gradient . value) - delta) cap'
//     query_gradient[b, t, h] = SCALE sum over first_keys[b, t] <= j <= past + t of ds[t, j] key[b, j, g]
//
// Operands as in attention_forward; gradient [B, query_length, QUERY_HEADS, WIDTH] and logsumexp and delta [B,
// QUERY_HEADS, query_length] contiguous; query_gradient [B, query_length, QUERY_HEADS, WIDTH], its tokens
// GRADIENT_STRIDE elements apart. Grid: (tiles of queries, QUERY_HEADS, B). numpy: Backend.attention_backward.
//
// Threads own scores and results as in attention_forward.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_tiles.glsl"
layout(local_size_x_id = 0) in;

const uint OUT_QUADS = (QUADS + COLUMN_THREADS - 1) / COLUMN_THREADS;
const uint TILE_QUADS = OUT_QUADS * COLUMN_THREADS;
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = FOURS * COLUMN_THREADS + 1;
const uint STAGED = (TILE_KEYS * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 query_tile[TILE_QUERIES * PITCH];
shared vec4 gradient_tile[TILE_QUERIES * PITCH];
shared vec4 key_tile[TILE_KEYS * PITCH];  // values, then keys
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];

#include "attention_dropout.glsl"

// Quads of a tile of values or keys on their way from memory to shared memory.
vec4 staged[STAGED];

void fetch(JOIN(T, _buffer) source, uint start, uint stride, uint count) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
        staged[i] = token < min(count, TILE_KEYS) ? read_quad(source, start + token * stride, index % TILE_QUADS) : vec4(0.0);
    }
}

void put() {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
        if (token < TILE_KEYS) key_tile[slot_of(token) * PITCH + index % TILE_QUADS] = staged[i];
    }
}

void main() {
    const uint column = column_among(COLUMN_THREADS), row = row_among(COLUMN_THREADS);
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    const uint whole_start = first_seen(sequence, first_query + TILE_QUERIES - 1);  // from here on, all see every key
    const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;

    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * TILE_QUADS; i += THREADS) {
        uint token = i / TILE_QUADS, quad = i % TILE_QUADS, t = first_query + token;
        vec4 q = vec4(0.0), g = vec4(0.0);
        if (t < query_length) {
            q = read_quad(query, query_start + t * query_token_stride, quad) * query_factor();
            g = read_float_quad(gradient, ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH, quad);
        }
        query_tile[token * PITCH + quad] = q;
        gradient_tile[token * PITCH + quad] = g;
    }
    vec4 result[ROWS * OUT_QUADS];
    float row_logsumexp[ROWS], row_delta[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint t = first_query + row + ROW_THREADS * r, index = (sequence * QUERY_HEADS + head) * query_length + t;
        row_logsumexp[r] = t < query_length ? logsumexp.at[index] : 0.0;
        row_delta[r] = t < query_length ? delta.at[index] : 0.0;
    }

    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        fetch(value, value_start + first_key * value_token_stride, value_token_stride, keys - first_key);
        barrier();
        put();
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        barrier();
        vec4 products[ROWS * FOURS], scores[ROWS * FOURS];
        [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) products[i] = scores[i] = vec4(0.0);
        ADD_PRODUCTS(products, gradient_tile, key_tile)
        fetch(key, key_start + first_key * key_token_stride, key_token_stride, keys - first_key);
        barrier();
        put();
        barrier();
        ADD_PRODUCTS(scores, query_tile, key_tile)
        const bool whole = first_key + TILE_KEYS <= past + first_query + 1 && first_key >= whole_start;
        [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
            const uint r = n / FOURS, four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * r;
            vec4 factors = vec4(1.0);
            if (DROPOUT == 1) factors = KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
            vec4 probabilities = probabilities_of(scores[n], row_logsumexp[r]);
            if (!whole) probabilities = seen_of(probabilities, sequence, first_query + tile_row, first_key + four * 4);
            vec4 gradients = probabilities * (products[n] * factors - row_delta[r]);
            if (SOFT_CAP != 0.0) gradients *= 1.0 - scores[n] * scores[n];
            score_tile[tile_row * SCORE_PITCH + four] = gradients;
        }
        barrier();
        for (uint four = 0; four < FOURS * COLUMN_THREADS; ++four) {
            const uint slot = four / COLUMN_THREADS * BLOCK_KEYS + four % COLUMN_THREADS;
            vec4 ds[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) ds[r] = score_tile[(row + ROW_THREADS * r) * SCORE_PITCH + four];
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                    vec4 k = key_tile[(slot + i * COLUMN_THREADS) * PITCH + column + c * COLUMN_THREADS];
                    [[unroll]] for (uint r = 0; r < ROWS; ++r)
                        result[r * OUT_QUADS + c] = fma(vec4(ds[r][i]), k, result[r * OUT_QUADS + c]);
                }
            }
        }
    }

    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint t = first_query + row + ROW_THREADS * r;
        if (t < query_length) {
            uint start = (sequence * query_length + t) * GRADIENT_STRIDE + head * WIDTH;
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c)
                write_quad(query_gradient, start, column + c * COLUMN_THREADS, result[r * OUT_QUADS + c] * SCALE);
        }
    }
}
