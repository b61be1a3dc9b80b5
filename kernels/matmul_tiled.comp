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
// multiplied from shared memory; each thread holds 4 GROUPS_M x 4 GROUPS_N sums. With PART_STEPS each so many slices are
// a part of the sum, and parts are added up in order: the bits are those of splits as long as that, and matmul_reduce.
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "matmul.glsl"
#include "matmul_sums.glsl"

layout(local_size_x_id = 0) in;

const uint THREAD_ROWS = TILE_M / (4 * GROUPS_M), THREAD_COLUMNS = TILE_N / (4 * GROUPS_N);
const uint A_LINE = A_ALONG_M != 0 ? TILE_M : TILE_K, B_LINE = B_ALONG_K != 0 ? TILE_K : TILE_N;
const uint A_UNITS = TILE_M * TILE_K / 4 / THREADS, B_UNITS = TILE_N * TILE_K / 4 / THREADS;
const uint A_STRIDE = TILE_M / 4 + 1, B_STRIDE = TILE_N / 4 + 1;

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

// Four neighbours of the line `line` from `start`; zeros outside of `lines` x `length`.
#define DEFINE_FETCH_FLOATS(NAME, VECTOR)                                                                            \
    vec4 NAME(uint64_t base, uint stride, uint line, uint start, uint lines, uint length) {                           \
        if (line >= lines || start >= length) return vec4(0.0);                                                       \
        uint index = line * stride + start;                                                                           \
        if (VECTOR != 0) return rounded(floats4(base).at[index / 4]);                                                 \
        vec4 value = vec4(0.0);                                                                                       \
        for (uint i = 0; i < 4; i++)                                                                                  \
            if (start + i < length) value[i] = floats1(base).at[index + i];                                           \
        return rounded(value);                                                                                        \
    }
#define DEFINE_FETCH_HALVES(NAME, VECTOR)                                                                            \
    vec4 NAME(uint64_t base, uint stride, uint line, uint start, uint lines, uint length) {                           \
        if (line >= lines || start >= length) return vec4(0.0);                                                       \
        uint index = line * stride + start;                                                                           \
        if (VECTOR != 0) return unpack_halves4(words2(base).at[index / 4]);                                           \
        vec4 value = vec4(0.0);                                                                                       \
        for (uint i = 0; i < 4; i++)                                                                                  \
            if (start + i < length) value[i] = unpack_halves(uint(shorts1(base).at[index + i])).x;                    \
        return value;                                                                                                 \
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
    uint thread_row = gl_LocalInvocationID.x / THREAD_COLUMNS, thread_column = gl_LocalInvocationID.x % THREAD_COLUMNS;

    vec4 sums[4 * GROUPS_M][GROUPS_N], totals[4 * GROUPS_M][GROUPS_N];  // of a part, and of those before, with PART_STEPS
    [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
        [[unroll]] for (uint j = 0; j < GROUPS_N; j++) sums[i][j] = totals[i][j] = vec4(0.0);
    vec4 a_next[A_UNITS], b_next[B_UNITS];
    vec4 b_sum = vec4(0.0);  // THREADS is a multiple of the units of a line, so all that a thread fetches is one column

    for (uint step = 0; step <= steps; step++) {
        uint rest = end - begin - min(step * TILE_K, end - begin);
        if (step < steps) {
            [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (A_LINE / 4), start = unit % (A_LINE / 4) * 4;
                a_next[i] = fetch_a(a_base, a_stride, line, start, A_ALONG_M != 0 ? rest : rows - row0,
                                    A_ALONG_M != 0 ? rows - row0 : rest);
            }
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (B_LINE / 4), start = unit % (B_LINE / 4) * 4;
                b_next[i] = fetch_b(b_base, b_stride, line, start, B_ALONG_K != 0 ? columns - column0 : rest,
                                    B_ALONG_K != 0 ? rest : columns - column0);
                if (HAS_SUMS != 0) b_sum += b_next[i];
            }
            a_base += a_step;
            b_base += b_step;
        }
        if (step > 0) {
            for (uint k = 0; k < TILE_K; k++) {
                vec4 a_part[GROUPS_M], b_part[GROUPS_N];
                [[unroll]] for (uint i = 0; i < GROUPS_M; i++)
                    a_part[i] = a_shared[k * A_STRIDE + i * THREAD_ROWS + thread_row];
                [[unroll]] for (uint j = 0; j < GROUPS_N; j++)
                    b_part[j] = b_shared[k * B_STRIDE + j * THREAD_COLUMNS + thread_column];
                [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
                    [[unroll]] for (uint j = 0; j < GROUPS_N; j++)
                        sums[i][j] = fma(vec4(a_part[i / 4][i % 4]), b_part[j], sums[i][j]);
            }
            if (PART_STEPS != 0 && (step % PART_STEPS == 0 || step == steps)) {
                [[unroll]] for (uint i = 0; i < 4 * GROUPS_M; i++)
                    [[unroll]] for (uint j = 0; j < GROUPS_N; j++) {
                        totals[i][j] += sums[i][j];
                        sums[i][j] = vec4(0.0);
                    }
            }
            barrier();
        }
        if (step < steps) {
            [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (A_LINE / 4), start = unit % (A_LINE / 4) * 4;
                if (A_ALONG_M != 0) a_shared[line * A_STRIDE + start / 4] = a_next[i];
                else
                    [[unroll]] for (uint k = 0; k < 4; k++)
                        a_shared[(start + k) * A_STRIDE + line / 4][line % 4] = a_next[i][k];
            }
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (B_LINE / 4), start = unit % (B_LINE / 4) * 4;
                if (B_ALONG_K == 0) b_shared[line * B_STRIDE + start / 4] = b_next[i];
                else
                    [[unroll]] for (uint k = 0; k < 4; k++)
                        b_shared[(start + k) * B_STRIDE + line / 4][line % 4] = b_next[i][k];
            }
            barrier();
        }
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
