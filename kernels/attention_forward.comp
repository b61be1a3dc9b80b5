// Causal attention, forward, a tile of queries of one head to a workgroup (FlashAttention-2, Dao 2023).
//
//     attended[b, t, h] = sum over first_keys[b, t] <= j <= past + t of dropout(softmax_j(cap(query[b, t, h] . key[b, j, g] SCALE))) value[b, j, g]
//
// with past = key_length - query_length, g = h / (QUERY_HEADS / KEY_HEADS), cap(s) = SOFT_CAP tanh(s / SOFT_CAP).
// query [B, query_length, QUERY_HEADS, WIDTH]; key and value [B, key_length, KEY_HEADS, WIDTH], each with strides in
// elements; attended [B, query_length, QUERY_HEADS, WIDTH] contiguous; logsumexp [B, QUERY_HEADS, query_length], in base 2.
// Grid: (tiles of queries, QUERY_HEADS, B). numpy: definitions.attention, Backend.attention.
//
// The result of a thread's queries is every COLUMN_THREADS-th quad of them. The scores are multiplied with the values by way
// of shared memory, a block of keys at a time.

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
    // The last tile has the most keys to see, so it begins first.
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    const uint whole_start = first_seen(sequence, first_query + TILE_QUERIES - 1);  // from here on, all see every key
    const uint query_start = sequence * query_batch_stride + first_query * query_token_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;

    vec4 result[ROWS * OUT_QUADS];
    float maxima[ROWS], sums[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        maxima[r] = LOWEST;
        sums[r] = 0.0;
    }

    Rows queries = Rows(query, query_start, query_token_stride, query_length - first_query);
    Rows all_keys = Rows(key, key_start, key_token_stride, keys);
    Rows all_values = Rows(value, value_start, value_token_stride, keys);
    Rows begin_keys = rows_from(all_keys, start_key);
    FETCH_SLICES(0, queries, begin_keys)
    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        Rows tile_keys = rows_from(all_keys, first_key), tile_values = rows_from(all_values, first_key);
        Rows next_keys = rows_from(tile_keys, TILE_KEYS);
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        vec4 scores[ROWS * FOURS];
        [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) scores[i] = vec4(0.0);
        ADD_PRODUCTS(scores, query_factor(), queries, tile_keys, FETCH_ROWS(tile_values))
        if (SOFT_CAP != 0.0) {
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n)
                [[unroll]] for (uint i = 0; i < 4; ++i) scores[n][i] = bounded_tanh(scores[n][i]) * (SOFT_CAP * LOG2_E);
        }
        if (first_key + TILE_KEYS > past + first_query + 1 || first_key < whole_start) {
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint t = first_query + row + ROW_THREADS * (n / FOURS);
                const uint row_first = first_seen(sequence, t);
                [[unroll]] for (uint i = 0; i < 4; ++i) {
                    const uint j = first_key + n % FOURS * BLOCK_KEYS + column * 4 + i;
                    if (j > past + t || j < row_first) scores[n][i] = NEGATIVE_INFINITY;
                }
            }
        }
        barrier();  // `space` may still be read
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 largest = scores[r * FOURS];
            [[unroll]] for (uint f = 1; f < FOURS; ++f) largest = max(largest, scores[r * FOURS + f]);
            space[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + column / 4][column % 4] =
                max(max(largest.x, largest.y), max(largest.z, largest.w));
        }
        barrier();
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 largest = vec4(maxima[r]);
            [[unroll]] for (uint i = 0; i < COLUMN_THREADS / 4; ++i)
                largest = max(largest, space[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + i]);
            float maximum = max(max(largest.x, largest.y), max(largest.z, largest.w));
            float factor = exp2(maxima[r] - maximum);
            maxima[r] = maximum;
            sums[r] *= factor;
            [[unroll]] for (uint f = 0; f < FOURS; ++f) {
                vec4 exponentials = exp2(scores[r * FOURS + f] - maximum);
                sums[r] += exponentials.x + exponentials.y + exponentials.z + exponentials.w;
                scores[r * FOURS + f] = exponentials;
            }
            [[unroll]] for (uint i = 0; i < OUT_QUADS; ++i) result[r * OUT_QUADS + i] *= factor;
        }
        if (DROPOUT == 1) {
            [[unroll]] for (uint n = 0; n < ROWS * FOURS; ++n) {
                const uint tile_row = row + ROW_THREADS * (n / FOURS), four = n % FOURS * COLUMN_THREADS + column;
                scores[n] *= kept(sequence, head, first_query, tile_row, first_key, four);
            }
        }
        ADD_ROWS(scores, tile_values, FETCH_SLICES(0, queries, next_keys))
    }

    barrier();
    [[unroll]] for (uint r = 0; r < ROWS; ++r)
        space[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + column / 4][column % 4] = sums[r];
    barrier();
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        const uint tile_row = row + ROW_THREADS * r, t = first_query + tile_row;
        vec4 parts = vec4(0.0);
        for (uint i = 0; i < COLUMN_THREADS / 4; ++i) parts += space[tile_row * (COLUMN_THREADS / 4) + i];
        float sum = parts.x + parts.y + parts.z + parts.w;
        if (t < query_length) {
            float factor = (DROPOUT == 1 ? KEEP_SCALE : 1.0) / sum;
            uint start = ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH;
            [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c)
                write_quad(attended, start, column + c * COLUMN_THREADS, result[r * OUT_QUADS + c] * factor);
            if (SAVE == 1 && column == 0)
                logsumexp.at[(sequence * QUERY_HEADS + head) * query_length + t] = maxima[r] + log2(sum);
        }
    }
}
