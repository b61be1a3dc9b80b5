// Matrix product of few rows, for which reading b takes the time: each element of b is read once, 16 bytes at a time, and
// all parts of the sum over k are the work of one workgroup, so that nothing is left for another dispatch.
//
//   c[m, n] = activation(sum over k of a[m, k] b[k, n] + bias[n]) + residual[m, n]
//
// a, b     as in matmul_tiled, a with its rows in order; with SOURCE 0. With 1, a is x [rows, depth] of norm.comp, in
//          order, and its norm is the operand: norm_weight, norm_bias (if NORM_BIAS) and EPSILON as there. With 2, a is
//          `partial` of attention_combine.comp, [rows, heads, parts, HEAD], with its statistics: the operand is what that
//          makes of them, of KEYS positions a part; in the field of `factor` are the positions [rows].
// c        [rows, columns], as is residual; no more than TILE_ROWS rows, but with BLOCKS, of SOURCE 0
// The operand is rounded to the variant's 16 bits. The bits of a result are those that matmul_tiled or matmul_matrix,
// and matmul_reduce, give for the same parts of the sum, and so are a norm's and attention's.
//
// Each team of TEAM threads has a part of the sum, PART long: a subgroup with matrix units (MATRIX), or threads that have
// four columns each. What a team reads of b is on its way, LOADED of the sum at a time, before anything else is done; so a
// product takes little longer than one visit to memory. On matrix units a passes through shared memory TILE_K of the sum
// at a time, and b SLICE at a time, and no team waits for another before its sums are there, but for a norm. There, with
// ALONE, each team has columns of its own, and all PARTS of their sum one after the other, of which LOADED is on its way:
// for so many columns that there is a team for each part of the GPU. With BLOCKS, workgroups along z take blocks of
// TILE_ROWS rows in turn, and each reads b once for all of its own. B_EDGES: 1 columns, 2 parts of the sum are not all
// whole. In a relay (relay.glsl), all but a, residual and statistics are asked for before the round before has ended.
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "fresh.glsl"
#include "relay.glsl"
#define STORED(values) (RELAY == 0 ? values : written(values))
#include "matmul.glsl"
#include "lanes.glsl"
#include "vectors.glsl"
#include "norm_row.glsl"
#include "attention_parts.glsl"
#include "attention_parts_read.glsl"

const uint TEAMS = THREADS / TEAM;
const uint PLAIN = 0, NORM = 1, ATTENTION = 2;

shared vec2 row_norms[TILE_ROWS];
shared uint seen_parts[TILE_ROWS];  // that attention has made of each row's keys

// --- the left operand: four neighbours of a row ---

vec4 stored4(uint64_t base, uint index, uint place, uint end) {
    if (A_VECTOR != 0) {
#if A_BITS == 32
        return fresh_f32x4(base, index / 4);
#else
        return unpack_halves4(fresh_u32x2(base, index / 4));
#endif
    }
    vec4 value = vec4(0.0);
    for (uint i = 0; i < 4; ++i)
        if (place + i < end)
#if A_BITS == 32
            value[i] = fresh_f32(base, index + i);
#else
            value[i] = unpack_halves(uint(fresh_bf16(base, index + i))).x;
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

// Of attention's result, so many neighbours: 1, 4 or 8.
mat2x4 combined(uint row, uint place, uint numbers) {
    const uint first = (row * (depth / HEAD) + place / HEAD) * parts;
    return attention_of_parts(f32_buffer(uint64_t(a)), statistics, first, seen_parts[row], HEAD, place % HEAD, numbers);
}

// To be called by all threads before a barrier, after which there is what `combined` needs.
void find_parts() {
    if (SOURCE != ATTENTION || gl_LocalInvocationIndex >= rows) return;
    const uint position = uint(i32_buffer(uint64_t(factor)).at[gl_LocalInvocationIndex]);
    seen_parts[gl_LocalInvocationIndex] = min(parts, position / KEYS + 1);
}

vec4 left4(uint row, uint place, uint end) {
    if (row >= rows || place >= end) return vec4(0.0);
    if (SOURCE == ATTENTION) {
        if (HEAD % 4 == 0) return combined(row, place, 4)[0];
        vec4 value = vec4(0.0);
        for (uint i = 0; i < 4; ++i)
            if (place + i < end) value[i] = combined(row, place + i, 1)[0].x;
        return value;
    }
    vec4 value = stored4(uint64_t(a), row * a_stride + place, place, end);
    if (SOURCE == NORM) {
        value = normalized(value - row_norms[row].x, row_norms[row].y, floats_from(norm_weight, place, end));
        if (NORM_BIAS != 0) value = shifted(value, floats_from(norm_bias, place, end));
    }
    return value;
}

vec4 fresh_row(uint index) {
    if (VECTOR == 4) return fresh_f32x4(uint64_t(a), index / 4);
    return vec4(fresh_f32(uint64_t(a), index), 0.0, 0.0, 0.0);
}

void find_norms() {
    const uint thread = thread_index(), lane = thread % LANES, step = THREADS / LANES;
    for (uint first = 0; first < rows; first += step) {
        const uint row = thread / LANES < step ? first + thread / LANES : rows;
        vec4 values[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint column = (k * LANES + lane) * VECTOR;
            values[k] = row < rows && column < WIDTH ? fresh_row(row * a_stride + column) : vec4(0.0);
        }
        const vec2 norm = norm_of_row(values, lane, EPSILON);
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

// --- the results of four neighbours, with what is added to them on its way while the sum is made ---

// But for the residual, which may be of the round before.
Beside early_beside(uint row, uint column) {
    Beside it = NOTHING;
    if (C_VECTOR == 0 || row >= rows || column >= columns) return it;
    if (HAS_BIAS != 0) it.bias = bias_of(column);
    it.slot = slot_of(row, column);
    return it;
}

vec4 residual_beside(uint row, uint column) {
    if (C_VECTOR == 0 || HAS_RESIDUAL == 0 || row >= rows || column >= columns) return vec4(0.0);
    return residual_of(uint64_t(row) * columns + column);
}

Beside added_to(uint row, uint column) {
    Beside it = early_beside(row, column);
    it.residual = residual_beside(row, column);
    return it;
}

void store_sum(uint row, uint column, vec4 total, Beside added) {
    store_results(uint64_t(row) * columns + column, column, total, added);
}

#if MATRIX
#include "matmul_few_matrix.glsl"
#else
vec4 rounded(vec4 value) {
#if ROUND
    return unpack_halves4(pack_halves4(value));
#else
    return value;
#endif
}

const uint A_UNITS = TILE_ROWS * TILE_K / 4;
const uint AHEAD = TILE_ROWS <= 4 ? 16 : 8;  // of the sum, how much of b is on its way at a time

shared vec4 a_shared[TEAMS * A_UNITS];
shared vec4 totals[TEAMS * TEAM];

void main() {
    const uint thread = thread_index(), team = thread / TEAM, member = thread % TEAM;
    const uint column0 = gl_WorkGroupID.x * TILE_N, column = column0 + 4 * member;
    const uint begin = min(depth, team * PART), end = min(depth, begin + PART);
    find_parts();
    if (SOURCE == ATTENTION && RELAY == 0) barrier();
    relay_wait();
    if (SOURCE == NORM) find_norms();

    vec4 sums[TILE_ROWS];
    [[unroll]] for (uint row = 0; row < TILE_ROWS; row++) sums[row] = vec4(0.0);
    for (uint k0 = begin; k0 < begin + PART; k0 += TILE_K) {
        for (uint unit = member; unit < A_UNITS; unit += TEAM)
            a_shared[team * A_UNITS + unit] = rounded(left4(unit / (TILE_K / 4), k0 + unit % (TILE_K / 4) * 4, end));
        barrier();
        for (uint k = 0; k < TILE_K; k += AHEAD) {
            vec4 right[AHEAD];  // a vector of columns for each k
            [[unroll]] for (uint i = 0; i < AHEAD; i += 4) {
                if (B_ALONG_K != 0) {
                    [[unroll]] for (uint j = 0; j < 4; j++) {
                        const vec4 line = right4(column + j, k0 + k + i, columns, end);
                        [[unroll]] for (uint e = 0; e < 4; e++) right[i + e][j] = line[e];
                    }
                } else {
                    [[unroll]] for (uint e = 0; e < 4; e++) right[i + e] = right4(k0 + k + i + e, column, end, columns);
                }
            }
            [[unroll]] for (uint i = 0; i < AHEAD; i++) right[i] = rounded(right[i]);
            [[unroll]] for (uint row = 0; row < TILE_ROWS; row++)
                [[unroll]] for (uint i = 0; i < AHEAD; i += 4) {
                    const vec4 left = a_shared[team * A_UNITS + row * (TILE_K / 4) + (k + i) / 4];
                    [[unroll]] for (uint e = 0; e < 4; e++) sums[row] = fma(vec4(left[e]), right[i + e], sums[row]);
                }
        }
        barrier();
    }
    [[unroll]] for (uint row = 0; row < TILE_ROWS; row++) {
        totals[thread] = sums[row];
        barrier();
        if (team == 0 && row < rows && column < columns) {
            const Beside added = added_to(row, column);
            vec4 total = vec4(0.0);
            [[unroll]] for (uint s = 0; s < TEAMS; s++) total += totals[s * TEAM + member];
            store_sum(row, column, total, added);
        }
        barrier();
    }
    relay_end();
}
#endif
