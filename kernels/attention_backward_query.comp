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
#include "attention_rows.glsl"
layout(local_size_x_id = 0) in;

#include "attention_dropout.glsl"

void main() {
    const uint column = column_among(COLUMN_THREADS), row = row_among(COLUMN_THREADS);
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    const uint whole_start = first_seen(sequence, first_query + TILE_QUERIES - 1);  // from here on, all see every key
    const uint query_start = sequence * query_batch_stride + first_query * query_token_stride + head * QUERY_HEAD_STRIDE;
    const uint gradient_start = ((sequence * query_length + first_query) * QUERY_HEADS + head) * WIDTH;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;

    vec4 result[ROWS * OUT_QUADS];
    float row_logsumexp[ROWS], row_delta[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        uint t = first_query + row + ROW_THREADS * r, index = (sequence * QUERY_HEADS + head) * query_length + t;
        row_logsumexp[r] = t < query_length ? logsumexp.at[index] : 0.0;
        row_delta[r] = t < query_length ? delta.at[index] : 0.0;
    }

    Rows queries = Rows(query, query_start, query_token_stride, query_length - first_query);
    Rows gradients = Rows(gradient, gradient_start, QUERY_HEADS * WIDTH, query_length - first_query);
    Rows all_keys = Rows(key, key_start, key_token_stride, keys);
    Rows all_values = Rows(value, value_start, value_token_stride, keys);
    Rows begin_values = rows_from(all_values, start_key);
    FETCH_SLICES(0, gradients, begin_values)
    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        Rows tile_keys = rows_from(all_keys, first_key), tile_values = rows_from(all_values, first_key);
        Rows next_values = rows_from(tile_values, TILE_KEYS);
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        vec4 products[ROWS * FOURS], scores[ROWS * FOURS];
        [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) products[i] = scores[i] = vec4(0.0);
        ADD_PRODUCTS(products, 1.0, gradients, tile_values, FETCH_SLICES(0, queries, tile_keys))
        ADD_PRODUCTS(scores, query_factor(), queries, tile_keys, FETCH_ROWS(tile_keys))
        const bool whole = first_key + TILE_KEYS <= past + first_query + 1 && first_key >= whole_start;
        [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
            const uint r = n / FOURS, four = n % FOURS * COLUMN_THREADS + column, tile_row = row + ROW_THREADS * r;
            vec4 factors = vec4(1.0);
            if (DROPOUT == 1) factors = KEEP_SCALE * kept(sequence, head, first_query, tile_row, first_key, four);
            vec4 probabilities = probabilities_of(scores[n], row_logsumexp[r]);
            if (!whole) probabilities = seen_of(probabilities, sequence, first_query + tile_row, first_key + four * 4);
            products[n] = probabilities * (products[n] * factors - row_delta[r]);
            if (SOFT_CAP != 0.0) products[n] *= 1.0 - scores[n] * scores[n];
        }
        ADD_ROWS(products, tile_keys, FETCH_SLICES(0, gradients, next_values))
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
