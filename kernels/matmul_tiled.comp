// Matrix product on ordinary arithmetic units, in float32, for any device.
//
//   c[z, m, n] = activation(scale sum over k of a[z, m, k] b[z, k, n] + bias[n]) + residual[z, m, n]
//
// a, b     operands; along one of its two axes each is contiguous (A_ALONG_M, B_ALONG_K say which), a_stride and
//          b_stride are the distance along the other one. Batch z = outer * inner + i begins at outer * a_outer + i *
//          a_inner. Variants of 16-bit precision (ROUND) round float32 operands as they are read.
// c        contiguous [batches, rows, columns]; with splits > 1: partial sums [splits, batches, rows, columns], where
//          split s sums over k in [s split_depth, (s + 1) split_depth), for matmul_reduce.
// preactivation  what the activation is of, laid out as c, when HAS_PREACTIVATION.
// factor   laid out as c: with FACTOR, which is for a c of 16 bits, c is multiplied by an activation's derivative there.
// b_sums   with HAS_SUMS, which is for one batch and B_ALONG_K = 0: b.sum(0), [splits, columns]; for a bias's gradient.
// numpy    c = activation(scale * (a @ b) + bias) + residual
//
// A workgroup computes a tile of TILE_M x TILE_N. Slices of TILE_K are fetched to registers while the slice before is
// multiplied from shared memory; each thread holds 4 GROUPS_M x 4 GROUPS_N sums. EDGES says which of rows (1), columns
// (2) and depth (4) are not whole tiles. With PART_STEPS each so many slices are a part of the sum, and parts are added
// up in order: the bits are those of splits as long as that, and matmul_reduce.
#version 460
#include "common.glsl"
#include "kernel.glsl"
const uint RELAY = 0;  // it is in none
#include "fresh.glsl"
#include "matmul.glsl"
#include "matmul_sums.glsl"

layout(local_size_x_id = 0) in;

const uint THREAD_ROWS = TILE_M / (4 * GROUPS_M), THREAD_COLUMNS = TILE_N / (4 * GROUPS_N);
const uint A_LINE = A_ALONG_M != 0 ? TILE_M : TILE_K, B_LINE = B_ALONG_K != 0 ? TILE_K : TILE_N;
const uint A_UNITS = TILE_M * TILE_K / 4 / THREADS, B_UNITS = TILE_N * TILE_K / 4 / THREADS;
const uint A_STRIDE = TILE_M / 4 + 1, B_STRIDE = TILE_N / 4 + 1;
// The last step fetches its own slice again, so that nothing is conditional: faster only where A is not transposed.
const bool REPEATS = A_ALONG_M != 0;

// [k][m] and [k][n], in groups of four along m and n.
shared vec4 a_shared[TILE_K * A_STRIDE];
shared vec4 b_shared[TILE_K * B_STRIDE];

vec4 rounded(vec4 value) {
#if ROUND
    return unpack_halves4(pack_halves4(value));
#else
    return value;
#endif
}

// The four neighbours at `at`, of which `left` are in the array; zeros for others, and where `at` is not inside of it.
#define DEFINE_FETCH_FLOATS(NAME, VECTOR)                                                                              \
    vec4 NAME(uint64_t at, bool inside, uint left) {                                                                   \
        if (!inside) return vec4(0.0);                                                                                 \
        if (VECTOR != 0) return rounded(floats4(at).at[0]);                                                            \
        vec4 value = vec4(0.0);                                                                                        \
        for (uint i = 0; i < 4; i++)                                                                                   \
            if (i < left) value[i] = floats1(at).at[i];                                                                \
        return rounded(value);                                                                                         \
    }
#define DEFINE_FETCH_HALVES(NAME, VECTOR)                                                                              \
    vec4 NAME(uint64_t at, bool inside, uint left) {                                                                   \
        if (!inside) return vec4(0.0);                                                                                 \
        if (VECTOR != 0) return unpack_halves4(words2(at).at[0]);                                                      \
        vec4 value = vec4(0.0);                                                                                        \
        for (uint i = 0; i < 4; i++)                                                                                   \
            if (i < left) value[i] = unpack_halves(uint(shorts1(at).at[i])).x;                                         \
        return value;                                                                                                  \
    }
#if A_BITS == 32
DEFINE_FETCH_FLOATS(fetch_a, A_VECTOR)
#else
DEFINE_FETCH_HALVES(fetch_a, A_VECTOR)
#endif
#if B_BITS == 32
DEFINE_FETCH_FLOATS(fetch_b, B_VECTOR)
#else
DEFINE_FETCH_HALVES(fetch_b, B_VECTOR)
#endif

// What a thread fetches with number `i`: four neighbours of a line of the slice.
uint unit_line(uint i, uint length) { return (i * THREADS + gl_LocalInvocationID.x) / (length / 4); }
uint unit_start(uint i, uint length) { return (i * THREADS + gl_LocalInvocationID.x) % (length / 4) * 4; }

void main() {
    uint number = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    uvec2 tile = tile_of(number, gl_NumWorkGroups.y, gl_NumWorkGroups.x);
    uint row0 = tile.y * TILE_M, column0 = tile.x * TILE_N;
    uint split = gl_WorkGroupID.z % splits, batch = gl_WorkGroupID.z / splits;
    uint outer_batch = batch / inner, inner_batch = batch % inner;
    uint begin = split * split_depth, end = min(depth, begin + split_depth);
    uint steps = end > begin ? (end - begin + TILE_K - 1) / TILE_K : 0;

    const uint A_BYTES = A_BITS / 8, B_BYTES = B_BITS / 8;
    uint64_t a_base = uint64_t(a) + A_BYTES * (uint64_t(outer_batch) * a_outer + uint64_t(inner_batch) * a_inner +
                      (A_ALONG_M != 0 ? row0 + uint64_t(begin) * a_stride : begin + uint64_t(row0) * a_stride));
    uint64_t b_base = uint64_t(b) + B_BYTES * (uint64_t(outer_batch) * b_outer + uint64_t(inner_batch) * b_inner +
                      (B_ALONG_K != 0 ? begin + uint64_t(column0) * b_stride : column0 + uint64_t(begin) * b_stride));
    uint64_t a_step = A_BYTES * uint64_t(TILE_K) * (A_ALONG_M != 0 ? a_stride : 1);
    uint64_t b_step = B_BYTES * uint64_t(TILE_K) * (B_ALONG_K != 0 ? 1 : b_stride);
    uint64_t a_at[A_UNITS], b_at[B_UNITS];
    [[unroll]] for (uint i = 0; i < A_UNITS; i++)
        a_at[i] = a_base + A_BYTES * (uint64_t(unit_line(i, A_LINE)) * a_stride + unit_start(i, A_LINE));
    [[unroll]] for (uint i = 0; i < B_UNITS; i++)
        b_at[i] = b_base + B_BYTES * (uint64_t(unit_line(i, B_LINE)) * b_stride + unit_start(i, B_LINE));

    // Of 32 threads in blocks of 4 x 8, the eight whose reads go together read two places of A and four of B.
    uint lane = gl_LocalInvocationID.x % 32, block = gl_LocalInvocationID.x / 32;
    uint thread_row = block / (THREAD_COLUMNS / 8) * 4 + lane / 16 * 2 + lane % 2;
    uint thread_column = block % (THREAD_COLUMNS / 8) * 8 + lane / 2 % 8;

    vec4 sums[4 * GROUPS_M][GROUPS_N], totals[4 * GROUPS_M][GROUPS_N];  // of a part, and of those before, with PART_STEPS
    [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
        [[unroll]] for (uint j = 0; j < GROUPS_N; j++) sums[i][j] = totals[i][j] = vec4(0.0);
    vec4 a_next[A_UNITS], b_next[B_UNITS];
    vec4 b_sum = vec4(0.0);  // THREADS is a multiple of the units of a line, so all that a thread fetches is one column
    uint depth_left = end - begin;

// The slice at which the addresses are, to registers.
#define FETCH()                                                                                                        \
    {                                                                                                                  \
        uint a_lines = A_ALONG_M != 0 ? depth_left : rows - row0, a_length = A_ALONG_M != 0 ? rows - row0 : depth_left;\
        uint b_lines = B_ALONG_K != 0 ? columns - column0 : depth_left;                                                \
        uint b_length = B_ALONG_K != 0 ? depth_left : columns - column0;                                               \
        [[unroll]] for (uint i = 0; i < A_UNITS; i++) {                                                                \
            uint line = unit_line(i, A_LINE), start = unit_start(i, A_LINE);                                           \
            a_next[i] = fetch_a(a_at[i], (EDGES & 5) == 0 || (line < a_lines && start < a_length), a_length - start);  \
        }                                                                                                              \
        [[unroll]] for (uint i = 0; i < B_UNITS; i++) {                                                                \
            uint line = unit_line(i, B_LINE), start = unit_start(i, B_LINE);                                           \
            b_next[i] = fetch_b(b_at[i], (EDGES & 6) == 0 || (line < b_lines && start < b_length), b_length - start);  \
        }                                                                                                              \
    }
// What was fetched, to shared memory; `counts`: it is of the sums of columns.
#define PUT(counts)                                                                                                    \
    {                                                                                                                  \
        [[unroll]] for (uint i = 0; i < A_UNITS; i++) {                                                                \
            uint line = unit_line(i, A_LINE), start = unit_start(i, A_LINE);                                           \
            if (A_ALONG_M != 0) a_shared[line * A_STRIDE + start / 4] = a_next[i];                                     \
            else                                                                                                       \
                [[unroll]] for (uint k = 0; k < 4; k++)                                                                \
                    a_shared[(start + k) * A_STRIDE + line / 4][line % 4] = a_next[i][k];                              \
        }                                                                                                              \
        [[unroll]] for (uint i = 0; i < B_UNITS; i++) {                                                                \
            uint line = unit_line(i, B_LINE), start = unit_start(i, B_LINE);                                           \
            if (B_ALONG_K == 0) b_shared[line * B_STRIDE + start / 4] = b_next[i];                                     \
            else                                                                                                       \
                [[unroll]] for (uint k = 0; k < 4; k++)                                                                \
                    b_shared[(start + k) * B_STRIDE + line / 4][line % 4] = b_next[i][k];                              \
            if (HAS_SUMS != 0 && counts) b_sum += b_next[i];                                                           \
        }                                                                                                              \
    }

    if (steps != 0) {
        FETCH();
        PUT(true);
    }
    barrier();
    for (uint step = 0; step < steps; step++) {
        const bool more = step + 1 < steps, fetches = more || REPEATS;
        if (fetches) {
            [[unroll]] for (uint i = 0; i < A_UNITS; i++) a_at[i] += more ? a_step : 0;
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) b_at[i] += more ? b_step : 0;
            depth_left -= more ? TILE_K : 0;
            FETCH();
        }
        [[unroll]] for (uint k = 0; k < TILE_K; k++) {
            vec4 a_part[GROUPS_M], b_part[GROUPS_N];
            [[unroll]] for (uint i = 0; i < GROUPS_M; i++)
                a_part[i] = a_shared[k * A_STRIDE + i * THREAD_ROWS + thread_row];
            [[unroll]] for (uint j = 0; j < GROUPS_N; j++)
                b_part[j] = b_shared[k * B_STRIDE + j * THREAD_COLUMNS + thread_column];
            [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
                [[unroll]] for (uint j = 0; j < GROUPS_N; j++)
                    sums[i][j] = fma(vec4(a_part[i / 4][i % 4]), b_part[j], sums[i][j]);
        }
        if (PART_STEPS != 0 && ((step + 1) % PART_STEPS == 0 || step + 1 == steps)) {
            [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
                [[unroll]] for (uint j = 0; j < GROUPS_N; j++) {
                    totals[i][j] += sums[i][j];
                    sums[i][j] = vec4(0.0);
                }
        }
        barrier();
        if (fetches) PUT(more);
        barrier();
    }

    uint64_t plane = uint64_t(split) * (gl_NumWorkGroups.z / splits) + batch;
    [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++) {
        uint row = row0 + (i / 4 * THREAD_ROWS + thread_row) * 4 + i % 4;
        [[unroll]] for (uint j = 0; j < GROUPS_N; j++) {
            uint column = column0 + (j * THREAD_COLUMNS + thread_column) * 4;
            if (row < rows && column < columns)
                store_results((plane * rows + row) * columns + column, column,
                              scale * (PART_STEPS != 0 ? totals[i][j] : sums[i][j]));
        }
    }
    if (HAS_SUMS != 0 && tile.y == 0)
        store_column_sums(b_sum, TILE_N / 4, column0 + gl_LocalInvocationID.x * 4, plane);
}
