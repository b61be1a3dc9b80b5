// The products of a tile of scores with rows of keys or values, which kernels whose results are queries' have in common.
//
// A thread has every COLUMN_THREADS-th quad of its queries' results. Scores change owners by way of shared memory, a block
// of BLOCK_KEYS at a time, and rows come there SLICE_ROWS at a time. Include after attention_tiles.glsl.

const uint OUT_QUADS = (QUADS + COLUMN_THREADS - 1) / COLUMN_THREADS;
const uint TILE_QUADS = OUT_QUADS * COLUMN_THREADS;
const uint PITCH = TILE_QUADS + 1;
const uint SCORE_PITCH = COLUMN_THREADS + 1;
const uint SLICE_ROWS = BLOCK_KEYS < 16 ? BLOCK_KEYS : 16;
const uint ROWS_AT = TILE_QUERIES * SCORE_PITCH;
const uint ROWS_SPACE = ROWS_AT + SLICE_ROWS * PITCH;
const uint STAGED_ROWS = (SLICE_ROWS * TILE_QUADS + THREADS - 1) / THREADS;

// Of a slice of queries and one of keys, or of a block of scores and a slice of rows.
shared vec4 space[SLICES_SPACE > ROWS_SPACE ? SLICES_SPACE : ROWS_SPACE];

vec4 staged_rows[STAGED_ROWS];

// The first of rows, which must have a name.
#define FETCH_ROWS(rows) FETCH(staged_rows, STAGED_ROWS, SLICE_ROWS, TILE_QUADS, 0, rows)

// Adds to result[ROWS OUT_QUADS] the products of scores[ROWS FOURS] with `rows`, of which staged_rows has the first ones.
// `following` is as for ADD_PRODUCTS.
#define ADD_ROWS(scores, rows, following)                                                                              \
    [[unroll]] for (uint f = 0; f < FOURS; ++f) {                                                                      \
        for (uint first = 0; first < BLOCK_KEYS; first += SLICE_ROWS) {                                                \
            barrier();                                                                                                 \
            if (first == 0) {                                                                                          \
                [[unroll]] for (uint r = 0; r < ROWS; ++r)                                                             \
                    space[(row + ROW_THREADS * r) * SCORE_PITCH + column] = scores[r * FOURS + f];                     \
            }                                                                                                          \
            [[unroll]] for (uint i = 0; i < STAGED_ROWS; ++i) {                                                        \
                const uint index = gl_LocalInvocationIndex + i * THREADS, token = index / TILE_QUADS;                  \
                if (token < SLICE_ROWS) space[ROWS_AT + token * PITCH + index % TILE_QUADS] = staged_rows[i];          \
            }                                                                                                          \
            barrier();                                                                                                 \
            const uint next = f * BLOCK_KEYS + first + SLICE_ROWS;                                                     \
            if (next < TILE_KEYS) {                                                                                    \
                Rows others = rows_from(rows, next);                                                             \
                FETCH_ROWS(others)                                                                                     \
            } else {                                                                                                   \
                following                                                                                              \
            }                                                                                                          \
            for (uint four = 0; four < SLICE_ROWS / 4; ++four) {                                                       \
                vec4 p[ROWS];                                                                                          \
                [[unroll]] for (uint r = 0; r < ROWS; ++r)                                                             \
                    p[r] = space[(row + ROW_THREADS * r) * SCORE_PITCH + first / 4 + four];                            \
                [[unroll]] for (uint i = 0; i < 4; ++i) {                                                              \
                    [[unroll]] for (uint c = 0; c < OUT_QUADS; ++c) {                                                  \
                        vec4 numbers = space[ROWS_AT + (four * 4 + i) * PITCH + column + c * COLUMN_THREADS];          \
                        [[unroll]] for (uint r = 0; r < ROWS; ++r)                                                     \
                            result[r * OUT_QUADS + c] = fma(vec4(p[r][i]), numbers, result[r * OUT_QUADS + c]);        \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
