// How the attention kernels on ordinary arithmetic units share a tile of scores among threads, and the products of rows.
//
// Thread (row, column) of ROW_THREADS x COLUMN_THREADS owns of a tile's scores every ROW_THREADS-th query from `row` on,
// ROWS in all, and of each of FOURS blocks of 4 COLUMN_THREADS keys the four from 4 column on.
//
// Expects the specialization constants THREADS, COLUMN_THREADS, ROWS and FOURS; include after attention.glsl.

#include "attention_segments.glsl"

const uint ROW_THREADS = THREADS / COLUMN_THREADS;
const uint TILE_QUERIES = ROW_THREADS * ROWS;
const uint BLOCK_KEYS = COLUMN_THREADS * 4;
const uint TILE_KEYS = BLOCK_KEYS * FOURS;
const uint UNROLLED = QUADS % 4 == 0 ? 4 : 1;

// The place of a thread among rows of `columns` threads each. Of four neighbours two share a row and two a column, so that
// eight whose reads go together read two rows and four columns.
uint column_among(uint columns) { return gl_LocalInvocationIndex / 2 % columns; }
uint row_among(uint columns) { return gl_LocalInvocationIndex / (2 * columns) * 2 + gl_LocalInvocationIndex % 2; }

// The row of shared memory that has a key of the tile: key 4 c + i of a block lies at row i COLUMN_THREADS + c of it, so
// that neighbouring threads read neighbouring rows.
uint slot_of(uint token) {
    return token / BLOCK_KEYS * BLOCK_KEYS + token % 4 * COLUMN_THREADS + token % BLOCK_KEYS / 4;
}

// Adds to sums[ROWS FOURS] the products of the thread's rows of `queries` and of its rows of `keys`, both in shared memory.
#define ADD_PRODUCTS(sums, queries, keys)                                                                              \
    for (uint first = 0; first < QUADS; first += UNROLLED) {                                                           \
        [[unroll]] for (uint quad = first; quad < first + UNROLLED; ++quad) {                                          \
            vec4 q[ROWS];                                                                                              \
            [[unroll]] for (uint r = 0; r < ROWS; ++r) q[r] = queries[(row + ROW_THREADS * r) * PITCH + quad];         \
            [[unroll]] for (uint f = 0; f < FOURS; ++f) {                                                              \
                [[unroll]] for (uint i = 0; i < 4; ++i) {                                                              \
                    vec4 k = keys[((f * 4 + i) * COLUMN_THREADS + column) * PITCH + quad];                             \
                    [[unroll]] for (uint r = 0; r < ROWS; ++r)                                                         \
                        sums[r * FOURS + f][i] = multiply_add(q[r], k, sums[r * FOURS + f][i]);                        \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

// The probabilities of four neighbouring keys; of SOFT_CAP's scores what its derivative needs is left.
vec4 probabilities_of(inout vec4 scores, float row_logsumexp) {
    vec4 probabilities;
    [[unroll]] for (uint i = 0; i < 4; ++i) probabilities[i] = score_probability(scores[i], row_logsumexp, true);
    return probabilities;
}

// The same with zeros for those of the keys from j on that query t does not see.
vec4 seen_of(vec4 probabilities, uint sequence, uint t, uint j) {
    const uint row_first = first_seen(sequence, t), last = key_length - query_length + t;
    [[unroll]] for (uint i = 0; i < 4; ++i)
        if (j + i > last || j + i < row_first) probabilities[i] = 0.0;
    return probabilities;
}
