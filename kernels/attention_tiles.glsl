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

// Rows are multiplied with rows in slices of SLICE quads, first those of the queries in shared memory, then those of the keys.
const uint SLICE = 4;
const uint SLICE_PITCH = SLICE + 1;  // odd, so that rows begin in different banks
const uint KEYS_AT = TILE_QUERIES * SLICE_PITCH;
const uint SLICES_SPACE = KEYS_AT + TILE_KEYS * SLICE_PITCH;
const uint STAGED_QUERIES = (TILE_QUERIES * SLICE + THREADS - 1) / THREADS;
const uint STAGED_KEYS = (TILE_KEYS * SLICE + THREADS - 1) / THREADS;

// The place of a thread among rows of `columns` threads each. Of four neighbours two share a row and two a column, so that
// eight whose reads go together read two rows and four columns.
uint column_among(uint columns) { return gl_LocalInvocationIndex / 2 % columns; }
uint row_among(uint columns) { return gl_LocalInvocationIndex / (2 * columns) * 2 + gl_LocalInvocationIndex % 2; }

// The row of shared memory that has a key of the tile: key 4 c + i of a block lies at row i COLUMN_THREADS + c of it, so
// that neighbouring threads read neighbouring rows.
uint slot_of(uint token) {
    return token / BLOCK_KEYS * BLOCK_KEYS + token % 4 * COLUMN_THREADS + token % BLOCK_KEYS / 4;
}

// `count` rows of an array in memory, `stride` elements apart, the first at element `start`.
struct Rows {
    JOIN(T, _buffer) source;
    uint start, stride, count;
};

// Those from number `skipped` on.
Rows rows_from(Rows rows, uint skipped) {
    return Rows(rows.source, rows.start + skipped * rows.stride, rows.stride, rows.count - min(rows.count, skipped));
}

// Quads of `staged`, on their way from memory to shared memory: a thread's i-th is one of `line` quads, from `first` on, of
// one of `height` rows; zeros where there are no more rows, and beyond the width.
#define FETCH(staged, number, height, line, first, rows)                                                               \
    [[unroll]] for (uint i = 0; i < number; ++i) {                                                                     \
        const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / (line);                              \
        const bool exists = token < min(rows.count, height);                                                           \
        staged[i] = exists ? read_quad(rows.source, rows.start + token * rows.stride, (first) + index % (line)) : vec4(0.0);\
    }

vec4 staged_a[STAGED_QUERIES], staged_b[STAGED_KEYS];

// A slice of the tile's rows of queries or gradients, and of keys or values.
#define FETCH_SLICES(first, a, b)                                                                                      \
    {                                                                                                                  \
        FETCH(staged_a, STAGED_QUERIES, TILE_QUERIES, SLICE, first, a)                                                 \
        FETCH(staged_b, STAGED_KEYS, TILE_KEYS, SLICE, first, b)                                                       \
    }

// Adds to sums[ROWS FOURS] the products of rows of `a`, times `factor`, with rows of `b`, by way of slices in `space`, the
// first of which FETCH_SLICES has fetched. Barriers are before what it writes there, and none is behind what it reads.
// `following` fetches what is needed next, while the last slice is multiplied.
#define ADD_PRODUCTS(sums, factor, a, b, following)                                                                    \
    {                                                                                                                  \
        for (uint first = 0; first < QUADS; first += SLICE) {                                                          \
            barrier();                                                                                                 \
            [[unroll]] for (uint i = 0; i < STAGED_QUERIES; ++i) {                                                     \
                const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / SLICE;                       \
                if (token < TILE_QUERIES) space[token * SLICE_PITCH + index % SLICE] = staged_a[i] * (factor);         \
            }                                                                                                          \
            [[unroll]] for (uint i = 0; i < STAGED_KEYS; ++i) {                                                        \
                const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / SLICE;                       \
                if (token < TILE_KEYS) space[KEYS_AT + slot_of(token) * SLICE_PITCH + index % SLICE] = staged_b[i];    \
            }                                                                                                          \
            barrier();                                                                                                 \
            if (first + SLICE < QUADS) {                                                                               \
                FETCH_SLICES(first + SLICE, a, b)                                                                      \
            } else {                                                                                                   \
                following                                                                                              \
            }                                                                                                          \
            [[unroll]] for (uint quad = 0; quad < SLICE; ++quad) {                                                     \
                vec4 q[ROWS];                                                                                          \
                [[unroll]] for (uint r = 0; r < ROWS; ++r) q[r] = space[(row + ROW_THREADS * r) * SLICE_PITCH + quad]; \
                [[unroll]] for (uint f = 0; f < FOURS; ++f) {                                                          \
                    [[unroll]] for (uint i = 0; i < 4; ++i) {                                                          \
                        vec4 k = space[KEYS_AT + ((f * 4 + i) * COLUMN_THREADS + column) * SLICE_PITCH + quad];        \
                        [[unroll]] for (uint r = 0; r < ROWS; ++r)                                                     \
                            sums[r * FOURS + f][i] = multiply_add(q[r], k, sums[r * FOURS + f][i]);                    \
                    }                                                                                                  \
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
