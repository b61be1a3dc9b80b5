// Matrix product on matrix units: cooperative matrices of a subgroup, 16-bit operands, float32 sums.
//
//   c[z, m, n] = activation(scale sum over k of a[z, m, k] b[z, k, n] + bias[n]) + residual[z, m, n]
//
// Operands, batches, splits and results are those of matmul_tiled. Operands stored as float32 are rounded to the
// variant's 16-bit type on their way to shared memory, the others are copied.
// numpy    c = activation(scale * (rounded(a) @ rounded(b)) + bias) + residual
//
// A workgroup of SUBGROUPS_M x SUBGROUPS_N subgroups computes tiles of TILE_M x TILE_N, one after the other where there
// are more of them than workgroups. A slice of TILE_K is fetched to registers while the one before is multiplied, the
// first of the next tile, too, and from there goes to shared memory, whose lines are padded by 16 bytes, so that eight of
// them begin in different banks. While a FRAGMENT_K of a slice is multiplied, the fragments of the next are read.
// PART_STEPS is as in matmul_tiled. B may be read for the first time since long, and would come from memory slice by slice,
// each waiting for the one before; so its first reader asks for all of it at once: ASK words, of as many sectors, each.
// With PIECES operands are two pieces of float32 numbers each, see pieces.glsl. Piece 1 lies a_outer and b_outer
// elements behind piece 0, and the exponents a_inner and b_inner elements behind the first of piece 0; there is one
// batch. Matrix units do not round what they add up but cut it off, so their sums begin at zero for every two
// FRAGMENT_K and are added up outside: by turns those of pieces 0, and those of pieces 0 by 1 and 1 by 0, which are
// LIFT times too large. Of the FRAGMENT_K of a slice, an even number, the first ends a sum of pieces 0, and the last
// begins one.
// Results pass through the shared memory of A, two fragments at a time, so that a thread stores 16 bytes: what matrix
// units store in memory themselves, compilers store element by element.
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "matmul.glsl"
#include "matmul_sums.glsl"

layout(local_size_x_id = 0) in;

#if PIECES
#include "pieces.glsl"
const uint PLANES = 2;  // of an operand
#define EACH_PLANE [[unroll]] for (uint p = 0; p < PLANES; p++)
#else
const uint PLANES = 1;
#define EACH_PLANE const uint p = 0;
#endif
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
const uint LANES = THREADS / (SUBGROUPS_M * SUBGROUPS_N);
const uint C_UNITS = (FRAGMENT_M * C_LINE / C_UNIT + LANES - 1) / LANES;  // that a thread stores of C_FRAGMENTS
const uint WORDS = 8 / A_UNIT;                                            // of a_shared in a group
const uint A_SLICE = A_LINES * A_STRIDE, B_SLICE = B_LINES * B_STRIDE;
const uint A_SIZE = PLANES * A_SLICE > C_GROUPS * WORDS ? PLANES * A_SLICE : C_GROUPS * WORDS;
const uint PARTS = TILE_K / FRAGMENT_K;
const int A_LAYOUT = A_ALONG_M != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;
const int B_LAYOUT = B_ALONG_K != 0 ? gl_CooperativeMatrixLayoutColumnMajor : gl_CooperativeMatrixLayoutRowMajor;

#define A_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define C_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>

shared A_WORD a_shared[A_SIZE];
shared B_WORD b_shared[PLANES * B_SLICE];

// In a relay the left operand was only now written. Vectors of it are read past caches then; there is no relay without.
#define FLOATS(BASE, INDEX) floats4(BASE).at[INDEX]
#define WORDS4(BASE, INDEX) words4(BASE).at[INDEX]
#define FRESH_FLOATS(BASE, INDEX) (RELAY != 0 ? fresh_f32x4_buffer(BASE).at[INDEX] : FLOATS(BASE, INDEX))
#define FRESH_WORDS(BASE, INDEX) (RELAY != 0 ? fresh_u32x4_buffer(BASE).at[INDEX] : WORDS4(BASE, INDEX))

// One unit of the line `line` from `start`, which is `skipped` lines further in the slice; zeros outside of `lines` x
// `length`, where that is checked.
#define DEFINE_FETCH_FLOATS(NAME, VECTOR, READ)                                                                        \
    vec4 NAME(uint64_t base, uint stride, uint line, uint start, uint skipped, uint lines, uint length) {              \
        if (skipped + line >= lines || start >= length) return vec4(0.0);                                              \
        uint index = line * stride + start;                                                                            \
        if (VECTOR != 0) return READ(base, index / 4);                                                                 \
        vec4 value = vec4(0.0);                                                                                        \
        [[unroll]] for (uint i = 0; i < 4; i++)                                                                        \
            if (start + i < length) value[i] = floats1(base).at[index + i];                                            \
        return value;                                                                                                  \
    }
#define DEFINE_FETCH_HALVES(NAME, VECTOR, READ)                                                                        \
    uvec4 NAME(uint64_t base, uint stride, uint line, uint start, uint skipped, uint lines, uint length) {             \
        if (skipped + line >= lines || start >= length) return uvec4(0);                                               \
        uint index = line * stride + start;                                                                            \
        if (VECTOR != 0) return READ(base, index / 8);                                                                 \
        uvec4 value = uvec4(0);                                                                                        \
        [[unroll]] for (uint i = 0; i < 8; i++)                                                                        \
            if (start + i < length) value[i / 2] |= uint(shorts1(base).at[index + i]) << 16 * (i % 2);                 \
        return value;                                                                                                  \
    }
#if A_BITS == 32
DEFINE_FETCH_FLOATS(fetch_a, A_VECTOR, FRESH_FLOATS)
#else
DEFINE_FETCH_HALVES(fetch_a, A_VECTOR, FRESH_WORDS)
#endif
#if B_BITS == 32
DEFINE_FETCH_FLOATS(fetch_b, B_VECTOR, FLOATS)
#else
DEFINE_FETCH_HALVES(fetch_b, B_VECTOR, WORDS4)
#endif

// What a thread fetches with number `i` is a unit of a line of the slice. Where lines divide the threads evenly, the
// place of the first says where the others are, and no thread computes that anew in each step.
#define DEFINE_PLACES(NAME, UNITS_OF_LINE)                                                                             \
    const uint NAME##_PASS = THREADS % (UNITS_OF_LINE) == 0 ? THREADS / (UNITS_OF_LINE) : 0;  /* lines */              \
    uint NAME##_line(uint i) {                                                                                         \
        if (NAME##_PASS != 0) return gl_LocalInvocationID.x / (UNITS_OF_LINE);                                         \
        return (i * THREADS + gl_LocalInvocationID.x) / (UNITS_OF_LINE);                                               \
    }                                                                                                                  \
    uint NAME##_start(uint i) {                                                                                        \
        return (NAME##_PASS != 0 ? gl_LocalInvocationID.x : i * THREADS + gl_LocalInvocationID.x) % (UNITS_OF_LINE);   \
    }
DEFINE_PLACES(a, A_LINE / A_UNIT)
DEFINE_PLACES(b, B_LINE / B_UNIT)

void main() {
    const uint A_BYTES = A_BITS / 8, B_BYTES = B_BITS / 8;
    uint tile_rows = (rows + TILE_M - 1) / TILE_M, tile_columns = (columns + TILE_N - 1) / TILE_N;
    uint tiles = tile_rows * tile_columns;
    uint split = gl_WorkGroupID.z % splits, batch = gl_WorkGroupID.z / splits;
    uint begin = split * split_depth, end = min(depth, begin + split_depth);
    uint steps = end > begin ? (end - begin + TILE_K - 1) / TILE_K : 0;
    uint64_t a_batch = uint64_t(a) + A_BYTES * (uint64_t(batch / inner) * a_outer + uint64_t(batch % inner) * a_inner +
                                                uint64_t(begin) * (A_ALONG_M != 0 ? a_stride : 1));
    uint64_t b_batch = uint64_t(b) + B_BYTES * (uint64_t(batch / inner) * b_outer + uint64_t(batch % inner) * b_inner +
                                                uint64_t(begin) * (B_ALONG_K != 0 ? 1 : b_stride));
    uint64_t a_step = A_BYTES * uint64_t(TILE_K) * (A_ALONG_M != 0 ? a_stride : 1);
    uint64_t b_step = B_BYTES * uint64_t(TILE_K) * (B_ALONG_K != 0 ? 1 : b_stride);
    uint64_t a_pass = A_BYTES * uint64_t(a_PASS) * a_stride, b_pass = B_BYTES * uint64_t(b_PASS) * b_stride;
    uint64_t plane = uint64_t(split) * (gl_NumWorkGroups.z / splits) + batch;
    uint subgroup_row = gl_SubgroupID / SUBGROUPS_N * ROWS, subgroup_column = gl_SubgroupID % SUBGROUPS_N * COLUMNS;
    uint lines = gl_SubgroupID * FRAGMENT_M * C_STRIDE;

    A_READ a_next[PLANES * A_UNITS];
    B_READ b_next[PLANES * B_UNITS];
    uint64_t a_at, b_at;  // of the slice that is fetched next, which is the step `ahead` of a tile from row0 and column0
    uint ahead, row0, column0;
    uvec2 tile;

#define BEGIN_TILE(INDEX)                                                                                              \
    {                                                                                                                  \
        tile = tile_of(INDEX, tile_rows, tile_columns);                                                                \
        row0 = tile.y * TILE_M;                                                                                        \
        column0 = tile.x * TILE_N;                                                                                     \
        a_at = a_batch + A_BYTES * uint64_t(row0) * (A_ALONG_M != 0 ? 1 : a_stride);                                   \
        b_at = b_batch + B_BYTES * uint64_t(column0) * (B_ALONG_K != 0 ? b_stride : 1);                                \
        ahead = 0;                                                                                                     \
    }
// What there is of the operands from the slice's corner on; without EDGES tiles are whole, and nothing is compared.
#define FETCH_A()                                                                                                      \
    {                                                                                                                  \
        uint rows_left = (EDGES & 1) != 0 ? rows - row0 : ~0u;                                                         \
        uint depth_left = (EDGES & 4) != 0 ? end - begin - ahead * TILE_K : ~0u;                                       \
        EACH_PLANE                                                                                                     \
            [[unroll]] for (uint i = 0; i < A_UNITS; i++)                                                              \
                a_next[p * A_UNITS + i] = fetch_a(a_at + p * A_BYTES * uint64_t(a_outer) + i * a_pass, a_stride, a_line(i),      \
                                                  a_start(i) * A_UNIT, i * a_PASS,                                     \
                                                  A_ALONG_M != 0 ? depth_left : rows_left,                             \
                                                  A_ALONG_M != 0 ? rows_left : depth_left);                            \
    }
#define FETCH_B()                                                                                                      \
    {                                                                                                                  \
        uint columns_left = (EDGES & 2) != 0 ? columns - column0 : ~0u;                                                \
        uint depth_left = (EDGES & 4) != 0 ? end - begin - ahead * TILE_K : ~0u;                                       \
        EACH_PLANE                                                                                                     \
            [[unroll]] for (uint i = 0; i < B_UNITS; i++)                                                              \
                b_next[p * B_UNITS + i] = fetch_b(b_at + p * B_BYTES * uint64_t(b_outer) + i * b_pass, b_stride, b_line(i),      \
                                                  b_start(i) * B_UNIT, i * b_PASS,                                     \
                                                  B_ALONG_K != 0 ? columns_left : depth_left,                          \
                                                  B_ALONG_K != 0 ? depth_left : columns_left);                         \
    }
#define FETCH()                                                                                                        \
    {                                                                                                                  \
        FETCH_A();                                                                                                     \
        FETCH_B();                                                                                                     \
    }

// Where the results of fragments `N` go, and what they need of memory, on its way.
#define PLACE(N)                                                                                                       \
    [[unroll]] for (uint e = 0; e < C_UNITS; e++) {                                                                    \
        uint unit = e * LANES + gl_SubgroupInvocationID, number = (N) * C_FRAGMENTS;                                   \
        uint row = first_row + number / COLUMNS * FRAGMENT_M + unit / (C_LINE / C_UNIT);                               \
        uint column = first_column + number % COLUMNS * FRAGMENT_N + unit % (C_LINE / C_UNIT) * C_UNIT;                \
        bool there = (FRAGMENT_M * C_LINE / C_UNIT % LANES == 0 || unit < FRAGMENT_M * C_LINE / C_UNIT) &&             \
                     ((EDGES & 1) == 0 || row < rows) && ((EDGES & 2) == 0 || column < columns);                       \
        uint64_t place = (plane * rows + row) * columns + column;                                                      \
        places[(N) % 2][e] = place;                                                                                    \
        at_columns[(N) % 2][e] = column;                                                                               \
        is_there[(N) % 2][e] = there;                                                                                  \
        if (C_VECTOR != 0 && there) {                                                                                  \
            firsts[(N) % 2][e] = beside(place, column);                                                                \
            if (C_UNIT == 8) seconds[(N) % 2][e] = beside(place + 4, column + 4);                                      \
        }                                                                                                              \
    }

// What was fetched, to shared memory.
#define PUT()                                                                                                          \
    {                                                                                                                  \
        EACH_PLANE {                                                                                                   \
            [[unroll]] for (uint i = 0; i < A_UNITS; i++)                                                              \
                a_shared[p * A_SLICE + (i * a_PASS + a_line(i)) * A_STRIDE + a_start(i)] =                             \
                    A_PACK(a_next[p * A_UNITS + i]);                                                                   \
            [[unroll]] for (uint i = 0; i < B_UNITS; i++) {                                                            \
                b_shared[p * B_SLICE + (i * b_PASS + b_line(i)) * B_STRIDE + b_start(i)] =                             \
                    B_PACK(b_next[p * B_UNITS + i]);                                                                   \
                if (HAS_SUMS != 0 && this_tile.y == 0) ADD_TO_SUMS(p, b_next[p * B_UNITS + i]);                        \
            }                                                                                                          \
        }                                                                                                              \
    }
#if B_BITS == 32
#define ADD_TO_SUMS(PLANE, UNIT) b_sum[0] += UNIT
#elif PIECES
#define ADD_TO_SUMS(PLANE, UNIT)                                                                                       \
    {                                                                                                                  \
        b_sum[0] += ((PLANE) == 0 ? 1.0 : 1.0 / LIFT) * unpack_halves4(UNIT.xy);                                       \
        b_sum[1] += ((PLANE) == 0 ? 1.0 : 1.0 / LIFT) * unpack_halves4(UNIT.zw);                                       \
    }
#else
#define ADD_TO_SUMS(PLANE, UNIT)                                                                                       \
    {                                                                                                                  \
        b_sum[0] += unpack_halves4(UNIT.xy);                                                                           \
        b_sum[1] += unpack_halves4(UNIT.zw);                                                                           \
    }
#endif
// What follows the slice in `a_next` and `b_next`, of this tile or the workgroup's next.
#define FETCH_NEXT()                                                                                                   \
    {                                                                                                                  \
        bool same = ahead + 1 < steps;                                                                                 \
        if (same) {                                                                                                    \
            a_at += a_step;                                                                                            \
            b_at += b_step;                                                                                            \
            ahead++;                                                                                                   \
        } else if (following < tiles) {                                                                                \
            BEGIN_TILE(following);                                                                                     \
        }                                                                                                              \
        if (same || following < tiles) FETCH();                                                                        \
    }
// The fragments of A and B for the FRAGMENT_K from K of the slice, of a plane.
#define LOAD(TO, PLANE, K)                                                                                             \
    {                                                                                                                  \
        [[unroll]] for (uint i = 0; i < ROWS; i++) {                                                                   \
            uint m = (subgroup_row + i) * FRAGMENT_M;                                                                  \
            uint at = A_ALONG_M != 0 ? (K) * A_STRIDE + m / A_UNIT : m * A_STRIDE + (K) / A_UNIT;                      \
            coopMatLoad(a_part[TO][i], a_shared, (PLANE) * A_SLICE + at, A_STRIDE, A_LAYOUT);                          \
        }                                                                                                              \
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {                                                                \
            uint n = (subgroup_column + j) * FRAGMENT_N;                                                               \
            uint at = B_ALONG_K != 0 ? n * B_STRIDE + (K) / B_UNIT : (K) * B_STRIDE + n / B_UNIT;                      \
            coopMatLoad(b_part[TO][j], b_shared, (PLANE) * B_SLICE + at, B_STRIDE, B_LAYOUT);                          \
        }                                                                                                              \
    }
#define MULTIPLY(OF_A, OF_B)                                                                                           \
    [[unroll]] for (uint j = 0; j < COLUMNS; j++)                                                                      \
        [[unroll]] for (uint i = 0; i < ROWS; i++)                                                                     \
            sums[i][j] = coopMatMulAdd(a_part[OF_A][i], b_part[OF_B][j], sums[i][j]);
#define ADD_TO_TOTALS(SUMS)                                                                                            \
    [[unroll]] for (uint i = 0; i < ROWS; i++)                                                                         \
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {                                                                \
            totals[i][j] += SUMS;                                                                                      \
            sums[i][j] = C_MATRIX(0.0);                                                                                \
        }

    uint asked[ASK == 0 ? 1 : ASK];
    [[unroll]] for (uint i = 0; i < ASK; i++) {
        const uint sector = (i * gl_NumWorkGroups.x + gl_WorkGroupID.x) * THREADS + gl_LocalInvocationIndex;
        const uint lines = B_ALONG_K != 0 ? columns : depth, length = B_ALONG_K != 0 ? depth : columns;
        const uint sectors = ((lines - 1) * b_stride + length) / (256 / B_BITS);
        asked[i] = u32_buffer(uint64_t(b)).at[8 * min(sector, sectors - 1)];
    }

    // Most workgroups have one tile. Without this loop NVIDIA's compiler (driver 580) makes the steps a fifth slower.
    uint index = gl_WorkGroupID.x;
    BEGIN_TILE(index);
    if (RELAY != 0) {
        FETCH_B();
        relay_wait();
        FETCH_A();
    } else if (steps != 0) {
        FETCH();
    }
    for (; index < tiles; index += gl_NumWorkGroups.x) {
        uint following = index + gl_NumWorkGroups.x;
        uvec2 this_tile = tile;
        C_MATRIX sums[ROWS][COLUMNS], totals[ROWS][COLUMNS];  // of a part, and of those before it
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = totals[i][j] = C_MATRIX(0.0);
        // THREADS is a multiple of the units of a line, so all that a thread fetches is one column.
        vec4 b_sum[B_UNIT / 4];
        [[unroll]] for (uint i = 0; i < B_UNIT / 4; i++) b_sum[i] = vec4(0.0);

        // Compilers copy all sums in each step where multiplying is conditional, so it is not.
        // Fragments of this FRAGMENT_K and of the next, with PIECES of piece 0 and of piece 1.
        A_MATRIX a_part[2][ROWS];
        B_MATRIX b_part[2][COLUMNS];
        if (steps != 0) {
            PUT();
            FETCH_NEXT();
        }
        barrier();
        uint all = 0;
        [[unroll]] for (uint i = 0; i < ASK; i++) all |= asked[i];
        if (ASK != 0 && all == 0x5bd1e995 && splits == 0) a_shared[0] = A_WORD(all);  // never, but no compiler knows
#if PIECES
        LOAD(0, 0, 0);
        LOAD(1, 1, 0);
        for (uint step = 0; step < steps; step++) {
            [[unroll]] for (uint part = 0; part < PARTS; part++) {
                if (part + 1 == PARTS) {
                    barrier();  // all have read the slice
                    if (step + 1 < steps) {
                        PUT();
                        FETCH_NEXT();
                    }
                }
                if (part % 2 == 0) {
                    MULTIPLY(0, 0);
                    ADD_TO_TOTALS(sums[i][j]);
                    MULTIPLY(1, 0);
                    MULTIPLY(0, 1);
                } else {
                    MULTIPLY(1, 0);
                    MULTIPLY(0, 1);
                    ADD_TO_TOTALS((1.0 / LIFT) * sums[i][j]);
                    MULTIPLY(0, 0);
                }
                if (part + 1 == PARTS) barrier();
                LOAD(0, 0, (part + 1) % PARTS * FRAGMENT_K);
                LOAD(1, 1, (part + 1) % PARTS * FRAGMENT_K);
            }
        }
        ADD_TO_TOTALS(sums[i][j]);
#else
        LOAD(0, 0, 0);
        for (uint step = 0; step < steps; step++) {
            [[unroll]] for (uint part = 0; part < PARTS; part++) {
                if (part + 1 < PARTS) {
                    LOAD((part + 1) % 2, 0, (part + 1) * FRAGMENT_K);
                } else {
                    barrier();  // all have read the slice
                    if (step + 1 < steps) {
                        PUT();
                        FETCH_NEXT();
                    }
                    barrier();
                    LOAD(PARTS % 2, 0, 0);
                }
                MULTIPLY(part % 2, part % 2);
            }
            if (PARTS % 2 != 0) {
                [[unroll]] for (uint i = 0; i < ROWS; i++) a_part[0][i] = a_part[1][i];
                [[unroll]] for (uint j = 0; j < COLUMNS; j++) b_part[0][j] = b_part[1][j];
            }
            if (PART_STEPS != 0 && ((step + 1) % PART_STEPS == 0 || step + 1 == steps)) ADD_TO_TOTALS(sums[i][j]);
        }
#endif

#if PIECES
#define SCALED(VALUES) (second_scale * (first_scale * (VALUES)))
#define SUM_SCALED(VALUES) (sum_scale * (VALUES))
        const int b_exponent = i32_buffer(uint64_t(b) + B_BYTES * uint64_t(b_inner)).at[0];
        const int exponent = i32_buffer(uint64_t(a) + A_BYTES * uint64_t(a_inner)).at[0] + b_exponent;
        const float first_scale = power_of_two(exponent / 2);
        const float second_scale = scale * power_of_two(exponent - exponent / 2);
        const float sum_scale = power_of_two(b_exponent);
#else
#define SCALED(VALUES) (scale * (VALUES))
#define SUM_SCALED(VALUES) (VALUES)
#endif
        barrier();  // a_shared may still be read
        uint first_row = this_tile.y * TILE_M + subgroup_row * FRAGMENT_M;
        uint first_column = this_tile.x * TILE_N + subgroup_column * FRAGMENT_N;
        // Of these fragments, and of those after, whose reads are on their way: where a thread's results go, and what
        // else they need of memory.
        uint64_t places[2][C_UNITS];
        uint at_columns[2][C_UNITS];
        bool is_there[2][C_UNITS];
        Beside firsts[2][C_UNITS], seconds[2][C_UNITS];
        PLACE(0);
        [[unroll]] for (uint n = 0; n < ROWS * COLUMNS / C_FRAGMENTS; n++) {
            if (n + 1 < ROWS * COLUMNS / C_FRAGMENTS) PLACE(n + 1);
            [[unroll]] for (uint j = 0; j < C_FRAGMENTS; j++) {
                uint i = n * C_FRAGMENTS / COLUMNS, at = n * C_FRAGMENTS % COLUMNS + j;
                if (PIECES != 0 || PART_STEPS != 0) sums[i][at] = totals[i][at];
                coopMatStore(sums[i][at], a_shared, (lines + j * (FRAGMENT_N / 4)) * WORDS, C_STRIDE * WORDS,
                             gl_CooperativeMatrixLayoutRowMajor);
            }
            subgroupMemoryBarrierShared();
            subgroupBarrier();
            [[unroll]] for (uint e = 0; e < C_UNITS; e++) {
                uint unit = e * LANES + gl_SubgroupInvocationID;
                uint group = lines + unit / (C_LINE / C_UNIT) * C_STRIDE + unit % (C_LINE / C_UNIT) * (C_UNIT / 4);
                if (!is_there[n % 2][e]) continue;
                if (C_UNIT == 8)
                    store_results(places[n % 2][e], at_columns[n % 2][e], SCALED(A_FLOATS(group)),
                                  SCALED(A_FLOATS(group + 1)), firsts[n % 2][e], seconds[n % 2][e]);
                else store_results(places[n % 2][e], at_columns[n % 2][e], SCALED(A_FLOATS(group)), firsts[n % 2][e]);
            }
            subgroupBarrier();
        }
        if (HAS_SUMS != 0 && this_tile.y == 0) {
            uint first = this_tile.x * TILE_N + gl_LocalInvocationID.x * B_UNIT;
            [[unroll]] for (uint i = 0; i < B_UNIT / 4; i++)
                store_column_sums(SUM_SCALED(b_sum[i]), TILE_N / B_UNIT, first + 4 * i, plane);
        }
        barrier();
        if (steps == 0 && following < tiles) BEGIN_TILE(following);
    }
    relay_end();
}
