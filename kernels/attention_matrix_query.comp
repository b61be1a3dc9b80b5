// Causal attention on matrix units, backward, the gradient of a tile of queries of one head to a workgroup
// (FlashAttention-2, Dao 2023).
//
// Formula, operands, results and grid are those of attention_backward_query; what is multiplied is rounded to the
// variant's 16-bit type first, sums and single scores are float32. numpy: Backend.attention_backward.
//
// A subgroup owns FRAGMENT_M queries, and keeps them, the gradients of their results, and theirs in fragments.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_matrix.glsl"
layout(local_size_x_id = 0) in;

const uint TILE_QUERIES = SUBGROUPS * FRAGMENT_M;
const uint KEY_COLUMNS = TILE_KEYS / FRAGMENT_N, KEY_DEPTHS = TILE_KEYS / FRAGMENT_K;
const uint LANE_QUADS = TILE_KEYS / LANES / 4;
const uint SCRATCH_COLUMNS = TILE_KEYS, SCRATCH_PITCH = TILE_KEYS / 4 + 1;
const uint ROUNDED_PITCH = TILE_KEYS / 8 + 1;

shared uvec4 tiles[2 * TILE_KEYS * PITCH];  // keys, then values
shared vec4 scratch[SUBGROUPS * FRAGMENT_M * SCRATCH_PITCH];
shared uvec4 rounded[SUBGROUPS * FRAGMENT_M * ROUNDED_PITCH];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

// Scores of this invocation's part of a row, from fragments by way of the scratch.
#define DEAL(MATRICES, TARGET)                                                                                            \
    subgroupBarrier();                                                                                                    \
    [[unroll]] for (uint n = 0; n < KEY_COLUMNS; ++n)                                                                     \
        coopMatStore(MATRICES[n], scratch, scratch_start + n * FRAGMENT_N / 4, SCRATCH_PITCH, ROW_MAJOR);                 \
    subgroupBarrier();                                                                                                    \
    [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i)                                                                      \
        TARGET[i] = scratch[scratch_start + row * SCRATCH_PITCH + part * LANE_QUADS + i];

void main() {
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint scratch_start = gl_SubgroupID * FRAGMENT_M * SCRATCH_PITCH;
    const uint rounded_start = gl_SubgroupID * FRAGMENT_M * ROUNDED_PITCH;
    const uint subgroup_query = first_query + gl_SubgroupID * FRAGMENT_M;
    const uint row = LANE_ROW, part = LANE_PART, t = subgroup_query + row;

    A_MATRIX q[DEPTHS], g[DEPTHS];
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * OCTETS; i += THREADS) {
        uint line = i / OCTETS, octet = i % OCTETS;
        uvec4 numbers = uvec4(0);
        if (first_query + line < query_length)
            numbers = read_octet(query, query_start + (first_query + line) * query_token_stride, octet);
        tiles[line * PITCH + octet] = numbers;
    }
    barrier();
    [[unroll]] for (uint k = 0; k < DEPTHS; ++k)
        coopMatLoad(q[k], tiles, gl_SubgroupID * FRAGMENT_M * PITCH + k * FRAGMENT_K / 8, PITCH, ROW_MAJOR);
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * OCTETS; i += THREADS) {
        uint line = i / OCTETS, octet = i % OCTETS;
        uint start = ((sequence * query_length + first_query + line) * QUERY_HEADS + head) * WIDTH;
        uvec4 numbers = uvec4(0);
        if (first_query + line < query_length) numbers = read_float_octet(gradient, start, octet);
        tiles[line * PITCH + octet] = numbers;
    }
    barrier();
    [[unroll]] for (uint k = 0; k < DEPTHS; ++k)
        coopMatLoad(g[k], tiles, gl_SubgroupID * FRAGMENT_M * PITCH + k * FRAGMENT_K / 8, PITCH, ROW_MAJOR);

    SUM_MATRIX result[COLUMNS];
    [[unroll]] for (uint n = 0; n < COLUMNS; ++n) result[n] = SUM_MATRIX(0.0);
    float row_logsumexp = 0.0, row_delta = 0.0;
    const uint row_first = first_seen(sequence, t), subgroup_first = first_seen(sequence, subgroup_query);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    if (t < query_length) {
        row_logsumexp = logsumexp.at[(sequence * QUERY_HEADS + head) * query_length + t];
        row_delta = delta.at[(sequence * QUERY_HEADS + head) * query_length + t];
    }

    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        barrier();
        for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * OCTETS; i += THREADS) {
            uint token = i / OCTETS, octet = i % OCTETS, j = first_key + token;
            uvec4 k = uvec4(0), v = uvec4(0);
            if (j < keys) {
                k = read_octet(key, key_start + j * key_token_stride, octet);
                v = read_octet(value, value_start + j * value_token_stride, octet);
            }
            tiles[token * PITCH + octet] = k;
            tiles[(TILE_KEYS + token) * PITCH + octet] = v;
        }
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        barrier();
        if (INDEPENDENT == 1 && (first_key > past + subgroup_query + FRAGMENT_M - 1 || first_key + TILE_KEYS <= subgroup_first)) continue;

        SUM_MATRIX scores[KEY_COLUMNS], products[KEY_COLUMNS];
        [[unroll]] for (uint n = 0; n < KEY_COLUMNS; ++n) {
            scores[n] = products[n] = SUM_MATRIX(0.0);
            [[unroll]] for (uint k = 0; k < DEPTHS; ++k) {
                B_MATRIX b;
                coopMatLoad(b, tiles, n * FRAGMENT_N * PITCH + k * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                scores[n] = coopMatMulAdd(q[k], b, scores[n]);
                coopMatLoad(b, tiles, (TILE_KEYS + n * FRAGMENT_N) * PITCH + k * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                products[n] = coopMatMulAdd(g[k], b, products[n]);
            }
        }
        vec4 x[LANE_QUADS], dx[LANE_QUADS];
        DEAL(scores, x)
        DEAL(products, dx)
        [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i) {
            const uint quad = part * LANE_QUADS + i;
            if (DROPOUT == 1) dx[i] *= KEEP_SCALE * kept(sequence, head, first_query, t - first_query, first_key, quad);
            [[unroll]] for (uint c = 0; c < 4; ++c) {
                const uint j = first_key + quad * 4 + c;
                bool seen = j <= past + t && j >= row_first;
                dx[i][c] = score_gradient(x[i][c] * query_factor(), dx[i][c], row_logsumexp, row_delta, seen);
            }
        }
        [[unroll]] for (uint i = 0; i < LANE_QUADS; i += 2)
            rounded[rounded_start + row * ROUNDED_PITCH + (part * LANE_QUADS + i) / 2] = pack_octet(dx[i], dx[i + 1]);
        subgroupBarrier();
        [[unroll]] for (uint k = 0; k < KEY_DEPTHS; ++k) {
            A_MATRIX ds;
            coopMatLoad(ds, rounded, rounded_start + k * FRAGMENT_K / 8, ROUNDED_PITCH, ROW_MAJOR);
            [[unroll]] for (uint n = 0; n < COLUMNS; ++n) {
                B_MATRIX b;
                coopMatLoad(b, tiles, k * FRAGMENT_K * PITCH + n * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                result[n] = coopMatMulAdd(ds, b, result[n]);
            }
        }
    }

#define START(r) ((sequence * query_length + subgroup_query + (r)) * GRADIENT_STRIDE + head * WIDTH)
#define EXISTS(r) (subgroup_query + (r) < query_length)
#define FACTOR(r) SCALE
    WRITE_ROWS(result, 0, query_gradient, START, EXISTS, FACTOR)
}
