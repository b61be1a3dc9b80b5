// Matrix product on matrix units: cooperative matrices of a subgroup, 16-bit operands, float32 sums.
//
//   c[z, m, n] = activation(scale sum over k of a[z, m, k] b[z, k, n] + bias[n]) + residual[z, m, n]
//
// Operands, batches, splits and results are those of matmul_tiled. Operands stored as float32 are rounded to the
// variant's 16-bit type on their way to shared memory, the others are copied.
// numpy    c = activation(scale * (rounded(a) @ rounded(b)) + bias) + residual
//
// A workgroup of SUBGROUPS_M x SUBGROUPS_N subgroups computes a tile of TILE_M x TILE_N. Slices of TILE_K are fetched
// to registers while the slice before is multiplied; with STAGES = 2 shared memory holds two slices, which saves a
// barrier a slice. Lines of shared memory are padded by 16 bytes, so that eight lines begin in different banks.
// PART_STEPS is as in matmul_tiled.
// Without DIRECT results pass through the shared memory of A, two fragments at a time, so that neighbours are stored
// together. With it they go from the matrix units to c; only for whole tiles, and 16-bit results in float16.
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "matmul.glsl"
#include "matmul_sums.glsl"

layout(local_size_x_id = 0) in;

#if BFLOAT
#define HALF bfloat16_t
#else
#define HALF float16_t
#endif
// A unit is what a thread moves at a time: 16 bytes of the operand.
#if A_BITS == 32
#define A_UNIT 4
#define A_READ vec4
#define A_WORD uvec2
#define A_PACK pack_halves4
#define A_FLOATS(INDEX) vec4(uintBitsToFloat(a_shared[2 * (INDEX)]), uintBitsToFloat(a_shared[2 * (INDEX) + 1]))
#else
#define A_UNIT 8
#define A_READ uvec4
#define A_WORD uvec4
#define A_PACK
#define A_FLOATS(INDEX) uintBitsToFloat(a_shared[INDEX])
#endif
#if B_BITS == 32
#define B_UNIT 4
#define B_READ vec4
#define B_WORD uvec2
#define B_PACK pack_halves4
#else
#define B_UNIT 8
#define B_READ uvec4
#define B_WORD uvec4
#define B_PACK
#endif

const uint A_LINE = A_ALONG_M != 0 ? TILE_M : TILE_K, B_LINE = B_ALONG_K != 0 ? TILE_K : TILE_N;
const uint A_LINES = A_ALONG_M != 0 ? TILE_K : TILE_M, B_LINES = B_ALONG_K != 0 ? TILE_N : TILE_K;
const uint A_UNITS = TILE_M * TILE_K / A_UNIT / THREADS, B_UNITS = TILE_N * TILE_K / B_UNIT / THREADS;
const uint A_STRIDE = (A_LINE + 8) / A_UNIT, B_STRIDE = (B_LINE + 8) / B_UNIT;
const uint ROWS = TILE_M / (SUBGROUPS_M * FRAGMENT_M), COLUMNS = TILE_N / (SUBGROUPS_N * FRAGMENT_N);
// Neighbouring fragments on their way through shared memory, in groups of four; what a thread stores at a time. Two of
// them need no more of it than operands do, so as many workgroups share a multiprocessor.
const uint C_FRAGMENTS = COLUMNS % 2 == 0 ? 2 : 1;
const uint C_LINE = C_FRAGMENTS * FRAGMENT_N, C_UNIT = C_VECTOR == 8 ? 8 : 4;
const uint C_STRIDE = C_LINE / 4 + 1, C_GROUPS = SUBGROUPS_M * SUBGROUPS_N * FRAGMENT_M * C_STRIDE;
const uint WORDS = 8 / A_UNIT;  // of a_shared in a group
const uint A_SLICES = STAGES * A_LINES * A_STRIDE, B_SLICES = STAGES * B_LINES * B_STRIDE;
const uint C_WORDS = DIRECT != 0 ? 0 : C_GROUPS * WORDS;
const uint A_SIZE = A_SLICES > C_WORDS ? A_SLICES : C_WORDS;
const int A_LAYOUT = A_ALONG_M != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;
const int B_LAYOUT = B_ALONG_K != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;

#define A_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define C_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>

shared A_WORD a_shared[A_SIZE];
shared B_WORD b_shared[B_SLICES];

#define STORE_FLOATS(MATRIX, ADDRESS, INDEX)                                                                         \
    coopMatStore(MATRIX, f32_buffer(uint64_t(ADDRESS) + 4 * (INDEX)).at, 0, columns, gl_CooperativeMatrixLayoutRowMajor)
#if BFLOAT
#define STORE_16_BITS(MATRIX, ADDRESS, INDEX)  // never with DIRECT
#define MULTIPLY_16_BITS(MATRIX, ADDRESS, INDEX)
#else
#define HALF_MATRIX coopmat<float16_t, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>
#define STORE_16_BITS(MATRIX, ADDRESS, INDEX)                                                                        \
    coopMatStore(HALF_MATRIX(MATRIX), f16_buffer(uint64_t(ADDRESS) + 2 * (INDEX)).at, 0, columns,                    \
                 gl_CooperativeMatrixLayoutRowMajor)
#define MULTIPLY_16_BITS(MATRIX, ADDRESS, INDEX)                                                                     \
    {                                                                                                                \
        HALF_MATRIX factors;                                                                                         \
        coopMatLoad(factors, f16_buffer(uint64_t(ADDRESS) + 2 * (INDEX)).at, 0, columns,                             \
                    gl_CooperativeMatrixLayoutRowMajor);                                                             \
        C_MATRIX wide = C_MATRIX(factors);                                                                           \
        [[unroll]] for (uint e = 0; e < MATRIX.length(); e++) MATRIX[e] *= activation_slope(FACTOR - 1, wide[e]);    \
    }
#endif

// One unit of the line `line` from `start`; zeros outside of `lines` x `length`, where that is checked.
#define DEFINE_FETCH_FLOATS(NAME, VECTOR)                                                                            \
    vec4 NAME(uint64_t base, uint stride, uint line, uint start, uint lines, uint length) {                           \
        if (line >= lines || start >= length) return vec4(0.0);                                                       \
        uint index = line * stride + start;                                                                           \
        if (VECTOR != 0) return floats4(base).at[index / 4];                                                          \
        vec4 value = vec4(0.0);                                                                                       \
        [[unroll]] for (uint i = 0; i < 4; i++)                                                                       \
            if (start + i < length) value[i] = floats1(base).at[index + i];                                           \
        return value;                                                                                                 \
    }
#define DEFINE_FETCH_HALVES(NAME, VECTOR)                                                                            \
    uvec4 NAME(uint64_t base, uint stride, uint line, uint start, uint lines, uint length) {                          \
        if (line >= lines || start >= length) return uvec4(0);                                                        \
        uint index = line * stride + start;                                                                           \
        if (VECTOR != 0) return words4(base).at[index / 8];                                                           \
        uvec4 value = uvec4(0);                                                                                       \
        [[unroll]] for (uint i = 0; i < 8; i++)                                                                       \
            if (start + i < length) value[i / 2] |= uint(shorts1(base).at[index + i]) << 16 * (i % 2);                \
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
    uvec2 tile = tile_of_workgroup();
    uint row0 = tile.y * TILE_M, column0 = tile.x * TILE_N;
    uint split = gl_WorkGroupID.z % splits, batch = gl_WorkGroupID.z / splits;
    uint outer_batch = batch / inner, inner_batch = batch % inner;
    uint begin = split * split_depth, end = min(depth, begin + split_depth);
    uint steps = end > begin ? (end - begin + TILE_K - 1) / TILE_K : 0;
    // What there is of the operands from the tile's corner on; without EDGES tiles are whole, and nothing is compared.
    uint rows_left = (EDGES & 1) != 0 ? rows - row0 : ~0u, columns_left = (EDGES & 2) != 0 ? columns - column0 : ~0u;

    const uint A_BYTES = A_BITS / 8, B_BYTES = B_BITS / 8;
    uint64_t a_base = uint64_t(a) + A_BYTES * (uint64_t(outer_batch) * a_outer + uint64_t(inner_batch) * a_inner +
                      (A_ALONG_M != 0 ? row0 + uint64_t(begin) * a_stride : begin + uint64_t(row0) * a_stride));
    uint64_t b_base = uint64_t(b) + B_BYTES * (uint64_t(outer_batch) * b_outer + uint64_t(inner_batch) * b_inner +
                      (B_ALONG_K != 0 ? begin + uint64_t(column0) * b_stride : column0 + uint64_t(begin) * b_stride));
    uint64_t a_step = A_BYTES * uint64_t(TILE_K) * (A_ALONG_M != 0 ? a_stride : 1);
    uint64_t b_step = B_BYTES * uint64_t(TILE_K) * (B_ALONG_K != 0 ? 1 : b_stride);
    uint subgroup_row = gl_SubgroupID / SUBGROUPS_N * ROWS, subgroup_column = gl_SubgroupID % SUBGROUPS_N * COLUMNS;

    C_MATRIX sums[ROWS][COLUMNS], totals[ROWS][COLUMNS];  // of a part, and of those before, with PART_STEPS
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = totals[i][j] = C_MATRIX(0.0);
    A_READ a_next[A_UNITS];
    B_READ b_next[B_UNITS];
    vec4 b_sum[B_UNIT / 4];  // THREADS is a multiple of the units of a line, so all that a thread fetches is one column
    [[unroll]] for (uint i = 0; i < B_UNIT / 4; i++) b_sum[i] = vec4(0.0);

    for (uint step = 0; step <= steps; step++) {
        if (step < steps) {
            uint depth_left = (EDGES & 4) != 0 ? end - begin - step * TILE_K : ~0u;
            [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (A_LINE / A_UNIT), start = unit % (A_LINE / A_UNIT) * A_UNIT;
                a_next[i] = fetch_a(a_base, a_stride, line, start, A_ALONG_M != 0 ? depth_left : rows_left,
                                    A_ALONG_M != 0 ? rows_left : depth_left);
            }
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (B_LINE / B_UNIT), start = unit % (B_LINE / B_UNIT) * B_UNIT;
                b_next[i] = fetch_b(b_base, b_stride, line, start, B_ALONG_K != 0 ? columns_left : depth_left,
                                    B_ALONG_K != 0 ? depth_left : columns_left);
                if (HAS_SUMS != 0 && tile.y == 0) {
#if B_BITS == 32
                    b_sum[0] += b_next[i];
#else
                    b_sum[0] += unpack_halves4(b_next[i].xy);
                    b_sum[1] += unpack_halves4(b_next[i].zw);
#endif
                }
            }
            a_base += a_step;
            b_base += b_step;
        }
        if (step > 0) {
            uint stage = STAGES == 2 ? (step - 1) % 2 : 0;
            [[unroll]] for (uint k = 0; k < TILE_K; k += FRAGMENT_K) {
                A_MATRIX a_part[ROWS];
                [[unroll]] for (uint i = 0; i < ROWS; i++) {
                    uint m = (subgroup_row + i) * FRAGMENT_M;
                    uint at = A_ALONG_M != 0 ? k * A_STRIDE + m / A_UNIT : m * A_STRIDE + k / A_UNIT;
                    coopMatLoad(a_part[i], a_shared, stage * A_LINES * A_STRIDE + at, A_STRIDE, A_LAYOUT);
                }
                [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                    B_MATRIX b_part;
                    uint n = (subgroup_column + j) * FRAGMENT_N;
                    uint at = B_ALONG_K != 0 ? n * B_STRIDE + k / B_UNIT : k * B_STRIDE + n / B_UNIT;
                    coopMatLoad(b_part, b_shared, stage * B_LINES * B_STRIDE + at, B_STRIDE, B_LAYOUT);
                    [[unroll]] for (uint i = 0; i < ROWS; i++)
                        sums[i][j] = coopMatMulAdd(a_part[i], b_part, sums[i][j]);
                }
            }
            if (PART_STEPS != 0 && (step % PART_STEPS == 0 || step == steps)) {
                [[unroll]] for (uint i = 0; i < ROWS; i++)
                    [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                        totals[i][j] += sums[i][j];
                        sums[i][j] = C_MATRIX(0.0);
                    }
            }
            if (STAGES == 1) barrier();
        }
        if (step < steps) {
            uint stage = STAGES == 2 ? step % 2 : 0;
            [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (A_LINE / A_UNIT), start = unit % (A_LINE / A_UNIT);
                a_shared[(stage * A_LINES + line) * A_STRIDE + start] = A_PACK(a_next[i]);
            }
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) {
                uint unit = i * THREADS + gl_LocalInvocationID.x;
                uint line = unit / (B_LINE / B_UNIT), start = unit % (B_LINE / B_UNIT);
                b_shared[(stage * B_LINES + line) * B_STRIDE + start] = B_PACK(b_next[i]);
            }
            barrier();
        }
    }

    if (PART_STEPS != 0)
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = totals[i][j];
    if (DIRECT == 0 && STAGES == 2) barrier();  // a_shared may still be read
    uint64_t plane = uint64_t(split) * (gl_NumWorkGroups.z / splits) + batch;
    uint lines = gl_SubgroupID * FRAGMENT_M * C_STRIDE;
    [[unroll]] for (uint i = 0; i < ROWS; i++) {
        uint row = row0 + (subgroup_row + i) * FRAGMENT_M;
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
            uint column = column0 + (subgroup_column + j) * FRAGMENT_N;
            if (DIRECT != 0) {
                C_MATRIX value = sums[i][j];
                uint64_t index = (plane * rows + row) * columns + column;
                [[unroll]] for (uint e = 0; e < value.length(); e++) value[e] = scale * value[e];
                if (HAS_BIAS != 0) {
                    C_MATRIX other;
                    coopMatLoad(other, floats1(uint64_t(bias)).at, column, 0, gl_CooperativeMatrixLayoutRowMajor);
                    value += other;
                }
                if (HAS_PREACTIVATION != 0) STORE_16_BITS(value, preactivation, index);
                if (ACTIVATION != 0)
                    [[unroll]] for (uint e = 0; e < value.length(); e++) value[e] = activate(ACTIVATION - 1, value[e]);
                if (HAS_RESIDUAL != 0) {
                    C_MATRIX other;
                    coopMatLoad(other, f32_buffer(uint64_t(residual) + 4 * index).at, 0, columns,
                                gl_CooperativeMatrixLayoutRowMajor);
                    value += other;
                }
                if (FACTOR != 0) MULTIPLY_16_BITS(value, factor, index);
                if (C_HALF != 0) STORE_16_BITS(value, c, index);
                else STORE_FLOATS(value, c, index);
                continue;
            }
            coopMatStore(sums[i][j], a_shared, (lines + j % C_FRAGMENTS * (FRAGMENT_N / 4)) * WORDS, C_STRIDE * WORDS,
                         gl_CooperativeMatrixLayoutRowMajor);
            if ((j + 1) % C_FRAGMENTS != 0) continue;
            subgroupMemoryBarrierShared();
            subgroupBarrier();
            uint first = column0 + (subgroup_column + j + 1 - C_FRAGMENTS) * FRAGMENT_N;
            for (uint e = gl_SubgroupInvocationID; e < FRAGMENT_M * C_LINE / C_UNIT; e += gl_SubgroupSize) {
                uint line = e / (C_LINE / C_UNIT), start = e % (C_LINE / C_UNIT) * C_UNIT;
                uint group = lines + line * C_STRIDE + start / 4, column = first + start;
                if (row + line >= rows || column >= columns) continue;
                uint64_t index = (plane * rows + row + line) * columns + column;
                if (C_UNIT == 8) store_results(index, column, scale * A_FLOATS(group), scale * A_FLOATS(group + 1));
                else store_results(index, column, scale * A_FLOATS(group));
            }
            subgroupBarrier();
        }
    }
    if (HAS_SUMS != 0 && tile.y == 0) {
        [[unroll]] for (uint i = 0; i < B_UNIT / 4; i++)
            store_column_sums(b_sum[i], TILE_N / B_UNIT, column0 + gl_LocalInvocationID.x * B_UNIT + 4 * i, plane);
    }
}
