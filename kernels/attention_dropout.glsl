// The bits of dropout for a tile of TILE_QUERIES x TILE_KEYS scores (TILE_KEYS a multiple of 8), drawn once for all of
// the workgroup: score i of the flat [B, QUERY_HEADS, query_length, key_length] probabilities is kept when element i of
// rng.random_uint16 is not below `threshold`. Philox gives eight such elements at a time, the low half of each word
// first; the blocks of eight begin anywhere in a row when key_length is no multiple of eight.

const uint KEPT_BLOCKS = TILE_KEYS / 8 + 1;

shared uint kept_bits[1 + DROPOUT * TILE_QUERIES * KEPT_BLOCKS];

// A barrier must follow, and one must lie between the last use of the tile before and this.
void draw_kept(uint sequence, uint head, uint first_query, uint first_key) {
    uint64_t first_row = uint64_t(sequence * QUERY_HEADS + head) * query_length + first_query;
    for (uint i = gl_LocalInvocationIndex; i < TILE_QUERIES * KEPT_BLOCKS; i += THREADS) {
        uint64_t block = ((first_row + i / KEPT_BLOCKS) * key_length + first_key) / 8 + i % KEPT_BLOCKS;
        uvec4 counter = uvec4(uint(block), uint(block >> 32), stream, uint(random_step.at[0]));
        uvec4 words = philox(counter, uvec2(seed_low, seed_high));
        uint bits = 0;
        [[unroll]] for (uint w = 0; w < 4; ++w) {
            bits |= uint((words[w] & 0xffffu) >= threshold) << (2 * w);
            bits |= uint((words[w] >> 16) >= threshold) << (2 * w + 1);
        }
        kept_bits[i] = bits;
    }
}

// 1 where kept and 0 where dropped, for query `row` of the tile and key `key_index`.
float kept_one(uint sequence, uint head, uint first_query, uint row, uint first_key, uint key_index) {
    uint flat_row = (sequence * QUERY_HEADS + head) * query_length + first_query + row;
    uint bit = (flat_row * key_length + first_key) % 8 + key_index - first_key;  // as of the 64-bit index
    return float((kept_bits[row * KEPT_BLOCKS + bit / 8] >> (bit % 8)) & 1);
}

// The same for the keys 4 four to 4 four + 3 of the tile.
vec4 kept(uint sequence, uint head, uint first_query, uint row, uint first_key, uint four) {
    vec4 factors;
    [[unroll]] for (uint i = 0; i < 4; ++i)
        factors[i] = kept_one(sequence, head, first_query, row, first_key, first_key + four * 4 + i);
    return factors;
}
