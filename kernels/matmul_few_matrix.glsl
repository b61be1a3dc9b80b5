// The product of few rows on matrix units; see matmul_few.comp, which includes this. A team is a subgroup.

#if BFLOAT
#define HALF bfloat16_t
#else
#define HALF float16_t
#endif
const uint ROWS = (TILE_ROWS + FRAGMENT_M - 1) / FRAGMENT_M, COLUMNS = TILE_N / FRAGMENT_N;
const uint PHASES = LOADED / TILE_K, SLICES = TILE_K / SLICE;
const uint A_PARTS = ALONE == 1 ? PARTS : TEAMS;  // of the sum, in the workgroup
// Units of eight neighbours. What stands where there are no rows is multiplied, too, and forgotten.
const uint A_STRIDE = TILE_K / 8 + 1, A_SIZE = TILE_ROWS * A_STRIDE, A_END = A_PARTS * A_SIZE;
const uint B_LINE = B_ALONG_K != 0 ? SLICE : TILE_N, B_LINES = B_ALONG_K != 0 ? TILE_N : SLICE;
const uint C_STRIDE = FRAGMENT_N / 4, C_SIZE = FRAGMENT_M * C_STRIDE;  // units of four floats
const uint B_STRIDE = B_LINE / 8 + 1, B_OWN = B_LINES * B_STRIDE;
const uint B_SIZE = ALONE + BLOCKS > 0 && B_OWN < C_SIZE ? C_SIZE : B_OWN;  // there results pass where b did
const uint A_READ = ROWS * FRAGMENT_M * A_STRIDE, B_ALL = TEAMS * B_SIZE;
const uint OPERANDS = A_END + (B_ALL > A_READ ? B_ALL : A_READ), RESULTS = TEAMS * C_SIZE;
// How norms come to the teams: found by all, which then read what they need; or staged as a whole, by the lanes that
// find each, or, of so few rows that there is room for them beside, spread over all threads, if these are whole LANES.
// (Compilers refuse constants of specialization that are joined by && or ||.)
const uint FOUND = 1, STAGED = 2, SPREAD = 3;
const uint NORMS = SOURCE != NORM ? 0 : VECTOR != 4 || TILE_K != PART || B_EDGES >= 2 ? FOUND
                   : TILE_ROWS * (WIDTH / 4) + THREADS % LANES * B_ALL <= B_ALL ? SPREAD : STAGED;
const uint SHARES = (WIDTH / 4 + THREADS - 1) / THREADS;  // of the norm of a row that a thread has
const bool AWAITS = RELAY == 3 && NORMS == SPREAD && TILE_ROWS == 1;  // numbers, not the counter
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
        return fresh_u32x4(uint64_t(a) + 2 * (row * a_stride + place), 0);
    }
#endif
    if (SOURCE == ATTENTION && HEAD % 8 == 0) {
        if (row >= rows || place >= end) return uvec4(0);
        const mat2x4 values = combined(row, place, 8);
        return uvec4(pack_halves4(values[0]), pack_halves4(values[1]));
    }
    return uvec4(pack_halves4(left4(row, place, end)), pack_halves4(left4(row, place + 4, end)));
}

// The norm of a few rows: every thread has a few numbers of each, and finds the norm of all from what is shared.
uint staged_unit(uint row, uint column) { return column / PART * A_SIZE + row * A_STRIDE + column % PART / 8; }

void stage_four(uint row, uint column, vec4 value) {
    if (column % 8 == 0) staged[staged_unit(row, column)].xy = pack_halves4(value);
    else staged[staged_unit(row, column)].zw = pack_halves4(value);
}

// Of the one row, a quad as soon as it is written.
vec4 awaited_quad(uint quad) {
    vec4 value;
    uint attempts = 0;
    do value = awaited_f32x4_buffer(uint64_t(a)).at[quad];
    while (is_unwritten(value) && ++attempts < RELAY_ATTEMPTS);
    if (attempts == RELAY_ATTEMPTS) relay_tell();
    return value;
}

void stage_spread_norms() {
    const uint thread = thread_index(), lane = thread % LANES, line = WIDTH / 4;
    vec4 own[TILE_ROWS][SHARES], weights[SHARES], biases[SHARES];
    [[unroll]] for (uint i = 0; i < SHARES; ++i) {
        const uint quad = i * THREADS + thread;
        weights[i] = biases[i] = vec4(0.0);
        if (quad >= line) continue;
        weights[i] = floats4(uint64_t(norm_weight)).at[quad];
        if (NORM_BIAS != 0) biases[i] = floats4(uint64_t(norm_bias)).at[quad];
    }
    if (AWAITS) barrier();  // all have taken their weights from where the row will stand
    else relay_wait();
    [[unroll]] for (uint i = 0; i < SHARES; ++i) {
        const uint quad = i * THREADS + thread;
        [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row) own[row][i] = vec4(0.0);
        if (quad >= line) continue;
        [[unroll]] for (uint row = 0; row < TILE_ROWS; ++row)
            if (row < rows) own[row][i] = AWAITS ? awaited_quad(quad) : fresh_f32x4(uint64_t(a), row * a_stride / 4 + quad);
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
        const vec2 norm = norm_of_row(values, lane, EPSILON);
        [[unroll]] for (uint i = 0; i < SHARES; ++i) {
            const uint quad = i * THREADS + thread;
            vec4 value = normalized(own[row][i] - norm.x, norm.y, weights[i]);
            if (NORM_BIAS != 0) value = shifted(value, biases[i]);
            if (quad < line) stage_four(row, quad * 4, value);
        }
    }
    barrier();
}

// The norms of all rows, by the lanes that have found them, to where teams read them. All rows are on their way at once.
void stage_norms() {
    const uint thread = thread_index(), lane = thread % LANES, step = THREADS / LANES;
    const uint EACH = (TILE_ROWS + step - 1) / step;
    const bool works = thread / LANES < step;
    vec4 values[EACH][NORM_VECTORS], weights[NORM_VECTORS], biases[NORM_VECTORS];
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
        const uint column = (k * LANES + lane) * 4;
        weights[k] = biases[k] = vec4(0.0);
        if (column < WIDTH) {
            weights[k] = floats4(uint64_t(norm_weight)).at[column / 4];
            if (NORM_BIAS != 0) biases[k] = floats4(uint64_t(norm_bias)).at[column / 4];
        }
    }
    relay_wait();
    [[unroll]] for (uint i = 0; i < EACH; ++i)
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint own = i * step + thread / LANES, column = (k * LANES + lane) * 4;
            values[i][k] = vec4(0.0);
            if (works && own < rows && column < WIDTH)
                values[i][k] = fresh_f32x4(uint64_t(a), (own * a_stride + column) / 4);
        }
    [[unroll]] for (uint i = 0; i < EACH; ++i) {
        const uint own = i * step + thread / LANES;
        const vec2 norm = norm_of_row(values[i], lane, EPSILON);
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; ++k) {
            const uint column = (k * LANES + lane) * 4;
            vec4 value = normalized(values[i][k], norm.y, weights[k]);
            if (NORM_BIAS != 0) value = shifted(value, biases[k]);
            if (works && own < rows && column < WIDTH) stage_four(own, column, value);
        }
    }
    barrier();
}

// Waits for the round before, and has the norms.
void take_norms() {
    find_parts();
    if (SOURCE == ATTENTION && RELAY == 0) barrier();
    if (NORMS == SPREAD) stage_spread_norms();
    else if (NORMS == STAGED) stage_norms();
    else relay_wait();
    if (NORMS == FOUND) find_norms();
}

#define SUM coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>
#define LEFT coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define RIGHT coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>

void read_slice(uint column0, uint k, uint end, uint member, out B_READ right[B_EACH]) {
    [[unroll]] for (uint i = 0; i < B_EACH; i++) {
        const uint unit = min(i * TEAM + member, B_UNITS - 1);
        const uint line = unit / (B_LINE / 8), start = unit % (B_LINE / 8) * 8;
        right[i] = B_ALONG_K != 0 ? right8(column0 + line, k + start, columns, end)
                                  : right8(k + line, column0 + start, end, columns);
    }
}

void stage_slice(uint team, uint member, B_READ right[B_EACH]) {
    [[unroll]] for (uint i = 0; i < B_EACH; i++) {
        const uint unit = i * TEAM + member, place = unit / (B_LINE / 8) * B_STRIDE + unit % (B_LINE / 8);
        if (unit < B_UNITS) staged[A_END + team * B_SIZE + place] = B_PACK(right[i]);
    }
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

uint right_place(uint team, uint k, uint j) {
    const uint n = j * FRAGMENT_N;
    return A_END + team * B_SIZE + (B_ALONG_K != 0 ? n * B_STRIDE + k / 8 : k * B_STRIDE + n / 8);
}

// With ALONE.
void alone() {
    const uint thread = thread_index(), team = thread / TEAM, member = thread % TEAM;
    const uint column0 = (gl_WorkGroupID.x * TEAMS + team) * TILE_N;
    B_READ right[PHASES][SLICES][B_EACH];
    [[unroll]] for (uint p = 0; p < PHASES; p++)
        [[unroll]] for (uint s = 0; s < SLICES; s++)
            if (p < PARTS) read_slice(column0, p * PART + s * SLICE, depth, member, right[p][s]);
    take_norms();
    if (NORMS < STAGED) {
        for (uint unit = thread; unit < TILE_ROWS * PARTS * (PART / 8); unit += THREADS) {
            const uint row = unit / (PARTS * (PART / 8)), k = unit % (PARTS * (PART / 8)) * 8;
            staged[staged_unit(row, k)] = left8(row, k, depth);
        }
        barrier();
    }
    SUM totals[COLUMNS];
    [[unroll]] for (uint j = 0; j < COLUMNS; j++) totals[j] = SUM(0.0);
    for (uint part0 = 0; part0 < PARTS; part0 += PHASES)
        [[unroll]] for (uint p = 0; p < PHASES; p++) {
            const uint part = part0 + p;
            if (part < PARTS) {
                SUM sums[COLUMNS];
                [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[j] = SUM(0.0);
                [[unroll]] for (uint s = 0; s < SLICES; s++) {
                    stage_slice(team, member, right[p][s]);
                    if (part + PHASES < PARTS)
                        read_slice(column0, (part + PHASES) * PART + s * SLICE, depth, member, right[p][s]);
                    [[unroll]] for (uint k = 0; k < SLICE; k += FRAGMENT_K) {
                        LEFT a_part;
                        coopMatLoad(a_part, staged, part * A_SIZE + (s * SLICE + k) / 8, A_STRIDE,
                                    gl_CooperativeMatrixLayoutRowMajor);
                        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                            RIGHT b_part;
                            coopMatLoad(b_part, staged, right_place(team, k, j), B_STRIDE, B_LAYOUT);
                            sums[j] = coopMatMulAdd(a_part, b_part, sums[j]);
                        }
                    }
                    subgroupBarrier();
                }
                [[unroll]] for (uint j = 0; j < COLUMNS; j++) totals[j] += sums[j];
            }
        }
    [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
        coopMatStore(totals[j], staged, A_END + team * B_SIZE, C_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        for (uint unit = member; unit < C_SIZE; unit += TEAM) {
            const uint row = unit / C_STRIDE, column = column0 + j * FRAGMENT_N + unit % C_STRIDE * 4;
            if (row < rows && column < columns)
                store_sum(row, column, uintBitsToFloat(staged[A_END + team * B_SIZE + unit]), added_to(row, column));
        }
        subgroupBarrier();
    }
    relay_end();
}

void read_rows(uint row0, uint k0, uint end, uint member, out uvec4 left[A_EACH]) {
    [[unroll]] for (uint i = 0; i < A_EACH; i++) {
        const uint unit = i * TEAM + member;
        left[i] = unit < A_UNITS ? left8(row0 + unit / (TILE_K / 8), k0 + unit % (TILE_K / 8) * 8, end) : uvec4(0);
    }
}

// With BLOCKS, where TILE_K is PART: b stays in registers for all blocks of rows. Results pass where b did, so other teams
// multiply rows of the next block while those of this one are added up.
void blocks() {
    const uint thread = thread_index(), team = thread / TEAM, member = thread % TEAM;
    const uint column0 = gl_WorkGroupID.x * TILE_N;
    const uint begin = min(depth, team * PART), end = min(depth, begin + PART);
    B_READ right[SLICES][B_EACH];
    [[unroll]] for (uint s = 0; s < SLICES; s++) read_slice(column0, begin + s * SLICE, end, member, right[s]);
    RIGHT b_parts[SLICES][SLICE / FRAGMENT_K][COLUMNS];
    [[unroll]] for (uint s = 0; s < SLICES; s++) {
        stage_slice(team, member, right[s]);
        [[unroll]] for (uint k = 0; k < SLICE; k += FRAGMENT_K)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                coopMatLoad(b_parts[s][k / FRAGMENT_K][j], staged, right_place(team, k, j), B_STRIDE, B_LAYOUT);
        subgroupBarrier();
    }
    relay_wait();
    const uint step = gl_NumWorkGroups.z * TILE_ROWS;
    uvec4 left[A_EACH];
    read_rows(gl_WorkGroupID.z * TILE_ROWS, begin, end, member, left);
    for (uint row0 = gl_WorkGroupID.z * TILE_ROWS; row0 < rows; row0 += step) {
        Beside added[COLUMNS];  // to this thread's first results
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) added[j] = NOTHING;
        [[unroll]] for (uint j = 0; j < COLUMNS; j++)
            if (thread < C_SIZE)
                added[j] = added_to(row0 + thread / C_STRIDE, column0 + j * FRAGMENT_N + thread % C_STRIDE * 4);
        [[unroll]] for (uint i = 0; i < A_EACH; i++) {
            const uint unit = i * TEAM + member;
            if (unit < A_UNITS) staged[team * A_SIZE + unit / (TILE_K / 8) * A_STRIDE + unit % (TILE_K / 8)] = left[i];
        }
        subgroupMemoryBarrierShared();
        subgroupBarrier();
        if (row0 + step < rows) read_rows(row0 + step, begin, end, member, left);
        SUM sums[ROWS][COLUMNS];
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = SUM(0.0);
        [[unroll]] for (uint k = 0; k < TILE_K; k += FRAGMENT_K)
            [[unroll]] for (uint i = 0; i < ROWS; i++) {
                LEFT a_part;
                coopMatLoad(a_part, staged, team * A_SIZE + i * FRAGMENT_M * A_STRIDE + k / 8, A_STRIDE,
                            gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                    sums[i][j] = coopMatMulAdd(a_part, b_parts[k / SLICE][k % SLICE / FRAGMENT_K][j], sums[i][j]);
            }
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                barrier();  // what was added up before has been read
                coopMatStore(sums[i][j], staged, A_END + team * C_SIZE, C_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                barrier();
                for (uint unit = thread; unit < C_SIZE; unit += THREADS) {
                    const uint row = row0 + i * FRAGMENT_M + unit / C_STRIDE;
                    const uint column = column0 + j * FRAGMENT_N + unit % C_STRIDE * 4;
                    if (row >= rows || column >= columns) continue;
                    vec4 total = vec4(0.0);
                    [[unroll]] for (uint s = 0; s < TEAMS; s++)
                        total += uintBitsToFloat(staged[A_END + s * C_SIZE + unit]);
                    if (i > 0 || unit != thread) added[j] = added_to(row, column);
                    store_sum(row, column, total, added[j]);
                }
            }
    }
    relay_end();
}

void main() {
    if (ALONE == 1) {
        alone();
        return;
    }
    if (BLOCKS == 1) {
        blocks();
        return;
    }
    const uint thread = thread_index(), team = thread / TEAM, member = thread % TEAM;
    const uint column0 = gl_WorkGroupID.x * TILE_N;
    const uint begin = min(depth, team * PART), end = min(depth, begin + PART);

    Beside added[COLUMNS];  // to this thread's first results
    [[unroll]] for (uint j = 0; j < COLUMNS; j++) added[j] = NOTHING;

    SUM sums[ROWS][COLUMNS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = SUM(0.0);
    for (uint loaded = 0; loaded < PART; loaded += LOADED) {
        B_READ right[PHASES][SLICES][B_EACH];
        RIGHT b_parts[PHASES][SLICES][SLICE / FRAGMENT_K][COLUMNS];
#define RIGHT_PART(p, s, k, j) \
    coopMatLoad(b_parts[p][s][k / FRAGMENT_K][j], staged, right_place(team, k, j), B_STRIDE, B_LAYOUT)
        [[unroll]] for (uint p = 0; p < PHASES; p++)
            [[unroll]] for (uint s = 0; s < SLICES; s++)
                read_slice(column0, begin + loaded + p * TILE_K + s * SLICE, end, member, right[p][s]);
        if (loaded == 0) {
            [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                if (thread < C_SIZE)
                    added[j] = early_beside(thread / C_STRIDE, column0 + j * FRAGMENT_N + thread % C_STRIDE * 4);
            if (RELAY != 0)  // what is left to do after the wait should be little
                [[unroll]] for (uint p = 0; p < PHASES; p++)
                    [[unroll]] for (uint s = 0; s < SLICES; s++) {
                        stage_slice(team, member, right[p][s]);
                        [[unroll]] for (uint k = 0; k < SLICE; k += FRAGMENT_K)
                            [[unroll]] for (uint j = 0; j < COLUMNS; j++) RIGHT_PART(p, s, k, j);
                        subgroupBarrier();
                    }
            take_norms();
            [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                if (thread < C_SIZE)
                    added[j].residual = residual_beside(thread / C_STRIDE, column0 + j * FRAGMENT_N + thread % C_STRIDE * 4);
        }
        [[unroll]] for (uint p = 0; p < PHASES; p++) {
            if (NORMS < STAGED) {
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
                if (RELAY != 0) {
                    subgroupMemoryBarrierShared();
                    subgroupBarrier();
                }
            }
            [[unroll]] for (uint s = 0; s < SLICES; s++) {
                const bool now = RELAY == 0 || loaded > 0;
                if (now) stage_slice(team, member, right[p][s]);
                [[unroll]] for (uint k = 0; k < SLICE; k += FRAGMENT_K) {
                    LEFT a_part[ROWS];
                    [[unroll]] for (uint i = 0; i < ROWS; i++)
                        coopMatLoad(a_part[i], staged,
                                    team * A_SIZE + i * FRAGMENT_M * A_STRIDE + (s * SLICE + k) / 8, A_STRIDE,
                                    gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint j = 0; j < COLUMNS; j++) {
                        if (now) RIGHT_PART(p, s, k, j);
                        [[unroll]] for (uint i = 0; i < ROWS; i++)
                            sums[i][j] = coopMatMulAdd(a_part[i], b_parts[p][s][k / FRAGMENT_K][j], sums[i][j]);
                    }
                }
                if (now) subgroupBarrier();
            }
            if (RELAY != 0) subgroupBarrier();
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
    relay_end();
}
