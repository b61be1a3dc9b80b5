// Matrix product of few rows, for which reading b takes the time: each element of b is read once, 16 bytes at a time, and
// all parts of the sum over k are the work of one workgroup, so that nothing is left for another dispatch.
//
//   c[m, n] = activation(sum over k of a[m, k] b[k, n] + bias[n]) + residual[m, n]
//
// a, b     as in matmul_tiled, a with its rows in order; with SOURCE 0. With 1, a is x [rows, depth] of norm.comp, in
//          order, and its norm is the operand: norm_weight, norm_bias (if NORM_BIAS) and epsilon as there. With 2, a is
//          `partial` of attention_combine.comp, [rows, heads, parts, HEAD], with its statistics: the operand is what that
//          makes of them.
// c        [rows, columns], as is residual; no more than TILE_ROWS rows
// With PUTS, columns from put_begin on are not for c: the first put_width of them go to row put_slots[m] of put_keys, the
// next to that of put_values, both rows of put_width numbers like those of c, put_rows of them.
// The operand is rounded to the variant's 16 bits. The bits of a result are those that matmul_tiled or matmul_matrix,
// and matmul_reduce, give for the same parts of the sum, and so are a norm's and attention's.
//
// Each team of TEAM threads has a part of the sum, PART long: a subgroup with matrix units (MATRIX), or threads that have
// four columns each. What a team reads of b is on its way, LOADED of the sum at a time, before anything else is done; so a
// product takes little longer than one visit to memory. On matrix units a passes through shared memory TILE_K of the sum
// at a time, and b SLICE at a time, and no team waits for another before its sums are there, but for a norm. B_EDGES: 1
// columns, 2 parts of the sum are not all whole.
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
const uint64_t factor = 0, preactivation = 0;  // for gradients only
#include "matmul.glsl"
#include "lanes.glsl"
#include "vectors.glsl"
#include "norm_row.glsl"
#include "attention_parts.glsl"

const uint TEAMS = THREADS / TEAM;
const uint PLAIN = 0, NORM = 1, ATTENTION = 2;

shared vec2 row_norms[TILE_ROWS];

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

// Of attention's result, four neighbours, or the first of them.
vec4 combined(uint row, uint place, bool one) {
    const uint first = (row * (depth / HEAD) + place / HEAD) * parts;
    return attention_of_parts(f32_buffer(uint64_t(a)), statistics, first, parts, HEAD, place % HEAD, one);
}

vec4 left4(uint row, uint place, uint end) {
    if (row >= rows || place >= end) return vec4(0.0);
    if (SOURCE == ATTENTION) {
        if (HEAD % 4 == 0) return combined(row, place, false);
        vec4 value = vec4(0.0);
        for (uint i = 0; i < 4; ++i)
            if (place + i < end) value[i] = combined(row, place + i, true).x;
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
        const uint row = thread / LANES < step ? first + thread / LANES : rows;
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

// --- the results of four neighbours, with what is added to them on its way while the sum is made ---

struct Added {
    vec4 bias, residual;
};

Added added_to(uint row, uint column) {
    Added added = Added(vec4(0.0), vec4(0.0));
    if (C_VECTOR != 0 && row < rows && column < columns) {
        if (HAS_BIAS != 0) added.bias = bias_of(column);
        if (HAS_RESIDUAL != 0) added.residual = residual_of(uint64_t(row) * columns + column);
    }
    return added;
}

void store_sum(uint row, uint column, vec4 total, Added added) {
    const uint64_t index = uint64_t(row) * columns + column;
    if (PUTS != 0 && column >= put_begin) {  // with C_VECTOR and without activation
        const uint slot = uint(put_slots.at[row]), place = column - put_begin;
        const uint64_t target = place < put_width ? uint64_t(put_keys) : uint64_t(put_values);
        if (HAS_BIAS != 0) total += added.bias;
        if (slot < put_rows) put_four(target, uint64_t(slot) * put_width + place % put_width, total, C_HALF != 0);
        return;
    }
    if (C_VECTOR == 0) {
        store_results(index, column, total);
        return;
    }
    vec4 before;
    const vec4 value = finished(index, total, added.bias, added.residual, before);
    put_four(uint64_t(c), index, value, C_HALF != 0);
}

#if MATRIX
#if BFLOAT
#define HALF bfloat16_t
#else
#define HALF float16_t
#endif
const uint ROWS = (TILE_ROWS + FRAGMENT_M - 1) / FRAGMENT_M, COLUMNS = TILE_N / FRAGMENT_N;
const uint PHASES = LOADED / TILE_K, SLICES = TILE_K / SLICE;
#define WHOLE_ROWS (SOURCE == NORM && VECTOR == 4 && TILE_K == PART && B_EDGES < 2)
// Units of eight neighbours. What stands where there are no rows is multiplied, too, and forgotten.
const uint A_STRIDE = TILE_K / 8 + 1, A_SIZE = TILE_ROWS * A_STRIDE, A_END = TEAMS * A_SIZE;
const uint B_LINE = B_ALONG_K != 0 ? SLICE : TILE_N, B_LINES = B_ALONG_K != 0 ? TILE_N : SLICE;
const uint B_STRIDE = B_LINE / 8 + 1, B_SIZE = B_LINES * B_STRIDE;
const uint C_STRIDE = FRAGMENT_N / 4, C_SIZE = FRAGMENT_M * C_STRIDE;  // units of four floats
const uint A_READ = ROWS * FRAGMENT_M * A_STRIDE, B_ALL = TEAMS * B_SIZE;
const uint OPERANDS = A_END + (B_ALL > A_READ ? B_ALL : A_READ), RESULTS = TEAMS * C_SIZE;
const int B_LAYOUT = B_ALONG_K != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;
const uint A_UNITS = TILE_ROWS * TILE_K / 8, B_UNITS = TILE_N * SLICE / 8;
const uint A_EACH = (A_UNITS + TEAM - 1) / TEAM, B_EACH = (B_UNITS + TEAM - 1) / TEAM;

shared uvec4 staged[OPERANDS > RESULTS ? OPERANDS : RESULTS];

#if B_BITS == 16
#define B_READ uvec4
#define B_PACK
#else
#define B_READ Eight
#define B_PACK packed
struct Eight {
    vec4 first, second;
};
uvec4 packed(Eight value) { return uvec4(pack_halves4(value.first), pack_halves4(value.second)); }
#endif

// Eight neighbours of b; without B_EDGES they are there.
B_READ right8(uint line, uint start, uint lines, uint length) {
#if B_BITS == 16
    if (B_VECTOR == 0)
        return uvec4(pack_halves4(right4(line, start, lines, length)), pack_halves4(right4(line, start + 4, lines, length)));
    if (B_EDGES != 0 && (line >= lines || start >= length)) return uvec4(0);
    return words4(uint64_t(b) + 2 * (uint64_t(line) * b_stride + start)).at[0];
#else
    if (B_VECTOR != 0 && B_EDGES == 0) {
        floats4 from = floats4(uint64_t(b) + 4 * (uint64_t(line) * b_stride + start));
        return Eight(from.at[0], from.at[1]);
    }
    return Eight(right4(line, start, lines, length), right4(line, start + 4, lines, length));
#endif
}

// Eight neighbours of the left operand, rounded.
uvec4 left8(uint row, uint place, uint end) {
#if A_BITS == 16
    if (A_VECTOR == 8) {
        if (row >= rows || place >= end) return uvec4(0);
        return words4(uint64_t(a) + 2 * (row * a_stride + place)).at[0];
    }
#endif
    return uvec4(pack_halves4(left4(row, place, end)), pack_halves4(left4(row, place + 4, end)));
}

// The norm of a few rows: every thread has a few numbers of each, and finds the norm of all from what is shared.
#define SPREAD (TILE_ROWS * PART / 4 <= B_SIZE)
const uint SHARES = (WIDTH / 4 + THREADS - 1) / THREADS;

uint staged_unit(uint row, uint column) { return column / PART * A_SIZE + row * A_STRIDE + column % PART / 8; }

void stage_four(uint row, uint column, vec4 value) {
    if (column % 8 == 0) staged[staged_unit(row, column)].xy = pack_halves4(value);
    else staged[staged_unit(row, column)].zw = pack_halves4(value);
}

void stage_spread_norms() {
    const uint thread = thread_index(), lane = thread % LANES, line = WIDTH / 4;
    vec4 own[TILE_ROWS][SHARES], weights[SHARES], biases[SHARES];
    [[unroll]] for (uint i = 0; i < SHARES; ++i) {
        const uint quad = i * THREADS + thread;
        weights[i] = biases[i] = vec4(0.0);
        [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row) own[row][i] = vec4(0.0);
        if (quad >= line) continue;
        [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row)
            if (row < rows) own[row][i] = floats4(uint64_t(a)).at[row * a_stride / 4 + quad];
        weights[i] = floats4(uint64_t(norm_weight)).at[quad];
        if (NORM_BIAS != 0) biases[i] = floats4(uint64_t(norm_bias)).at[quad];
    }
    [[unroll]] for (uint i = 0; i < SHARES; ++i)
        [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row)
            if (i * THREADS + thread < line) staged[A_END + row * line + i * THREADS + thread] = floatBitsToUint(own[row][i]);
    barrier();
    [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row) {
        vec4 values[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint quad = k * LANES + lane;
            values[k] = quad < line ? uintBitsToFloat(staged[A_END + row * line + min(quad, line - 1)]) : vec4(0.0);
        }
        const vec2 norm = norm_of_row(values, lane, epsilon);
        [[unroll]] for (uint i = 0; i < SHARES; ++i) {
            const uint quad = i * THREADS + thread;
            vec4 value = normalized(own[row][i] - norm.x, norm.y, weights[i]);
            if (NORM_BIAS != 0) value = shifted(value, biases[i]);
            if (quad < line) stage_four(row, quad * 4, value);
        }
    }
    barrier();
}

// The norms of all rows, by the lanes that have found them, to where teams read them.
void stage_norms() {
    const uint thread = thread_index(), lane = thread % LANES, step = THREADS / LANES;
    for (uint first = 0; first < rows; first += step) {
        const uint row = thread / LANES < step ? first + thread / LANES : rows;
        vec4 values[NORM_VECTORS], weights[NORM_VECTORS], biases[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint column = (k * LANES + lane) * 4;
            values[k] = weights[k] = biases[k] = vec4(0.0);
            if (row < rows && column < WIDTH) {
                values[k] = floats4(uint64_t(a)).at[(row * a_stride + column) / 4];
                weights[k] = floats4(uint64_t(norm_weight)).at[column / 4];
                if (NORM_BIAS != 0) biases[k] = floats4(uint64_t(norm_bias)).at[column / 4];
            }
        }
        const vec2 norm = norm_of_row(values, lane, epsilon);
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint column = (k * LANES + lane) * 4;
            vec4 value = normalized(values[k], norm.y, weights[k]);
            if (NORM_BIAS != 0) value = shifted(value, biases[k]);
            if (row < rows && column < WIDTH) stage_four(row, column, value);
        }
    }
    barrier();
}

void main() {
    const uint thread = thread_index(), team = thread / TEAM, member = thread % TEAM;
    const uint column0 = gl_WorkGroupID.x * TILE_N;
    const uint begin = min(depth, team * PART), end = min(depth, begin + PART);

    Added added[COLUMNS];  // to this thread's first results
    [[unroll]] for (uint j = 0; j < COLUMNS; j++) added[j] = Added(vec4(0.0), vec4(0.0));

    coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator> sums[ROWS][COLUMNS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++)
            sums[i][j] = coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>(0.0);
    for (uint loaded = 0; loaded < PART; loaded += LOADED) {
        B_READ right[PHASES][SLICES][B_EACH];
        [[unroll]] for (uint p = 0; p < PHASES; p++)
            [[unroll]] for (uint s = 0; s < SLICES; s++)
                [[unroll]] for (uint i = 0; i < B_EACH; i++) {
                    const uint unit = min(i * TEAM + member, B_UNITS - 1), k = begin + loaded + p * TILE_K + s * SLICE;
                    const uint line = unit / (B_LINE / 8), start = unit % (B_LINE / 8) * 8;
                    right[p][s][i] = B_ALONG_K != 0 ? right8(column0 + line, k + start, columns, end)
                                                    : right8(k + line, column0 + start, end, columns);
                }
        if (loaded == 0) {
            [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                if (thread < C_SIZE)
                    added[j] = added_to(thread / C_STRIDE, column0 + j * FRAGMENT_N + thread % C_STRIDE * 4);
            if (WHOLE_ROWS && SPREAD) stage_spread_norms();
            else if (WHOLE_ROWS) stage_norms();
            else if (SOURCE == NORM) find_norms();
        }
        [[unroll]] for (uint p = 0; p < PHASES; p++) {
            if (!WHOLE_ROWS) {
                uvec4 left[A_EACH];
                [[unroll]] for (uint i = 0; i < A_EACH; i++) {
                    const uint unit = i * TEAM + member, k = begin + loaded + p * TILE_K + unit % (TILE_K / 8) * 8;
                    if (unit < A_UNITS) left[i] = left8(unit / (TILE_K / 8), k, end);
                }
                [[unroll]] for (uint i = 0; i < A_EACH; i++) {
                    const uint unit = i * TEAM + member;
                    if (unit < A_UNITS)
                        staged[team * A_SIZE + unit / (TILE_K / 8) * A_STRIDE + unit % (TILE_K / 8)] = left[i];
                }
            }
            [[unroll]] for (uint s = 0; s < SLICES; s++) {
                [[unroll]] for (uint i = 0; i < B_EACH; i++) {
                    const uint unit = i * TEAM + member, place = unit / (B_LINE / 8) * B_STRIDE + unit % (B_LINE / 8);
                    if (unit < B_UNITS) staged[A_END + team * B_SIZE + place] = B_PACK(right[p][s][i]);
                }
                subgroupMemoryBarrierShared();
                subgroupBarrier();
                [[unroll]] for (uint k = 0; k < SLICE; k += FRAGMENT_K) {
                    coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA> a_part[ROWS];
                    [[unroll]] for (uint i = 0; i < ROWS; i++)
                        coopMatLoad(a_part[i], staged,
                                    team * A_SIZE + i * FRAGMENT_M * A_STRIDE + (s * SLICE + k) / 8, A_STRIDE,
                                    gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                        coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB> b_part;
                        const uint n = j * FRAGMENT_N, at = B_ALONG_K != 0 ? n * B_STRIDE + k / 8 : k * B_STRIDE + n / 8;
                        coopMatLoad(b_part, staged, A_END + team * B_SIZE + at, B_STRIDE, B_LAYOUT);
                        [[unroll]] for (uint i = 0; i < ROWS; i++)
                            sums[i][j] = coopMatMulAdd(a_part[i], b_part, sums[i][j]);
                    }
                }
                subgroupBarrier();
            }
        }
    }
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
            barrier();
            coopMatStore(sums[i][j], staged, team * C_SIZE, C_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            barrier();
            for (uint unit = thread; unit < C_SIZE; unit += THREADS) {
                const uint row = i * FRAGMENT_M + unit / C_STRIDE;
                const uint column = column0 + j * FRAGMENT_N + unit % C_STRIDE * 4;
                if (row >= rows || column >= columns) continue;
                vec4 total = vec4(0.0);
                [[unroll]] for (uint s = 0; s < TEAMS; s++) total += uintBitsToFloat(staged[s * C_SIZE + unit]);
                if (i > 0 || unit != thread) added[j] = added_to(row, column);
                store_sum(row, column, total, added[j]);
            }
        }
}
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
            const Added added = added_to(row, column);
            vec4 total = vec4(0.0);
            [[unroll]] for (uint s = 0; s < TEAMS; s++) total += totals[s * TEAM + member];
            store_sum(row, column, total, added);
        }
        barrier();
    }
}
#endif
