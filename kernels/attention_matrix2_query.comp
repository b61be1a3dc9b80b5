// Causal attention on matrix units, backward, the gradient of a tile of queries of one head to a workgroup, with scores
// that never leave the registers (FlashAttention-2, Dao 2023).
//
// Formula, operands, results and grid are those of attention_backward_query; what is multiplied is rounded to the
// variant's 16-bit type first, sums and single scores are float32. numpy: Backend.attention_backward.
//
// A subgroup owns ROW_BLOCKS times FRAGMENT queries, and keeps them, the gradients of their results, and theirs in
// fragments.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#define GRADIENTS 1
#include "attention_matrix2.glsl"
layout(local_size_x_id = 0) in;

#define KEPT(x) (KEEP_SCALE * (x))
#include "attention_matrix2_queries.glsl"

shared float row_logsumexp[TILE_QUERIES];
shared float row_delta[TILE_QUERIES];

void main() {
    const uint head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z, key_head = head / GROUP;
    const uint flat_head = sequence * QUERY_HEADS + head;
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

    A_MATRIX q[ROW_BLOCKS * PARTS], g[ROW_BLOCKS * PARTS];
#define LOAD_ROWS(MATRICES, READ, SOURCE, START)                                                                          \
    barrier();                                                                                                            \
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * OCTETS; i += THREADS) {                                     \
        uint line = i / OCTETS, octet = i % OCTETS, t = first_query + line;                                               \
        tiles[line * PITCH + octet] = t < query_length ? READ(SOURCE, START, octet) : uvec4(0);                           \
    }                                                                                                                     \
    barrier();                                                                                                            \
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)                                                          \
        [[unroll]] for (uint d = 0; d < PARTS; ++d)                                                                       \
            coopMatLoad(MATRICES[block * PARTS + d], tiles, (gl_SubgroupID * ROWS + block * FRAGMENT) * PITCH +           \
                        d * FRAGMENT / 8, PITCH, ROW_MAJOR);
    LOAD_ROWS(q, read_octet, query, query_start + t * query_token_stride)
    LOAD_ROWS(g, read_gradient_octet, gradient, ((sequence * query_length + t) * QUERY_HEADS + head) * WIDTH)
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES; i += THREADS) {
        uint t = first_query + i;
        row_logsumexp[i] = t < query_length ? logsumexp.at[flat_head * query_length + t] : 0.0;
        row_delta[i] = t < query_length ? delta_of(flat_head, t) : 0.0;
    }
    barrier();
    SUM_MATRIX result[ROW_BLOCKS * PARTS], exponent[ROW_BLOCKS], along[ROW_BLOCKS];
    [[unroll]] for (uint i = 0; i < ROW_BLOCKS * PARTS; ++i) result[i] = SUM_MATRIX(0.0);
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        coopMatLoad(exponent[block], row_logsumexp, gl_SubgroupID * ROWS + block * FRAGMENT, 0, COLUMN_MAJOR);
        coopMatLoad(along[block], row_delta, gl_SubgroupID * ROWS + block * FRAGMENT, 0, COLUMN_MAJOR);
    }

    DECLARE_NEXT()
    FETCH(start_key, keys)
    PLACE(0)
    for (uint first_key = start_key; first_key < keys; first_key += TILE_KEYS) {
        const uint key_at = STAGES == 2 ? (first_key - start_key) / TILE_KEYS % 2 * STAGE : 0, value_at = key_at + TILE_KEYS * PITCH;
        if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
        barrier();
        if (first_key + TILE_KEYS < keys) FETCH(first_key + TILE_KEYS, keys)
        if (first_key <= past + subgroup_query + ROWS - 1 && first_key + TILE_KEYS > subgroup_first) {
            [[unroll]] for (uint n = 0; n < KEY_PARTS; ++n) {
                SUM_MATRIX scores[ROW_BLOCKS], products[ROW_BLOCKS];
                A_MATRIX ds[ROW_BLOCKS];
                [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) scores[block] = products[block] = SUM_MATRIX(0.0);
                [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, key_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, COLUMN_MAJOR);
                    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                        scores[block] = coopMatMulAdd(q[block * PARTS + d], b, scores[block]);
                    coopMatLoad(b, tiles, value_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, COLUMN_MAJOR);
                    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                        products[block] = coopMatMulAdd(g[block * PARTS + d], b, products[block]);
                }
                [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
                    const uint block_query = subgroup_query + block * FRAGMENT;
                    SUM_MATRIX weights;
                    if (SOFT_CAP != 0.0) EACH(e, weights) scores[block][e] = bounded_tanh(scores[block][e] * factor);
                    const float scaled = SOFT_CAP == 0.0 ? factor : SOFT_CAP * LOG2_E;
                    EACH(e, weights) weights[e] = fma(scores[block][e], scaled, -exponent[block][e]);
                    if (is_crossed(sequence, block_query, first_key + n * FRAGMENT, first_key + (n + 1) * FRAGMENT)) {
                        SUM_MATRIX masked;
                        coopMatPerElementNV(masked, weights, seen, sequence, block_query, first_key + n * FRAGMENT);
                        weights = masked;
                    }
                    if (DROPOUT == 1) {
                        SUM_MATRIX dropped;
                        coopMatPerElementNV(dropped, products[block], kept_element, flat_head, first_query, block_query - first_query,
                                            first_key, n * FRAGMENT);
                        products[block] = dropped;
                    }
                    EACH(e, weights) {
                        weights[e] = exp2(weights[e]) * (products[block][e] - along[block][e]);
                        if (SOFT_CAP != 0.0) weights[e] *= 1.0 - scores[block][e] * scores[block][e];
                    }
                    ds[block] = A_MATRIX(weights);
                }
                [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                    B_MATRIX b;
                    coopMatLoad(b, tiles, key_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, ROW_MAJOR);
                    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block)
                        result[block * PARTS + d] = coopMatMulAdd(ds[block], b, result[block * PARTS + d]);
                }
            }
        }
        if (STAGES == 1 || DROPOUT == 1) barrier();
        if (first_key + TILE_KEYS < keys) PLACE(STAGES == 2 ? ((first_key - start_key) / TILE_KEYS + 1) % 2 : 0)
    }

    barrier();
    [[unroll]] for (uint block = 0; block < ROW_BLOCKS; ++block) {
        const uint block_query = subgroup_query + block * FRAGMENT;
        [[unroll]] for (uint d = 0; d < PARTS; ++d) EACH(e, result[0]) result[block * PARTS + d][e] *= SCALE;
#define START(r) ((sequence * query_length + block_query + (r)) * GRADIENT_STRIDE + head * WIDTH)
#define EXISTS(r) (block_query + (r) < query_length)
        WRITE_RESULT(result, block * PARTS, query_gradient, START, EXISTS)
    }
}
