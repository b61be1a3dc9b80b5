// Matrix product of few rows, for which reading b takes the time: each element of b is read once, 16 bytes at a time, and
// all parts of the sum over k are the work of one workgroup, so that nothing is left for another dispatch.
//
//   c[m, n] = activation(sum over k of a[m, k] b[k, n] + bias[n]) + residual[m, n]
//
// a, b     as in matmul_tiled, a with its rows in order; with SOURCE 0. With 1, a is x [rows, depth] of norm.comp, in
//          order, and its norm is the operand: norm_weight, norm_bias (if NORM_BIAS) and epsilon as there. With 2, a is
//          `partial` of attention_combine.comp, [rows, heads, parts, HEAD], with its statistics: the operand is what that
//          makes of them.
// c        [rows, columns], as are residual and preactivation; no more than TILE_M rows
// The operand is rounded to the variant's 16 bits. The bits of a result are those that matmul_tiled or matmul_matrix,
// and matmul_reduce, give for the same splits, and so are a norm's and attention's.
//
// Each team of TEAM threads has a part of the sum: a subgroup with matrix units (MATRIX), whose sums are 16 columns, or
// threads that have four columns each. Slices of TILE_K go through shared memory.
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "matmul.glsl"
#include "lanes.glsl"
#include "vectors.glsl"
#include "norm_row.glsl"

const uint TILE_M = 16, TEAMS = THREADS / TEAM;
const uint PLAIN = 0, NORM = 1, ATTENTION = 2;

shared vec2 row_norms[TILE_M];

// --- the left operand: four neighbours of a row ---

vec4 stored4(uint64_t base, uint index, uint place, uint end) {
    if (A_VECTOR != 0) {
#if A_BITS == 32
        return floats4(base).at[index / 4];
#else
        return unpack_halves4(words2(base).at[index / 4]);
#endif
    }
    vec4 value = vec4(0.0);
    for (uint i = 0; i < 4; ++i)
        if (place + i < end)
#if A_BITS == 32
            value[i] = floats1(base).at[index + i];
#else
            value[i] = unpack_halves(uint(shorts1(base).at[index + i])).x;
#endif
    return value;
}

// Numbers of an array of floats like the row of a norm, from `place` on; zeros from `end` on.
vec4 floats_from(f32_buffer from, uint place, uint end) {
    if (VECTOR == 4) return load(f32x4_buffer(from).at[place / 4]);
    vec4 value = vec4(0.0);
    for (uint i = 0; i < 4; ++i)
        if (place + i < end) value[i] = from.at[place + i];
    return value;
}

// As attention_combine does it.
float combined(uint row, uint place) {
    const uint first = (row * (depth / HEAD) + place / HEAD) * parts;
    float maximum = statistics.at[first * 2];
    for (uint s = 1; s < parts; ++s) maximum = max(maximum, statistics.at[(first + s) * 2]);
    float result = 0.0, sum = 0.0;
    for (uint s = 0; s < parts; ++s) {
        float factor = exp2(statistics.at[(first + s) * 2] - maximum);
        result = fma(factor, floats1(uint64_t(a)).at[(first + s) * HEAD + place % HEAD], result);
        sum = fma(factor, statistics.at[(first + s) * 2 + 1], sum);
    }
    return result / sum;
}

vec4 left4(uint row, uint place, uint end) {
    if (row >= rows || place >= end) return vec4(0.0);
    if (SOURCE == ATTENTION) {
        vec4 value = vec4(0.0);
        for (uint i = 0; i < 4; ++i)
            if (place + i < end) value[i] = combined(row, place + i);
        return value;
    }
    vec4 value = stored4(uint64_t(a), row * a_stride + place, place, end);
    if (SOURCE == NORM) {
        value = normalized(value - row_norms[row].x, row_norms[row].y, floats_from(norm_weight, place, end));
        if (NORM_BIAS != 0) value = shifted(value, floats_from(norm_bias, place, end));
    }
    return value;
}

void find_norms() {
    const uint thread = thread_index(), lane = thread % LANES, step = THREADS / LANES;
    for (uint first = 0; first < rows; first += step) {
        const uint row = first + thread / LANES;
        vec4 values[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint column = (k * LANES + lane) * VECTOR;
            values[k] = row < rows && column < WIDTH ? load_f32(f32_buffer(uint64_t(a)), row * a_stride + column) : vec4(0.0);
        }
        const vec2 norm = norm_of_row(values, lane, epsilon);
        if (row < rows && lane == 0) row_norms[row] = norm;
    }
    barrier();
}

// --- the right operand: neighbours along which it is in order, zeros outside of `lines` x `length` ---

vec4 right4(uint line, uint start, uint lines, uint length) {
    if (line >= lines || start >= length) return vec4(0.0);
    const uint64_t index = uint64_t(line) * b_stride + start;
    if (B_VECTOR != 0) {
#if B_BITS == 32
        return floats4(uint64_t(b) + 4 * index).at[0];
#else
        return unpack_halves4(words2(uint64_t(b) + 2 * index).at[0]);
#endif
    }
    vec4 value = vec4(0.0);
    for (uint i = 0; i < 4; ++i)
        if (start + i < length)
#if B_BITS == 32
            value[i] = floats1(uint64_t(b) + 4 * index).at[i];
#else
            value[i] = unpack_halves(uint(shorts1(uint64_t(b) + 2 * index).at[i])).x;
#endif
    return value;
}

#if MATRIX
#if BFLOAT
#define HALF bfloat16_t
#else
#define HALF float16_t
#endif
const uint TILE_N = 16, ROWS = TILE_M / FRAGMENT_M, COLUMNS = TILE_N / FRAGMENT_N;
const uint A_STRIDE = TILE_K / 8 + 1, A_SIZE = TILE_M * A_STRIDE;
const uint B_LINE = B_ALONG_K != 0 ? TILE_K : TILE_N, B_LINES = B_ALONG_K != 0 ? TILE_N : TILE_K;
const uint B_STRIDE = B_LINE / 8 + 1, B_SIZE = B_LINES * B_STRIDE;
const uint C_STRIDE = TILE_N / 4, C_SIZE = TILE_M * C_STRIDE;  // units of four floats
const uint TEAM_SIZE = A_SIZE > C_SIZE ? A_SIZE : C_SIZE;
const int B_LAYOUT = B_ALONG_K != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;
const uint A_UNITS = TILE_M * TILE_K / 8, B_UNITS = TILE_N * TILE_K / 8, B_EACH = (B_UNITS + TEAM - 1) / TEAM;

shared uvec4 a_shared[TEAMS * TEAM_SIZE];
shared uvec4 b_shared[TEAMS * B_SIZE];

// Eight neighbours of b in 16 bits.
uvec4 right8(uint line, uint start, uint lines, uint length) {
#if B_BITS == 16
    if (B_VECTOR != 0) {
        if (line >= lines || start >= length) return uvec4(0);
        return words4(uint64_t(b) + 2 * (uint64_t(line) * b_stride + start)).at[0];
    }
#endif
    return uvec4(pack_halves4(right4(line, start, lines, length)), pack_halves4(right4(line, start + 4, lines, length)));
}
#else
vec4 rounded(vec4 value) {
#if ROUND
    return unpack_halves4(pack_halves4(value));
#else
    return value;
#endif
}

const uint TILE_N = 4 * TEAM, A_UNITS = TILE_M * TILE_K / 4;

shared vec4 a_shared[TEAMS * A_UNITS];
shared vec4 totals[TILE_M * TEAM];
#endif

void main() {
    const uint team = thread_index() / TEAM, member = thread_index() % TEAM;
    const uint column0 = gl_WorkGroupID.x * TILE_N;
    const uint begin = min(depth, team * split_depth), end = min(depth, begin + split_depth);
    const uint steps = (min(depth, split_depth) + TILE_K - 1) / TILE_K;  // as many for each team
    if (SOURCE == NORM) find_norms();

#if MATRIX
    coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator> sums[ROWS][COLUMNS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++)
            sums[i][j] = coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>(0.0);
    uvec4 next[B_EACH];
    for (uint step = 0; step <= steps; step++) {
        const uint k0 = begin + step * TILE_K;
        if (step > 0) {
            [[unroll]] for (uint i = 0; i < B_EACH; i++) {
                const uint unit = i * TEAM + member;
                if (unit < B_UNITS) b_shared[team * B_SIZE + unit / (B_LINE / 8) * B_STRIDE + unit % (B_LINE / 8)] = next[i];
            }
            for (uint unit = member; unit < A_UNITS; unit += TEAM) {
                const uint row = unit / (TILE_K / 8), place = k0 - TILE_K + unit % (TILE_K / 8) * 8;
                a_shared[team * TEAM_SIZE + row * A_STRIDE + unit % (TILE_K / 8)] =
                    uvec4(pack_halves4(left4(row, place, end)), pack_halves4(left4(row, place + 4, end)));
            }
        }
        if (step < steps) {
            [[unroll]] for (uint i = 0; i < B_EACH; i++) {
                const uint unit = i * TEAM + member, line = unit / (B_LINE / 8), start = unit % (B_LINE / 8) * 8;
                if (unit < B_UNITS)
                    next[i] = B_ALONG_K != 0 ? right8(column0 + line, k0 + start, columns, end)
                                             : right8(k0 + line, column0 + start, end, columns);
            }
        }
        if (step == 0) continue;
        barrier();
        [[unroll]] for (uint k = 0; k < TILE_K; k += FRAGMENT_K) {
            coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA> a_part[ROWS];
            [[unroll]] for (uint i = 0; i < ROWS; i++)
                coopMatLoad(a_part[i], a_shared, team * TEAM_SIZE + i * FRAGMENT_M * A_STRIDE + k / 8, A_STRIDE,
                            gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB> b_part;
                const uint n = j * FRAGMENT_N;
                const uint at = B_ALONG_K != 0 ? n * B_STRIDE + k / 8 : k * B_STRIDE + n / 8;
                coopMatLoad(b_part, b_shared, team * B_SIZE + at, B_STRIDE, B_LAYOUT);
                [[unroll]] for (uint i = 0; i < ROWS; i++) sums[i][j] = coopMatMulAdd(a_part[i], b_part, sums[i][j]);
            }
        }
        barrier();
    }
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++)
            coopMatStore(sums[i][j], a_shared, team * TEAM_SIZE + i * FRAGMENT_M * C_STRIDE + j * FRAGMENT_N / 4, C_STRIDE,
                         gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    for (uint unit = gl_LocalInvocationID.x; unit < C_SIZE; unit += THREADS) {
        const uint row = unit / C_STRIDE, column = column0 + unit % C_STRIDE * 4;
        if (row >= rows || column >= columns) continue;
        vec4 total = vec4(0.0);
        for (uint s = 0; s < TEAMS; s++) total += uintBitsToFloat(a_shared[s * TEAM_SIZE + unit]);
        store_results(uint64_t(row) * columns + column, column, total);
    }
#else
    vec4 sums[TILE_ROWS];
    [[unroll]] for (uint row = 0; row < TILE_ROWS; row++) sums[row] = vec4(0.0);
    const uint column = column0 + 4 * member;
    for (uint step = 0; step < steps; step++) {
        const uint k0 = begin + step * TILE_K;
        for (uint unit = member; unit < TILE_ROWS * TILE_K / 4; unit += TEAM)
            a_shared[team * A_UNITS + unit] = rounded(left4(unit / (TILE_K / 4), k0 + unit % (TILE_K / 4) * 4, end));
        barrier();
        for (uint k = 0; k < TILE_K; k += 4) {
            vec4 right[4];  // a vector of columns for each k
            [[unroll]] for (uint i = 0; i < 4; i++) {
                if (B_ALONG_K != 0) {
                    const vec4 line = rounded(right4(column + i, k0 + k, columns, end));
                    [[unroll]] for (uint j = 0; j < 4; j++) right[j][i] = line[j];
                } else {
                    right[i] = rounded(right4(k0 + k + i, column, end, columns));
                }
            }
            [[unroll]] for (uint row = 0; row < TILE_ROWS; row++) {
                const vec4 left = a_shared[team * A_UNITS + row * (TILE_K / 4) + k / 4];
                [[unroll]] for (uint i = 0; i < 4; i++) sums[row] = fma(vec4(left[i]), right[i], sums[row]);
            }
        }
        barrier();
    }
    for (uint s = 0; s < TEAMS; s++) {
        if (s == team)
            [[unroll]] for (uint row = 0; row < TILE_ROWS; row++)
                totals[row * TEAM + member] = sums[row] + (s == 0 ? vec4(0.0) : totals[row * TEAM + member]);
        barrier();
    }
    for (uint unit = gl_LocalInvocationID.x; unit < TILE_ROWS * TEAM; unit += THREADS) {
        const uint row = unit / TEAM, place = column0 + unit % TEAM * 4;
        if (row < rows && place < columns) store_results(uint64_t(row) * columns + place, place, totals[unit]);
    }
#endif
}
