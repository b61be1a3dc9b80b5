// What the attention kernels share that keep scores in registers and whose workgroups own queries: a subgroup owns
// ROW_BLOCKS times FRAGMENT of them, and keys and values come in tiles of TILE_KEYS.
//
// Include after attention_matrix2.glsl. Expects KEPT(x), the factor of a probability that dropout keeps (x is 1) or does
// not (x is 0).

const uint ROWS = ROW_BLOCKS * FRAGMENT;  // queries of a subgroup
const uint TILE_QUERIES = SUBGROUPS * ROWS;
const uint KEY_PARTS = TILE_KEYS / FRAGMENT;
DECLARE_TILES(TILE_KEYS)

shared uvec4 tiles[MOST(MOST(STAGES * STAGE, TILE_QUERIES * PITCH), RESULT_UNITS)];

#include "attention_dropout.glsl"
#include "attention_segments.glsl"

float seen(const in uint row, const in uint column, const in float score, const in uint sequence, const in uint first_query,
           const in uint first_key) {
    const uint t = first_query + row, j = first_key + column;
    return j <= key_length - query_length + t && j >= first_seen(sequence, t) ? score : NEGATIVE_INFINITY;
}

// Whether some of the queries of a fragment do not see all keys from `first_key` to `end` - 1.
bool is_crossed(uint sequence, uint first_query, uint first_key, uint end) {
    return end > key_length - query_length + first_query + 1 || first_seen(sequence, first_query + FRAGMENT - 1) > first_key;
}

float kept_element(const in uint row, const in uint column, const in float value, const in uint flat_head, const in uint first_query,
                   const in uint tile_row, const in uint first_key, const in uint tile_column) {
    return value * KEPT(kept_one(0, flat_head, first_query, tile_row + row, first_key, first_key + tile_column + column));
}

#define FIRST_OCTET(t, octet) read_octet(key, key_start + (t) * key_token_stride, octet)
#define SECOND_OCTET(t, octet) read_octet(value, value_start + (t) * value_token_stride, octet)
