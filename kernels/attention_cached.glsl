// What all kernels of attention to the cache share: operands, results and where they stand; and, of attention_cached.comp
// and attention_cached_rows.comp, the order of sums, so that a row has the same bits from both.
//
// query: rows of QUERY_HEADS heads, `query_stride` apart; keys, values [blocks, TOKENS, KEY_HEADS, WIDTH]; sequences,
// positions [N]; tables [S, pages]. Query i sees positions 0 to positions[i] of sequence s = sequences[i]; position p stands
// in block tables[s, p / TOKENS], place p % TOKENS. Each of `splits` parts has THREADS positions (on matrix units PART), so
// that the bits of a row depend on its own position only. With SPLIT == 0 `attended` [N, QUERY_HEADS, WIDTH] is the
// result. With SPLIT == 1 `partial` [N, QUERY_HEADS, splits, WIDTH] are sums of exponentials times values, and `statistics`
// [N, QUERY_HEADS, splits, 2] the largest score (base 2) and the sum of exponentials, as attention_parts.glsl reads them, but
// for ranges without keys.
//
// The product of a query and a key is made of PRODUCTS sums, of which sum i has the quads i, i + PRODUCTS, ... of the
// width. They are added up by fours: (0 + 4) + (1 + 5) + (2 + 6) + (3 + 7). A quad of the result is the sum of LANES sums,
// of which sum i has the positions i, i + LANES, ...

const uint PRODUCTS = 8;
const uint PRODUCT_QUADS = (QUADS + PRODUCTS - 1) / PRODUCTS;
const uint LANES = THREADS / QUADS;  // threads that share a quad of the result
const uint AHEAD = 16;               // values that a thread reads at a time

// Where the key, and the value, of a position begin that a query head sees.
uint place_of(uint table, uint position, uint head) {
    uint token = uint(tables.at[table + position / TOKENS]) * TOKENS + position % TOKENS;
    return (token * KEY_HEADS + head / GROUP) * WIDTH;
}

// The score of a key by its product with the query.
float bounded_score(float score, bool seen) {
    if (SOFT_CAP != 0.0) score = bounded_tanh(score) * (SOFT_CAP * LOG2_E);
    return seen ? score : NEGATIVE_INFINITY;
}

void write_result(uint start, uint quad, vec4 numbers) {
    if (ALIGNED == 1) {
        store(JOIN(T, x4_buffer)(attended).at[start / 4 + quad], numbers);
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) store(attended.at[start + quad * 4 + i], numbers[i]);
    }
}
