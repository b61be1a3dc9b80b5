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
layout(local_size_x_id = 0) in;

const uint ROW_THREADS = THREADS / COLUMN_THREADS;
const uint TILE_QUERIES = ROW_THREADS * ROWS;
const uint TILE_KEYS = COLUMN_THREADS * 4;
const uint OUT_QUADS = (QUADS + COLUMN_THREADS - 1) / COLUMN_THREADS;
const uint TILE_QUADS = OUT_QUADS * COLUMN_THREADS;
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = COLUMN_THREADS + 1;
const uint STAGED = (TILE_KEYS * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 query_tile[TILE_QUERIES * PITCH];
shared vec4 gradient_tile[TILE_QUERIES * PITCH];
shared vec4 key_tile[TILE_KEYS * PITCH];
shared vec4 value_tile[TILE_KEYS * PITCH];
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

uint row_of(uint r) { return gl_LocalInvocationIndex / COLUMN_THREADS + ROW_THREADS * r; }

vec4 staged_keys[STAGED], staged_values[STAGED];

void main() {
    const uint column = gl_LocalInvocationIndex % COLUMN_THREADS;
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
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
    uint row_first[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint t = first_query + row_of(r), index = (sequence * QUERY_HEADS + head) * query_length + t;
        row_logsumexp[r] = t < query_length ? logsumexp.at[index] : 0.0;
        row_delta[r] = t < query_length ? delta.at[index] : 0.0;
        row_first[r] = first_seen(sequence, t);
    }

    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS, quad = index % TILE_QUADS;
            uint j = first_key + token;
            bool exists = token < TILE_KEYS && j < keys;
            staged_keys[i] = exists ? read_quad(key, key_start + j * key_token_stride, quad) : vec4(0.0);
            staged_values[i] = exists ? read_quad(value, value_start + j * value_token_stride, quad) : vec4(0.0);
        }
        barrier();
        // Key 4 c + i lies at row i COLUMN_THREADS + c, so that neighbouring threads read neighbouring rows.
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
            uint slot = (token % 4 * COLUMN_THREADS + token / 4) * PITCH + index % TILE_QUADS;
            if (token < TILE_KEYS) {
                key_tile[slot] = staged_keys[i];
                value_tile[slot] = staged_values[i];
            }
        }
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        barrier();

        vec4 scores[ROWS], products[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r] = products[r] = vec4(0.0);
        for (uint quad = 0; quad < QUADS; ++quad) {
            vec4 q[ROWS], g[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                q[r] = query_tile[row_of(r) * PITCH + quad];
                g[r] = gradient_tile[row_of(r) * PITCH + quad];
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
            if (DROPOUT == 1)
                products[r] *= KEEP_SCALE * kept(sequence, head, first_query, row_of(r), first_key, column);
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                const uint j = first_key + column * 4 + i;
                bool seen = j <= past + first_query + row_of(r) && j >= row_first[r];
                products[r][i] = score_gradient(scores[r][i], products[r][i], row_logsumexp[r], row_delta[r], seen);
            }
            score_tile[row_of(r) * SCORE_PITCH + column] = products[r];
        }
        barrier();
        for (uint four = 0; four < COLUMN_THREADS; ++four) {
            vec4 ds[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) ds[r] = score_tile[row_of(r) * SCORE_PITCH + four];
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                    vec4 k = key_tile[(i * COLUMN_THREADS + four) * PITCH + column + c * COLUMN_THREADS];
                    [[unroll]] for (uint r = 0; r < ROWS; ++r)
                        result[r * OUT_QUADS + c] = fma(vec4(ds[r][i]), k, result[r * OUT_QUADS + c]);
                }
            }
        }
    }

    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint t = first_query + row_of(r);
        if (t < query_length) {
            uint start = (sequence * query_length + t) * GRADIENT_STRIDE + head * WIDTH;
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c)
                write_quad(query_gradient, start, column + c * COLUMN_THREADS, result[r * OUT_QUADS + c] * SCALE);
        }
    }
}
