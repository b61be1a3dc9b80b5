// Causal attention on matrix units, forward, a tile of queries of one head to a workgroup, with scores that never leave
// the registers (FlashAttention-2, Dao 2023).
//
// Formula, operands, results and grid are those of attention_forward; operands and probabilities are rounded to the
// variant's 16-bit type before they are multiplied, sums and the softmax are in float32. numpy: Backend.attention.
//
// A subgroup owns ROW_BLOCKS times FRAGMENT queries. The reference that exponents are relative to moves only when a row's
// maximum has grown by more than 2^MARGIN since, which is rare.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#define GRADIENTS 0
#include "attention_matrix2.glsl"
layout(local_size_x_id = 0) in;

const float MARGIN = 8.0;

#define KEPT(x) (x)  // the sums are scaled at the end
#include "attention_matrix2_queries.glsl"

void main() {
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint flat_head = sequence * QUERY_HEADS + head;
    // The last tile has the most keys to see, so it begins first.
    const uint first_query = (gl_NumWorkGroups.x - 1 - gl_WorkGroupID.x) * TILE_QUERIES;
    const uint past = key_length - query_length;
    const uint keys = min(key_length, past + first_query + TILE_QUERIES);
    const uint start_key = first_seen(sequence, first_query) / TILE_KEYS * TILE_KEYS;
    const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint subgroup_query = first_query + gl_SubgroupID * ROWS;
    const uint subgroup_first = first_seen(sequence, subgroup_query);
    const float factor = query_factor();

    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * OCTETS; i += THREADS) {
        uint line = i / OCTETS, octet = i % OCTETS, t = first_query + line;
        tiles[line * PITCH + octet] = t < query_length ? read_octet(query, query_start + t * query_token_stride, octet) : uvec4(0);
    }
    barrier();
    A_MATRIX q[ROW_BLOCKS * PARTS];
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
        [[unroll]] for (uint d = 0; d < PARTS; ++d)
            coopMatLoad(q[block * PARTS + d], tiles, (gl_SubgroupID * ROWS + block * FRAGMENT) * PITCH + d * FRAGMENT / 8,
                        PITCH, ROW_MAJOR);
    barrier();

    SUM_MATRIX result[ROW_BLOCKS * PARTS], reference[ROW_BLOCKS], sums[ROW_BLOCKS];
    [[unroll]] for (uint i = 0; i < ROW_BLOCKS * PARTS; ++i) result[i] = SUM_MATRIX(0.0);
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        reference[block] = SUM_MATRIX(LOWEST);
        sums[block] = SUM_MATRIX(0.0);
    }

    DECLARE_NEXT()
    FETCH(start_key, keys)
    PLACE(0)
    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        const uint at = STAGES == 2 ? (first_key - start_key) / TILE_KEYS % 2 * STAGE : 0;
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        barrier();
        if (first_key + TILE_KEYS < keys) FETCH(first_key + TILE_KEYS, keys)
        // Else all in the future of this subgroup's queries, or before their documents.
        if (first_key <= past + subgroup_query + ROWS - 1 && first_key + TILE_KEYS > subgroup_first) {
            SUM_MATRIX scores[ROW_BLOCKS * KEY_PARTS];
            [[unroll]] for (uint n = 0; n < KEY_PARTS; ++n) {
                [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) scores[block * KEY_PARTS + n] = SUM_MATRIX(0.0);
                [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, COLUMN_MAJOR);
                    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                        scores[block * KEY_PARTS + n] = coopMatMulAdd(q[block * PARTS + d], b, scores[block * KEY_PARTS + n]);
                }
            }
            A_MATRIX p[ROW_BLOCKS * KEY_PARTS];
            [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
                const uint block_query = subgroup_query + block * FRAGMENT;
                if (SOFT_CAP != 0.0)
                    [[unroll]] for (uint n = 0; n < KEY_PARTS; ++n)
                        EACH(e, scores[0])
                            scores[block * KEY_PARTS + n][e] =
                                bounded_tanh(scores[block * KEY_PARTS + n][e] * factor) * (SOFT_CAP * LOG2_E);
                if (is_crossed(sequence, block_query, first_key, first_key + TILE_KEYS))
                    [[unroll]] for (uint n = 0; n < KEY_PARTS; ++n) {
                        SUM_MATRIX masked;
                        coopMatPerElementNV(masked, scores[block * KEY_PARTS + n], seen, sequence, block_query, first_key + n * FRAGMENT);
                        scores[block * KEY_PARTS + n] = masked;
                    }
                SUM_MATRIX largest = scores[block * KEY_PARTS], row_largest;
                [[unroll]] for (uint n = 1; n < KEY_PARTS; ++n)
                    EACH(e, largest) largest[e] = max(largest[e], scores[block * KEY_PARTS + n][e]);
                coopMatReduceNV(row_largest, largest, gl_CooperativeMatrixReduceRowNV, larger);
                const float scaled = SOFT_CAP == 0.0 ? factor : 1.0;
                bool grown = false;
                EACH(e, largest) grown = grown || row_largest[e] * scaled > reference[block][e] + MARGIN;
                if (subgroupBallot(grown) != uvec4(0)) {
                    SUM_MATRIX shrunk;
                    EACH(e, shrunk) {
                        const float moved = row_largest[e] * scaled, old = reference[block][e];
                        const bool moves = moved > old + MARGIN;
                        shrunk[e] = moves ? exp2(old - moved) : 1.0;
                        reference[block][e] = moves ? moved : old;
                        sums[block][e] *= shrunk[e];
                    }
                    [[unroll]] for (uint d = 0; d < PARTS; ++d) result[block * PARTS + d] *= shrunk;
                }
                [[unroll]] for (uint n = 0; n < KEY_PARTS; ++n) {
                    SUM_MATRIX weights;
                    EACH(e, weights) {
                        weights[e] = exp2(fma(scores[block * KEY_PARTS + n][e], scaled, -reference[block][e]));
                        sums[block][e] += weights[e];
                    }
                    if (DROPOUT == 1) {
                        SUM_MATRIX left;
                        coopMatPerElementNV(left, weights, kept_element, flat_head, first_query, block_query - first_query, first_key,
                                            n * FRAGMENT);
                        weights = left;
                    }
                    p[block * KEY_PARTS + n] = A_MATRIX(weights);
                }
            }
            [[unroll]] for (uint k = 0; k < KEY_PARTS; ++k)
                [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, at + (TILE_KEYS + k * FRAGMENT) * PITCH + d * FRAGMENT / 8, PITCH, ROW_MAJOR);
                    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                        result[block * PARTS + d] = coopMatMulAdd(p[block * KEY_PARTS + k], b, result[block * PARTS + d]);
                }
        }
        if (STAGES == 1 || DROPOUT == 1) barrier();
        if (first_key + TILE_KEYS < keys) PLACE(STAGES == 2 ? ((first_key - start_key) / TILE_KEYS + 1) % 2 : 0)
    }

    barrier();
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        const uint block_query = subgroup_query + block * FRAGMENT;
        SUM_MATRIX total, inverse, exponent;
        coopMatReduceNV(total, sums[block], gl_CooperativeMatrixReduceRowNV, added);
        EACH(e, total) {
            inverse[e] = (DROPOUT == 1 ? KEEP_SCALE : 1.0) / total[e];
            exponent[e] = reference[block][e] + log2(total[e]);
        }
        [[unroll]] for (uint d = 0; d < PARTS; ++d) result[block * PARTS + d] *= inverse;
#define START(r) (((sequence * query_length + block_query + (r)) * QUERY_HEADS + head) * WIDTH)
#define EXISTS(r) (block_query + (r) < query_length)
        WRITE_RESULT(result, block * PARTS, attended, START, EXISTS)
        if (SAVE == 1) {
            const uint start = gl_SubgroupID * FRAGMENT * RESULT_PITCH;
            subgroupBarrier();
            coopMatStore(exponent, tiles, start, RESULT_PITCH, ROW_MAJOR);
            subgroupMemoryBarrierShared();
            subgroupBarrier();
            for (uint r = gl_SubgroupInvocationID; r < FRAGMENT; r += SUBGROUP_SIZE)
                if (EXISTS(r)) logsumexp.at[flat_head * query_length + block_query + r] = uintBitsToFloat(tiles[start + r * RESULT_PITCH].x);
        }
    }
}
