// Causal attention, forward, a tile of queries of one head to a workgroup (FlashAttention-2, Dao 2023).
//
//     attended[b, t, h] = sum over first_keys[b, t] <= j <= past + t of dropout(softmax_j(cap(query[b, t, h] . key[b, j, g] SCALE))) value[b, j, g]
//
// with past = key_length - query_length, g = h / (QUERY_HEADS / KEY_HEADS), cap(s) = SOFT_CAP tanh(s / SOFT_CAP).
// query [B, query_length, QUERY_HEADS, WIDTH]; key and value [B, key_length, KEY_HEADS, WIDTH], each with strides in
// elements; attended [B, query_length, QUERY_HEADS, WIDTH] contiguous; logsumexp [B, QUERY_HEADS, query_length], in base 2.
// Grid: (tiles of queries, QUERY_HEADS, B). numpy: definitions.attention, Backend.attention.
//
// Thread (row, column) of ROW_THREADS x COLUMN_THREADS owns ROWS queries; of a tile's scores four neighbouring keys, and
// of the result every COLUMN_THREADS-th quad. The scores are multiplied with the values by way of shared memory.

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
const uint PITCH = TILE_QUADS + 1;  // odd, so that rows begin in different banks
const uint SCORE_PITCH = COLUMN_THREADS + 1;
const uint STAGED = (TILE_KEYS * TILE_QUADS + THREADS - 1) / THREADS;

shared vec4 query_tile[TILE_QUERIES * PITCH];
shared vec4 key_tile[TILE_KEYS * PITCH];  // keys, then values
shared vec4 score_tile[TILE_QUERIES * SCORE_PITCH];
shared vec4 row_parts[TILE_QUERIES * COLUMN_THREADS / 4];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

uint row_of(uint r) { return gl_LocalInvocationIndex / COLUMN_THREADS + ROW_THREADS * r; }

// Quads of a tile of keys or values on their way from memory to shared memory, so that the way overlaps arithmetic.
vec4 staged[STAGED];

void fetch(JOIN(T, _buffer) source, uint start, uint stride, uint count) {
    [[unroll]] for (uint i = 0; i < STAGED; ++i) {
        uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
        staged[i] = token < min(count, TILE_KEYS) ? read_quad(source, start + token * stride, index % TILE_QUADS) : vec4(0.0);
    }
}

void main() {
    const uint column = gl_LocalInvocationIndex % COLUMN_THREADS;
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    // The last tile has the most keys to see, so it begins first.
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
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
    uint row_first[ROWS];
    [[unroll]] for (uint i = 0; i < ROWS * OUT_QUADS; ++i) result[i] = vec4(0.0);
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        maxima[r] = LOWEST;
        sums[r] = 0.0;
        row_first[r] = first_seen(sequence, first_query + row_of(r));
    }

    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        // Key 4 c + i lies at row i COLUMN_THREADS + c, so that neighbouring threads read neighbouring rows.
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
            uint slot = token % 4 * COLUMN_THREADS + token / 4;
            if (token < TILE_KEYS) key_tile[slot * PITCH + index % TILE_QUADS] = staged[i];
        }
        barrier();
        fetch(value, value_start + first_key * value_token_stride, value_token_stride, keys - first_key);
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);

        vec4 scores[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r] = vec4(0.0);
        for (uint quad = 0; quad < QUADS; ++quad) {
            vec4 q[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) q[r] = query_tile[row_of(r) * PITCH + quad];
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                vec4 k = key_tile[(i * COLUMN_THREADS + column) * PITCH + quad];
                [[unroll]] for (uint r = 0; r < ROWS; ++r) scores[r][i] = multiply_add(q[r], k, scores[r][i]);
            }
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                if (SOFT_CAP != 0.0) scores[r][i] = bounded_tanh(scores[r][i]) * (SOFT_CAP * LOG2_E);
                const uint j = first_key + column * 4 + i;
                if (j > past + first_query + row_of(r) || j < row_first[r]) scores[r][i] = NEGATIVE_INFINITY;
            }
            float largest = max(max(scores[r].x, scores[r].y), max(scores[r].z, scores[r].w));
            row_parts[row_of(r) * (COLUMN_THREADS / 4) + column / 4][column % 4] = largest;
        }
        barrier();
        [[unroll]] for (uint i = 0; i < STAGED; ++i) {
            uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;
            if (token < TILE_KEYS) key_tile[token * PITCH + index % TILE_QUADS] = staged[i];
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 largest = vec4(maxima[r]);
            for (uint i = 0; i < COLUMN_THREADS / 4; ++i)
                largest = max(largest, row_parts[row_of(r) * (COLUMN_THREADS / 4) + i]);
            float maximum = max(max(largest.x, largest.y), max(largest.z, largest.w));
            float factor = exp2(maxima[r] - maximum);
            vec4 exponentials = exp2(scores[r] - maximum);
            maxima[r] = maximum;
            sums[r] = sums[r] * factor + (exponentials.x + exponentials.y + exponentials.z + exponentials.w);
            [[unroll]] for (uint i = 0; i < OUT_QUADS; ++i) result[r * OUT_QUADS + i] *= factor;
            if (DROPOUT == 1) exponentials *= kept(sequence, head, first_query, row_of(r), first_key, column);
            score_tile[row_of(r) * SCORE_PITCH + column] = exponentials;
        }
        barrier();
        if (first_key + TILE_KEYS < keys) {
            uint next = first_key + TILE_KEYS;
            fetch(key, key_start + next * key_token_stride, key_token_stride, keys - next);
        }
        for (uint four = 0; four < COLUMN_THREADS; ++four) {
            vec4 p[ROWS];
            [[unroll]] for (uint r = 0; r < ROWS; ++r) p[r] = score_tile[row_of(r) * SCORE_PITCH + four];
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {
                    vec4 v = key_tile[(four * 4 + i) * PITCH + column + c * COLUMN_THREADS];
                    [[unroll]] for (uint r = 0; r < ROWS; ++r)
                        result[r * OUT_QUADS + c] = fma(vec4(p[r][i]), v, result[r * OUT_QUADS + c]);
                }
            }
        }
        barrier();
    }

    [[unroll]] for (uint r = 0; r < ROWS; ++r)
        row_parts[row_of(r) * (COLUMN_THREADS / 4) + column / 4][column % 4] = sums[r];
    barrier();
    [[unroll]] for (uint r = 0; r < ROWS; ++r) {
        vec4 parts = vec4(0.0);
        for (uint i = 0; i < COLUMN_THREADS / 4; ++i) parts += row_parts[row_of(r) * (COLUMN_THREADS / 4) + i];
        float sum = parts.x + parts.y + parts.z + parts.w;
        uint t = first_query + row_of(r);
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
