// Causal attention on matrix units, backward, the gradients of a tile of keys and values of one key head to a workgroup,
// the query heads of its group in turn, with scores that never leave the registers (FlashAttention-2, Dao 2023).
//
// Formula, operands, results and grid are those of attention_backward_key; what is multiplied is rounded to the
// variant's 16-bit type first, sums and single scores are float32. numpy: Backend.attention_backward.
//
// A subgroup owns FRAGMENT keys, and keeps them, their values, and the gradients of both in fragments. Scores are
// transposed, a row for each key, so that they become left operands of the products with queries and gradients.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#define GRADIENTS 1
#include "attention_matrix2.glsl"
layout(local_size_x_id = 0) in;

const uint TILE_KEYS = SUBGROUPS * FRAGMENT;
const uint QUERY_PARTS = TILE_QUERIES / FRAGMENT;
DECLARE_TILES(TILE_QUERIES)  // of queries, then gradients

shared uvec4 tiles[MOST(MOST(STAGES * STAGE, TILE_KEYS * PITCH), RESULT_UNITS)];
shared float row_logsumexp[STAGES * TILE_QUERIES];
shared float row_delta[STAGES * TILE_QUERIES];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

float seen(const in uint row, const in uint column, const in float score, const in uint sequence, const in uint first_key,
           const in uint first_query) {
    const uint t = first_query + column, j = first_key + row;
    return j <= key_length - query_length + t && j >= first_seen(sequence, t) ? score : NEGATIVE_INFINITY;
}

float kept_element(const in uint row, const in uint column, const in float value, const in uint flat_head, const in uint first_query,
                   const in uint tile_column, const in uint first_key, const in uint tile_row) {
    return value * (KEEP_SCALE * kept_one(0, flat_head, first_query, tile_column + column, first_key, first_key + tile_row + row));
}

void main() {
    const uint key_head = gl_WorkGroupID.y, sequence = gl_WorkGroupID.z;
    const uint first_key = gl_WorkGroupID.x * TILE_KEYS, past = key_length - query_length;  // the first tile is seen by the most queries
    const uint key_start = sequence * key_batch_stride + key_head * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + key_head * VALUE_HEAD_STRIDE;
    const uint subgroup_key = first_key + gl_SubgroupID * FRAGMENT;
    const float factor = query_factor();
    const uint end_query = end_of_queries(sequence, first_key + TILE_KEYS);
    const uint first_tile = (first_key > past ? first_key - past : 0) / TILE_QUERIES * TILE_QUERIES;

    A_MATRIX k[PARTS], v[PARTS];
#define LOAD_ROWS(MATRICES, SOURCE, FIRST, STRIDE)                                                                        \
    barrier();                                                                                                            \
    for (uint i = gl_LocalInvocationIndex; i < TILE_KEYS * OCTETS; i += THREADS) {                                        \
        uint line = i / OCTETS, octet = i % OCTETS, j = first_key + line;                                                 \
        tiles[line * PITCH + octet] = j < key_length ? read_octet(SOURCE, FIRST + j * STRIDE, octet) : uvec4(0);          \
    }                                                                                                                     \
    barrier();                                                                                                            \
    [[unroll]] for (uint d = 0; d < PARTS; ++d)                                                                           \
        coopMatLoad(MATRICES[d], tiles, gl_SubgroupID * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, ROW_MAJOR);
    LOAD_ROWS(k, key, key_start, key_token_stride)
    LOAD_ROWS(v, value, value_start, value_token_stride)
    barrier();

    SUM_MATRIX key_result[PARTS], value_result[PARTS];
    [[unroll]] for (uint d = 0; d < PARTS; ++d) key_result[d] = value_result[d] = SUM_MATRIX(0.0);

#define FIRST_OCTET(t, octet) read_octet(query, query_start + (t) * query_token_stride, octet)
#define SECOND_OCTET(t, octet) read_gradient_octet(gradient, ((sequence * query_length + (t)) * QUERY_HEADS + head) * WIDTH, octet)
    DECLARE_NEXT()
    float next_logsumexp = 0.0, next_delta = 0.0;
#define FETCH_QUERIES(FIRST)                                                                                              \
    FETCH(FIRST, query_length)                                                                                            \
    if (gl_LocalInvocationIndex < TILE_QUERIES) {                                                                         \
        uint t = (FIRST) + gl_LocalInvocationIndex;                                                                       \
        next_logsumexp = t < query_length ? logsumexp.at[flat_head * query_length + t] : 0.0;                             \
        next_delta = t < query_length ? delta_of(flat_head, t) : 0.0;                                                     \
    }
#define PLACE_QUERIES(STAGE_INDEX)                                                                                        \
    PLACE(STAGE_INDEX)                                                                                                    \
    if (gl_LocalInvocationIndex < TILE_QUERIES) {                                                                         \
        row_logsumexp[(STAGE_INDEX) * TILE_QUERIES + gl_LocalInvocationIndex] = next_logsumexp;                           \
        row_delta[(STAGE_INDEX) * TILE_QUERIES + gl_LocalInvocationIndex] = next_delta;                                   \
    }

    for (uint head = key_head * GROUP; head < (key_head + 1) * GROUP; ++head) {
        const uint query_start = sequence * query_batch_stride + head * QUERY_HEAD_STRIDE;
        const uint flat_head = sequence * QUERY_HEADS + head;
        barrier();
        FETCH_QUERIES(first_tile)
        PLACE_QUERIES(0)
        for (uint first_query = first_tile; first_query < end_query; first_query += TILE_QUERIES) {
            const uint stage = STAGES == 2 ? (first_query - first_tile) / TILE_QUERIES % 2 : 0;
            if (DROPOUT == 1) draw_kept(sequence, head, first_query, first_key);
            barrier();
            if (first_query + TILE_QUERIES < end_query) FETCH_QUERIES(first_query + TILE_QUERIES)
            // Else in the future of all these queries, or before their documents.
            if (subgroup_key <= past + first_query + TILE_QUERIES - 1 &&
                subgroup_key + FRAGMENT > first_seen(sequence, first_query)) {
                const uint query_at = stage * STAGE, gradient_at = query_at + TILE_QUERIES * PITCH;
                [[unroll]] for (uint n = 0; n < QUERY_PARTS; ++n) {
                    SUM_MATRIX scores = SUM_MATRIX(0.0), products = SUM_MATRIX(0.0), row, weights;
                    [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                        B_MATRIX b;
                        coopMatLoad(b, tiles, query_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, COLUMN_MAJOR);
                        scores = coopMatMulAdd(k[d], b, scores);
                        coopMatLoad(b, tiles, gradient_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, COLUMN_MAJOR);
                        products = coopMatMulAdd(v[d], b, products);
                    }
                    if (SOFT_CAP != 0.0) EACH(e, scores) scores[e] = bounded_tanh(scores[e] * factor);
                    coopMatLoad(row, row_logsumexp, stage * TILE_QUERIES + n * FRAGMENT, 0, ROW_MAJOR);
                    const float scaled = SOFT_CAP == 0.0 ? factor : SOFT_CAP * LOG2_E;
                    EACH(e, weights) weights[e] = fma(scores[e], scaled, -row[e]);
                    const uint part_query = first_query + n * FRAGMENT;
                    if (subgroup_key + FRAGMENT > past + part_query + 1 ||
                        first_seen(sequence, part_query + FRAGMENT - 1) > subgroup_key) {
                        SUM_MATRIX masked;
                        coopMatPerElementNV(masked, weights, seen, sequence, subgroup_key, part_query);
                        weights = masked;
                    }
                    EACH(e, weights) weights[e] = exp2(weights[e]);
                    coopMatLoad(row, row_delta, stage * TILE_QUERIES + n * FRAGMENT, 0, ROW_MAJOR);
                    SUM_MATRIX left = weights;
                    if (DROPOUT == 1) {
                        SUM_MATRIX dropped;
                        coopMatPerElementNV(left, weights, kept_element, flat_head, first_query, n * FRAGMENT, first_key,
                                            subgroup_key - first_key);
                        coopMatPerElementNV(dropped, products, kept_element, flat_head, first_query, n * FRAGMENT, first_key,
                                            subgroup_key - first_key);
                        products = dropped;
                    }
                    EACH(e, products) {
                        products[e] = weights[e] * (products[e] - row[e]);
                        if (SOFT_CAP != 0.0) products[e] *= 1.0 - scores[e] * scores[e];
                    }
                    A_MATRIX p = A_MATRIX(left), ds = A_MATRIX(products);
                    [[unroll]] for (uint d = 0; d < PARTS; ++d) {
                        B_MATRIX b;
                        coopMatLoad(b, tiles, gradient_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, ROW_MAJOR);
                        value_result[d] = coopMatMulAdd(p, b, value_result[d]);
                        coopMatLoad(b, tiles, query_at + n * FRAGMENT * PITCH + d * FRAGMENT / 8, PITCH, ROW_MAJOR);
                        key_result[d] = coopMatMulAdd(ds, b, key_result[d]);
                    }
                }
            }
            if (STAGES == 1 || DROPOUT == 1) barrier();
            if (first_query + TILE_QUERIES < end_query) {
                PLACE_QUERIES(STAGES == 2 ? ((first_query - first_tile) / TILE_QUERIES + 1) % 2 : 0)
            }
        }
    }

    barrier();
    [[unroll]] for (uint d = 0; d < PARTS; ++d) EACH(e, key_result[0]) key_result[d][e] *= SCALE;
#define START(r) ((sequence * key_length + subgroup_key + (r)) * GRADIENT_STRIDE + key_head * WIDTH)
#define EXISTS(r) (subgroup_key + (r) < key_length)
    WRITE_RESULT(key_result, 0, key_gradient, START, EXISTS)
    WRITE_RESULT(value_result, 0, value_gradient, START, EXISTS)
}
