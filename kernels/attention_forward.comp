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
layout(local_size_x_id = 0) in;

const uint OUT_QUADS = (QUADS + COLUMN_THREADS - 1) / COLUMN_THREADS;
const uint TILE_QUADS = OUT_QUADS * COLUMN_THREADS;
const uint PITCH = TILE_QUADS + 1;  // odd, so that rows begin in different banks
const uint SCORE_PITCH = COLUMN_THREADS + 1;
const uint STAGED = (TILE_KEYS * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 query_tile[TILE_QUERIES * PITCH];
shared vec4 key_tile[TILE_KEYS * PITCH];  // keys, then values
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];
shared vec4 row_parts[TILE_QUERIES * COLUMN_THREADS / 4];

#include "attention_dropout.glsl"

// Quads of a tile of keys or values on their way from memory to shared memory.
vec4 staged[STAGED];

void fetch(JOIN(T, _buffer) source, uint start, uint stride, uint count) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
        staged[i] = token < min(count, TILE_KEYS) ? read_quad(source, start + token * stride, index % TILE_QUADS) : vec4(0.0);
    }
}

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

    fetch(key, key_start + start_key * key_token_stride, key_token_stride, keys - start_key);
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * TILE_QUADS; i += THREADS) {
        uint token = i / TILE_QUADS, quad = i % TILE_QUADS;
        bool exists = first_query + token < query_length;
        vec4 numbers = exists ? read_quad(query, query_start + token * query_token_stride, quad) : vec4(0.0);
        query_tile[token * PITCH + quad] = numbers * query_factor();
    }

    vec4 result[ROWS * OUT_QUADS];
    float maxima[ROWS], sums[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        maxima[r] = LOWEST;
        sums[r] = 0.0;
    }

    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
            if (token < TILE_KEYS) key_tile[slot_of(token) * PITCH + index % TILE_QUADS] = staged[i];
        }
        barrier();
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);

        vec4 scores[ROWS * FOURS];
        [[unroll]] for (uint i = 0; i < ROWS * FOURS; ++i) scores[i] = vec4(0.0);
        ADD_PRODUCTS(scores, query_tile, key_tile)
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
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 largest = scores[r * FOURS];
            [[unroll]] for (uint f = 1; f < FOURS; ++f) largest = max(largest, scores[r * FOURS + f]);
            row_parts[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + column / 4][column % 4] =
                max(max(largest.x, largest.y), max(largest.z, largest.w));
        }
        fetch(value, value_start + first_key * value_token_stride, value_token_stride, keys - first_key);
        barrier();
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
            if (token < TILE_KEYS) key_tile[token * PITCH + index % TILE_QUADS] = staged[i];
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 largest = vec4(maxima[r]);
            [[unroll]] for (uint i = 0; i < COLUMN_THREADS / 4; ++i)
                largest = max(largest, row_parts[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + i]);
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
        [[unroll]] for (uint f = 0; f < FOURS; ++f) {
            if (f > 0) barrier();
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                const uint tile_row = row + ROW_THREADS * r;
                vec4 probabilities = scores[r * FOURS + f];
                if (DROPOUT == 1)
                    probabilities *= kept(sequence, head, first_query, tile_row, first_key, f * COLUMN_THREADS + column);
                score_tile[tile_row * SCORE_PITCH + column] = probabilities;
            }
            barrier();
            for (uint four = 0; four < COLUMN_THREADS; ++four) {
                vec4 p[ROWS];
                [[unroll]] for (uint r = 0; r < ROWS; ++r) p[r] = score_tile[(row + ROW_THREADS * r) * SCORE_PITCH + four];
                [[unroll]] for (uint i = 0; i < 4; ++i) {
                    [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                        vec4 v = key_tile[(f * BLOCK_KEYS + four * 4 + i) * PITCH + column + c * COLUMN_THREADS];
                        [[unroll]] for (uint r = 0; r < ROWS; ++r)
                            result[r * OUT_QUADS + c] = fma(vec4(p[r][i]), v, result[r * OUT_QUADS + c]);
                    }
                }
            }
        }
        if (first_key + TILE_KEYS < keys) {
            uint next = first_key + TILE_KEYS;
            fetch(key, key_start + next * key_token_stride, key_token_stride, keys - next);
        }
        barrier();
    }

    [[unroll]] for (uint r = 0; r < ROWS; ++r)
        row_parts[(row + ROW_THREADS * r) * (COLUMN_THREADS / 4) + column / 4][column % 4] = sums[r];
    barrier();
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        const uint tile_row = row + ROW_THREADS * r, t = first_query + tile_row;
        vec4 parts = vec4(0.0);
        for (uint i = 0; i < COLUMN_THREADS / 4; ++i) parts += row_parts[tile_row * (COLUMN_THREADS / 4) + i];
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
