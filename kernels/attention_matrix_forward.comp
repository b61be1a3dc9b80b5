// Causal attention on matrix units, forward, a tile of queries of one head to a workgroup (FlashAttention-2, Dao 2023).
//
// Formula, operands, results and grid are those of attention_forward; operands and probabilities are rounded to the
// variant's 16-bit type before they are multiplied, sums and the softmax are in float32. numpy: Backend.attention.
//
// A subgroup owns ROW_BLOCKS times FRAGMENT_M queries, and keeps them and their results in fragments. The reference that
// exponents are relative to moves only when a row's maximum has grown by more than 2^MARGIN since, which is rare.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_matrix.glsl"
layout(local_size_x_id = 0) in;

const uint ROWS = ROW_BLOCKS * FRAGMENT_M;  // queries of a subgroup
const uint TILE_QUERIES = SUBGROUPS * ROWS;
const uint KEY_COLUMNS = TILE_KEYS / FRAGMENT_N, KEY_DEPTHS = TILE_KEYS / FRAGMENT_K;
const uint LANE_QUADS = TILE_KEYS / LANES / 4;  // scores of a row that an invocation works on
const uint SCRATCH_COLUMNS = TILE_KEYS, SCRATCH_PITCH = TILE_KEYS / 4 + 1;
const uint PROBABILITY_PITCH = TILE_KEYS / 8 + 1;
const float MARGIN = 8.0;

shared uvec4 tiles[2 * TILE_KEYS * PITCH];  // keys, then values
shared vec4 scratch[SUBGROUPS * FRAGMENT_M * SCRATCH_PITCH];
shared uvec4 probabilities[SUBGROUPS * FRAGMENT_M * PROBABILITY_PITCH];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

void main() {
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    // The last tile has the most keys to see, so it begins first.
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint scratch_start = gl_SubgroupID * FRAGMENT_M * SCRATCH_PITCH;
    const uint probability_start = gl_SubgroupID * FRAGMENT_M * PROBABILITY_PITCH;
    const uint subgroup_query = first_query + gl_SubgroupID * ROWS;
    const uint row = LANE_ROW, part = LANE_PART, subgroup_first = first_seen(sequence, subgroup_query);

    A_MATRIX q[ROW_BLOCKS * DEPTHS];
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        barrier();
        for (uint i = gl_LocalInvocationIndex; i < SUBGROUPS * FRAGMENT_M * OCTETS; i += THREADS) {
            uint line = i / OCTETS, octet = i % OCTETS;
            uint t = first_query + line / FRAGMENT_M * ROWS + block * FRAGMENT_M + line % FRAGMENT_M;
            uvec4 numbers = uvec4(0);
            if (t < query_length) numbers = read_octet(query, query_start + t * query_token_stride, octet);
            tiles[line * PITCH + octet] = numbers;
        }
        barrier();
        [[unroll]] for (uint k = 0; k < DEPTHS; ++k)
            coopMatLoad(q[block * DEPTHS + k], tiles, gl_SubgroupID * FRAGMENT_M * PITCH + k * FRAGMENT_K / 8, PITCH, ROW_MAJOR);
    }

    SUM_MATRIX result[ROW_BLOCKS * COLUMNS];
    [[unroll]] for (uint i = 0; i < ROW_BLOCKS * COLUMNS; ++i) result[i] = SUM_MATRIX(0.0);
    float references[ROW_BLOCKS], sums[ROW_BLOCKS];
    uint row_first[ROW_BLOCKS];
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        references[block] = LOWEST;
        sums[block] = 0.0;
        row_first[block] = first_seen(sequence, subgroup_query + block * FRAGMENT_M + row);
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
        // All in the future of this subgroup's queries, or before their documents.
        if (INDEPENDENT == 1 && (first_key > past + subgroup_query + ROWS - 1 || first_key + TILE_KEYS <= subgroup_first)) continue;

        SUM_MATRIX scores[ROW_BLOCKS * KEY_COLUMNS];
        [[unroll]] for (uint n = 0; n < KEY_COLUMNS; ++n) {
            [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) scores[block * KEY_COLUMNS + n] = SUM_MATRIX(0.0);
            [[unroll]] for (uint k = 0; k < DEPTHS; ++k) {
                B_MATRIX b;
                coopMatLoad(b, tiles, n * FRAGMENT_N * PITCH + k * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                    scores[block * KEY_COLUMNS + n] =
                        coopMatMulAdd(q[block * DEPTHS + k], b, scores[block * KEY_COLUMNS + n]);
            }
        }

        A_MATRIX p[ROW_BLOCKS * KEY_DEPTHS];
        [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
            subgroupBarrier();
            [[unroll]] for (uint n = 0; n < KEY_COLUMNS; ++n)
                coopMatStore(scores[block * KEY_COLUMNS + n], scratch, scratch_start + n * FRAGMENT_N / 4, SCRATCH_PITCH,
                             ROW_MAJOR);
            subgroupBarrier();

            const uint t = subgroup_query + block * FRAGMENT_M + row;
            vec4 x[LANE_QUADS];
            float largest = NEGATIVE_INFINITY;
            [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i) {
                const uint quad = part * LANE_QUADS + i;
                x[i] = scratch[scratch_start + row * SCRATCH_PITCH + quad] * query_factor();
                [[unroll]] for (uint c = 0; c < 4; ++c) {
                    if (SOFT_CAP != 0.0) x[i][c] = bounded_tanh(x[i][c]) * (SOFT_CAP * LOG2_E);
                    const uint j = first_key + quad * 4 + c;
                    if (j > past + t || j < row_first[block]) x[i][c] = NEGATIVE_INFINITY;
                }
                largest = max(largest, max(max(x[i].x, x[i].y), max(x[i].z, x[i].w)));
            }
            largest = row_max(largest);
            float factor = 1.0;
            if (largest > references[block] + MARGIN) {
                if (references[block] != LOWEST) factor = exp2(references[block] - largest);
                references[block] = largest;
            }
            sums[block] *= factor;
            [[unroll]] for (uint i = 0; i < LANE_QUADS; ++i) {
                x[i] = exp2(x[i] - references[block]);
                sums[block] += x[i].x + x[i].y + x[i].z + x[i].w;
                if (DROPOUT == 1)
                    x[i] *= kept(sequence, head, first_query, t - first_query, first_key, part * LANE_QUADS + i);
            }
            [[unroll]] for (uint i = 0; i < LANE_QUADS; i += 2)
                probabilities[probability_start + row * PROBABILITY_PITCH + (part * LANE_QUADS + i) / 2] =
                    pack_octet(x[i], x[i + 1]);
            subgroupBarrier();
            [[unroll]] for (uint k = 0; k < KEY_DEPTHS; ++k)
                coopMatLoad(p[block * KEY_DEPTHS + k], probabilities, probability_start + k * FRAGMENT_K / 8,
                            PROBABILITY_PITCH, ROW_MAJOR);

            if (INDEPENDENT == 0 || subgroupBallot(factor != 1.0) != uvec4(0)) {
                for (uint quad = part; quad < FRAGMENT_N / 4; quad += LANES)
                    scratch[scratch_start + row * SCRATCH_PITCH + quad] = vec4(factor);
                subgroupBarrier();
                SUM_MATRIX factors;
                coopMatLoad(factors, scratch, scratch_start, SCRATCH_PITCH, ROW_MAJOR);
                [[unroll]] for (uint n = 0; n < COLUMNS; ++n) result[block * COLUMNS + n] *= factors;
            }
        }

        [[unroll]] for (uint n = 0; n < COLUMNS; ++n) {
            [[unroll]] for (uint k = 0; k < KEY_DEPTHS; ++k) {
                B_MATRIX b;
                coopMatLoad(b, tiles, (TILE_KEYS + k * FRAGMENT_K) * PITCH + n * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                    result[block * COLUMNS + n] =
                        coopMatMulAdd(p[block * KEY_DEPTHS + k], b, result[block * COLUMNS + n]);
            }
        }
    }

    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        const uint block_query = subgroup_query + block * FRAGMENT_M, t = block_query + row;
        const float sum = row_sum(sums[block]);
        const float inverse = (DROPOUT == 1 ? KEEP_SCALE : 1.0) / sum;
#define START(r) (((sequence * query_length + block_query + (r)) * QUERY_HEADS + head) * WIDTH)
#define EXISTS(r) (block_query + (r) < query_length)
#define FACTOR(r) subgroupShuffle(inverse, r)
        WRITE_ROWS(result, block * COLUMNS, attended, START, EXISTS, FACTOR)
        if (SAVE == 1 && part == 0 && t < query_length)
            logsumexp.at[(sequence * QUERY_HEADS + head) * query_length + t] = references[block] + log2(sum);
    }
}
