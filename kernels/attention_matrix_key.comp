// Causal attention on matrix units, backward, the gradients of a tile of keys and values of one key head to a workgroup
// (FlashAttention-2, Dao 2023), the query heads of its group in turn.
//
// Formula, operands, results and grid are those of attention_backward_key; what is multiplied is rounded to the
// variant's 16-bit type first, sums and single scores are float32. numpy: Backend.attention_backward.
//
// A subgroup owns FRAGMENT_M keys, and keeps them, their values, and the gradients of both in fragments. Scores are
// transposed: a row for each key, a column for each query.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_matrix.glsl"
layout(local_size_x_id = 0) in;

const uint TILE_KEYS = SUBGROUPS * FRAGMENT_M;
const uint QUERY_COLUMNS = TILE_QUERIES / FRAGMENT_N, QUERY_DEPTHS = TILE_QUERIES / FRAGMENT_K;
const uint LANE_QUADS = TILE_QUERIES / LANES / 4;
const uint SCRATCH_COLUMNS = TILE_QUERIES, SCRATCH_PITCH = TILE_QUERIES / 4 + 1;
const uint ROUNDED_PITCH = TILE_QUERIES / 8 + 1;

shared uvec4 tiles[2 * TILE_QUERIES * PITCH];  // queries, then gradients
shared vec4 row_logsumexp[TILE_QUERIES / 4];
shared vec4 row_delta[TILE_QUERIES / 4];
shared vec4 scratch[SUBGROUPS * FRAGMENT_M * SCRATCH_PITCH];
shared uvec4 rounded[2 * SUBGROUPS * FRAGMENT_M * ROUNDED_PITCH];  // probabilities, then gradients of scores

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

// Scores of this invocation's part of a row, from fragments by way of the scratch.
#define DEAL(MATRICES, TARGET)                                                                                            \
    subgroupBarrier();                                                                                                    \
    [[unroll]] for (uint n = 0; n < QUERY_COLUMNS; ++n)                                                                   \
        coopMatStore(MATRICES[n], scratch, scratch_start + n * FRAGMENT_N / 4, SCRATCH_PITCH, ROW_MAJOR);                 \
    subgroupBarrier();                                                                                                    \
    [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i)                                                                      \
        TARGET[i] = scratch[scratch_start + row * SCRATCH_PITCH + part * LANE_QUADS + i];

void main() {
    const uint first_key = gl_WorkGroupID.x * TILE_KEYS;
    const uint key_head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
    const uint past = key_length - query_length;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint end_query = end_of_queries(sequence, first_key + TILE_KEYS);
    const uint start_query = (first_key - min(first_key, past)) / TILE_QUERIES * TILE_QUERIES;
    const uint scratch_start = gl_SubgroupID * FRAGMENT_M * SCRATCH_PITCH;
    const uint probability_start = gl_SubgroupID * FRAGMENT_M * ROUNDED_PITCH;
    const uint rounded_start = probability_start + SUBGROUPS * FRAGMENT_M * ROUNDED_PITCH;
    const uint subgroup_key = first_key + gl_SubgroupID * FRAGMENT_M;
    const uint row = LANE_ROW, part = LANE_PART, j = subgroup_key + row;

    A_MATRIX k[DEPTHS], v[DEPTHS];
    for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * OCTETS; i += THREADS) {
        uint line = i / OCTETS, octet = i % OCTETS;
        uvec4 numbers = uvec4(0);
        if (first_key + line < key_length) numbers = read_octet(key, key_start + (first_key + line) * key_token_stride, octet);
        tiles[line * PITCH + octet] = numbers;
    }
    barrier();
    [[unroll]] for (uint d = 0; d < DEPTHS; ++d)
        coopMatLoad(k[d], tiles, gl_SubgroupID * FRAGMENT_M * PITCH + d * FRAGMENT_K / 8, PITCH, ROW_MAJOR);
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * OCTETS; i += THREADS) {
        uint line = i / OCTETS, octet = i % OCTETS;
        uvec4 numbers = uvec4(0);
        if (first_key + line < key_length)
            numbers = read_octet(value, value_start + (first_key + line) * value_token_stride, octet);
        tiles[line * PITCH + octet] = numbers;
    }
    barrier();
    [[unroll]] for (uint d = 0; d < DEPTHS; ++d)
        coopMatLoad(v[d], tiles, gl_SubgroupID * FRAGMENT_M * PITCH + d * FRAGMENT_K / 8, PITCH, ROW_MAJOR);

    SUM_MATRIX key_result[COLUMNS], value_result[COLUMNS];
    [[unroll]] for (uint n = 0; n < COLUMNS; ++n) key_result[n] = value_result[n] = SUM_MATRIX(0.0);

    for (uint head = key_head * GROUP; head < (key_head + 1) * GROUP; ++head) {
        const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
        for (uint first_query = start_query; first_query < end_query; first_query += TILE_QUERIES) {
            barrier();
            for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * OCTETS; i += THREADS) {
                uint token = i / OCTETS, octet = i % OCTETS, t = first_query + token;
                uvec4 q = uvec4(0), g = uvec4(0);
                if (t < query_length) {
                    q = read_octet(query, query_start + t * query_token_stride, octet);
                    g = read_float_octet(gradient, ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH, octet);
                }
                tiles[token * PITCH + octet] = q;
                tiles[(TILE_QUERIES + token) * PITCH + octet] = g;
            }
            for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES; i += THREADS) {
                uint t = first_query + i, index = (sequence * QUERY_HEADS + head) * query_length + t;
                row_logsumexp[i / 4][i % 4] = t < query_length ? logsumexp.at[index] : 0.0;
                row_delta[i / 4][i % 4] = t < query_length ? delta.at[index] : 0.0;
            }
            if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
            barrier();
            // In the future of all these queries, or before their documents.
            if (INDEPENDENT == 1 && (subgroup_key > past + first_query + TILE_QUERIES - 1 ||
                                     subgroup_key + FRAGMENT_M <= first_seen(sequence, first_query))) continue;
            const bool crossed = first_seen(sequence, first_query + TILE_QUERIES - 1) > subgroup_key;

            SUM_MATRIX scores[QUERY_COLUMNS], products[QUERY_COLUMNS];
            [[unroll]] for (uint n = 0; n < QUERY_COLUMNS; ++n) {
                scores[n] = products[n] = SUM_MATRIX(0.0);
                [[unroll]] for (uint d = 0; d < DEPTHS; ++d) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, n * FRAGMENT_N * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                    scores[n] = coopMatMulAdd(k[d], b, scores[n]);
                    coopMatLoad(b, tiles, (TILE_QUERIES + n * FRAGMENT_N) * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                    products[n] = coopMatMulAdd(v[d], b, products[n]);
                }
            }
            vec4 x[LANE_QUADS], dx[LANE_QUADS];
            DEAL(scores, x)
            DEAL(products, dx)
            [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i) {
                const uint quad = part * LANE_QUADS + i;
                [[unroll]] for (uint c = 0; c < 4; ++c) {
                    const uint token = quad * 4 + c;
                    float score = x[i][c] * query_factor(), factor = 1.0;
                    if (DROPOUT == 1) factor = KEEP_SCALE * kept_one(sequence, head, first_query, token, first_key, j);
                    bool seen = j <= past + first_query + token;
                    if (crossed) seen = seen && j >= first_seen(sequence, first_query + token);
                    float p = score_probability(score, row_logsumexp[quad][c], seen);
                    dx[i][c] = p * (dx[i][c] * factor - row_delta[quad][c]);
                    if (SOFT_CAP != 0.0) dx[i][c] *= 1.0 - score * score;
                    x[i][c] = p * factor;
                }
            }
            [[unroll]] for (uint i = 0; i < LANE_QUADS; i += 2) {
                const uint octet = row * ROUNDED_PITCH + (part * LANE_QUADS + i) / 2;
                rounded[probability_start + octet] = pack_octet(x[i], x[i + 1]);
                rounded[rounded_start + octet] = pack_octet(dx[i], dx[i + 1]);
            }
            subgroupBarrier();
            [[unroll]] for (uint m = 0; m < QUERY_DEPTHS; ++m) {
                A_MATRIX p, ds;
                coopMatLoad(p, rounded, probability_start + m * FRAGMENT_K / 8, ROUNDED_PITCH, ROW_MAJOR);
                coopMatLoad(ds, rounded, rounded_start + m * FRAGMENT_K / 8, ROUNDED_PITCH, ROW_MAJOR);
                [[unroll]] for (uint n = 0; n < COLUMNS; ++n) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, (TILE_QUERIES + m * FRAGMENT_K) * PITCH + n * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                    value_result[n] = coopMatMulAdd(p, b, value_result[n]);
                    coopMatLoad(b, tiles, m * FRAGMENT_K * PITCH + n * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                    key_result[n] = coopMatMulAdd(ds, b, key_result[n]);
                }
            }
        }
    }

#define START(r) ((sequence * key_length + subgroup_key + (r)) * GRADIENT_STRIDE + key_head * WIDTH)
#define EXISTS(r) (subgroup_key + (r) < key_length)
#define KEY_FACTOR(r) SCALE
#define VALUE_FACTOR(r) 1.0
    WRITE_ROWS(key_result, 0, key_gradient, START, EXISTS, KEY_FACTOR)
    WRITE_ROWS(value_result, 0, value_gradient, START, EXISTS, VALUE_FACTOR)
}
