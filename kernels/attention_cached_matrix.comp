// Causal attention of queries of any sequences to keys and values that stand in blocks, on matrix units: see
// attention_cached.glsl for operands and results, of which a part has PART positions. numpy: definitions.attention, row
// by row.
//
// ROWS rows of a head, and every so manieth part of their keys, to a workgroup: ROWS is FRAGMENT_M where most neighbours are of
// one sequence, as those of a prompt, and 1 where they are not. A row has the same bits either way, since rows of a
// product of matrices do not depend on each other, a largest score has no order, and sums of exponentials are exact (see
// UNIT). Parts of which a row sees nothing are not written. Grid: (1 to `splits`, QUERY_HEADS, N), or as attention_runs.glsl
// says.
//
// A subgroup has a SHARE of the part's positions by itself, with a largest score and sums of its own, so that the workgroup
// meets once, to put these together. All it reads is on its way before anything is done with it, 16 bytes an invocation, and
// comes to fragments by way of shared memory. A single row is each row of its fragments, which are read, and written, with no
// distance between rows. TOKENS is a multiple of TILE.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "halves.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
#include "attention_numbers.glsl"
#include "attention_fresh.glsl"
#include "attention_runs.glsl"
layout(local_size_x_id = 0) in;

#define A_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>
#define EACH(e, MATRIX) [[unroll]] for (uint e = 0; e < MATRIX.length(); ++e)
#define MEET                       \
    subgroupMemoryBarrierShared(); \
    subgroupBarrier();

const bool IS_ONE = ROWS == 1;
const uint TILE = 16, SHARE = PART / SUBGROUPS, TILES = SHARE / TILE;
const uint TOKEN_STRIDE = KEY_HEADS * WIDTH;
// Of the width LINE_OCTETS octets stand in shared memory at once. Lines begin in different banks.
const uint LINE_OCTETS = OCTETS < 8 ? OCTETS : 8, LINE = LINE_OCTETS + 1, SLICES = OCTETS / LINE_OCTETS;
const uint TILE_EACH = TILE * LINE_OCTETS / SUBGROUP_SIZE;  // octets of a tile's slice that an invocation reads
const uint QUERY_EACH = (ROWS * LINE_OCTETS + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE;
const uint SLICE_DEPTHS = LINE_OCTETS * 8 / FRAGMENT_K, SLICE_COLUMNS = LINE_OCTETS * 8 / FRAGMENT_N;
const uint SHARE_COLUMNS = SHARE / FRAGMENT_N, SHARE_DEPTHS = SHARE / FRAGMENT_K;
const bool IS_DIRECT = DIRECT == 1 && RELAY == 0;
const uint DIRECTS = DIRECT * SHARE_COLUMNS * SLICES * SLICE_DEPTHS + 1;
const uint SCORE_LINE = SHARE / 4 + 1, PROBABILITY_LINE = SHARE / 8 + 1;

// What a subgroup has of shared memory, in vectors: a slice of keys or values, and for one row beside it the query's slice,
// scores, probabilities and the result; for more, these are where the slice is, one after the other, and of the
// result RESULT_QUADS quads at a time.
const uint SLICE_VECTORS = SHARE * LINE, SCORE_VECTORS = FRAGMENT_M * (SCORE_LINE + PROBABILITY_LINE);
const uint REGION = !IS_ONE                       ? (SLICE_VECTORS > SCORE_VECTORS ? SLICE_VECTORS : SCORE_VECTORS)
                    : SLICE_VECTORS + LINE_OCTETS + SHARE / 4 + SHARE / 8 + QUADS;
const uint QUERY_PLACE = IS_ONE ? SLICE_VECTORS : 0;
const uint SCORE_PLACE = IS_ONE ? QUERY_PLACE + LINE_OCTETS : 0;
const uint PROBABILITY_PLACE = SCORE_PLACE + (IS_ONE ? SHARE / 4 : FRAGMENT_M * SCORE_LINE);
const uint RESULT_PLACE = IS_ONE ? PROBABILITY_PLACE + SHARE / 8 : 0;
const uint RESULT_QUADS = IS_ONE ? QUADS : FRAGMENT_M * (QUADS + 1) <= REGION ? QUADS : QUADS / 4;
const uint RESULT_COLUMNS = RESULT_QUADS * 4 / FRAGMENT_N;

// Invocations that share a row of scores.
const uint ROW_LANES = !IS_ONE ? SUBGROUP_SIZE / FRAGMENT_M : SUBGROUP_SIZE < SHARE / 4 ? SUBGROUP_SIZE : SHARE / 4;
const uint ROW_QUADS = SHARE / 4 / ROW_LANES;
// Probabilities are at most 1, and rounded; as whole numbers of this they are added up without an error.
const float UNIT = 1.0 / 16777216.0;

shared uvec4 memory[SUBGROUPS * REGION];
shared float maxima[ROWS * SUBGROUPS], sums[ROWS * SUBGROUPS];

uvec4 octet_of(uint64_t source, uint start, uint octet, bool fresh) {
    if (fresh) return fresh_u32x4(source, start / 8 + octet);
    return u32x4_buffer(source).at[start / 8 + octet];
}

bool is_number(float x) { return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u; }

#define READ_TILE(NUMBERS, source, t, FRESH)                                                                         \
    [[unroll]] for (uint h = 0; h < SLICES; ++h)                                                                     \
        [[unroll]] for (uint i = 0; i < TILE_EACH; ++i) {                                                            \
            const uint unit = i * SUBGROUP_SIZE + lane;                                                              \
            NUMBERS[h][t * TILE_EACH + i] = octet_of(uint64_t(source), starts[t] + unit / LINE_OCTETS * TOKEN_STRIDE, \
                                                     h * LINE_OCTETS + unit % LINE_OCTETS, FRESH);                   \
        }
#define PLACE(NUMBERS, h)                                                                           \
    [[unroll]] for (uint i = 0; i < TILES * TILE_EACH; ++i) {                                       \
        const uint unit = i * SUBGROUP_SIZE + lane;                                                 \
        memory[region + unit / LINE_OCTETS * LINE + unit % LINE_OCTETS] = NUMBERS[h][i];            \
    }
#define READ_QUERIES                                                                                                     \
    [[unroll]] for (uint h = 0; h < SLICES; ++h)                                                                         \
        [[unroll]] for (uint i = 0; i < QUERY_EACH; ++i) {                                                               \
            const uint unit = i * SUBGROUP_SIZE + lane, row = first_row + clamp(unit / LINE_OCTETS, start, end - 1);      \
            q[h][i] = octet_of(uint64_t(query), row * query_stride + head * WIDTH, h * LINE_OCTETS + unit % LINE_OCTETS, \
                               RELAY != 0);                                                                              \
        }
#define LOAD_QUERIES                                                                              \
    [[unroll]] for (uint d = 0; d < SLICE_DEPTHS; ++d)                                            \
        coopMatLoad(a[d], memory, region + QUERY_PLACE + d * FRAGMENT_K / 8, IS_ONE ? 0 : LINE, ROW_MAJOR);

// Attention of rows `start` to `end` of the tile that begins at `first_row`, which are of one sequence, with the table that
// begins at `table`, to the positions of a part; any of them sees at most `seen` positions of the sequence.
void attend(uint first_row, uint start, uint end, uint table, uint seen, uint part) {
    const uint lane = gl_SubgroupInvocationID, thread = gl_SubgroupID * SUBGROUP_SIZE + lane;
    const uint head = gl_WorkGroupID.y, first = part * PART, own = first + gl_SubgroupID * SHARE;
    const uint region = gl_SubgroupID * REGION;
    const bool is_busy = BUSY == 1 || own < seen;
    uvec4 k[SLICES][TILES * TILE_EACH], v[SLICES][TILES * TILE_EACH], q[SLICES][QUERY_EACH];
    uint starts[TILES];
    B_MATRIX direct[DIRECTS];
    if (is_busy) {
        [[unroll]] for (uint t = 0; t < TILES; ++t)
            starts[t] = place_of(table, min(own / TILE + t, (seen - 1) / TILE) * TILE, head);
        if (IS_DIRECT) {
            [[unroll]] for (uint n = 0; n < SHARE_COLUMNS; ++n)
                [[unroll]] for (uint d = 0; d < SLICES * SLICE_DEPTHS; ++d)
                    coopMatLoad(direct[n * SLICES * SLICE_DEPTHS + d], u32x4_buffer(uint64_t(keys)).at,
                                (starts[n * FRAGMENT_N / TILE] + n * FRAGMENT_N % TILE * TOKEN_STRIDE + d * FRAGMENT_K) / 8,
                                TOKEN_STRIDE / 8, COLUMN_MAJOR);
        } else {
            [[unroll]] for (uint t = 0; t < TILES; ++t) READ_TILE(k, keys, t, false)
        }
        if (RELAY == 0) READ_QUERIES
        [[unroll]] for (uint t = 0; t < TILES; ++t) READ_TILE(v, values, t, false)
    } else {  // it meets the others all the same, with probabilities of 0
        [[unroll]] for (uint h = 0; h < SLICES; ++h)
            [[unroll]] for (uint i = 0; i < TILES * TILE_EACH; ++i) k[h][i] = v[h][i] = uvec4(0);
    }
    if (RELAY == 0) {
        barrier();  // results of the part before may still be read
    } else {
        const uint written = wait_for_written(table, seen, head);
        if (is_busy) {
            READ_QUERIES
            [[unroll]] for (uint t = 0; t < TILES; ++t) {
                if (own + (t + 1) * TILE > written) {
                    READ_TILE(k, keys, t, true)
                    READ_TILE(v, values, t, true)
                }
            }
        }
    }

    SUM_MATRIX result[WIDTH / FRAGMENT_N];
    SUM_MATRIX scores[SHARE_COLUMNS];
    [[unroll]] for (uint n = 0; n < SHARE_COLUMNS; ++n) scores[n] = SUM_MATRIX(0.0);
    [[unroll]] for (uint h = 0; h < SLICES; ++h) {
        A_MATRIX a[SLICE_DEPTHS];
        [[unroll]] for (uint i = 0; i < QUERY_EACH; ++i) {
            const uint unit = i * SUBGROUP_SIZE + lane, place = unit / LINE_OCTETS * LINE + unit % LINE_OCTETS;
            if (unit < ROWS * LINE_OCTETS) memory[region + QUERY_PLACE + place] = q[h][i];
        }
        if (!IS_ONE) {
            MEET
            LOAD_QUERIES
            MEET
        }
        if (!IS_DIRECT) PLACE(k, h)
        MEET
        if (IS_ONE) LOAD_QUERIES
        [[unroll]] for (uint d = 0; d < SLICE_DEPTHS; ++d)
            [[unroll]] for (uint n = 0; n < SHARE_COLUMNS; ++n) {
                B_MATRIX b;
                if (!IS_DIRECT)
                    coopMatLoad(b, memory, region + n * FRAGMENT_N * LINE + d * FRAGMENT_K / 8, LINE, COLUMN_MAJOR);
                else b = direct[(n * SLICES + h) * SLICE_DEPTHS + d];
                scores[n] = coopMatMulAdd(a[d], b, scores[n]);
            }
        MEET
    }
    [[unroll]] for (uint n = 0; n < SHARE_COLUMNS; ++n)
        coopMatStore(scores[n], memory, region + SCORE_PLACE + n * FRAGMENT_N / 4, IS_ONE ? 0 : SCORE_LINE, ROW_MAJOR);
    if (IS_ONE) PLACE(v, 0)
    MEET

    // Each invocation has quads of a row, of which there are more than rows where there is one.
    const uint row = IS_ONE ? 0 : lane / ROW_LANES, member = lane % ROW_LANES;
    uint count = seen - min(seen, own);
    if (!IS_ONE) {
        count = row >= start && row < end ? count_of(row, first) : 0;
        count -= min(count, own - first);
    }
    vec4 score[ROW_QUADS];
    float maximum = LOWEST;
    [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
        const uint quad = member * ROW_QUADS + i;
        precise const vec4 product = uintBitsToFloat(memory[region + SCORE_PLACE + row * SCORE_LINE + quad]) * query_factor();
        [[unroll]] for (uint c = 0; c < 4; ++c) {
            score[i][c] = bounded_score(product[c], quad * 4 + c < count);
            maximum = max(maximum, score[i][c]);
        }
    }
    [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2) maximum = max(maximum, subgroupShuffleXor(maximum, apart));
    uint sum = 0;
    [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
        const uint quad = member * ROW_QUADS + i;
        const uint place = region + PROBABILITY_PLACE + row * PROBABILITY_LINE + quad / 2;
        const uvec2 probabilities = pack_halves4(exp2(score[i] - maximum));
        const uvec4 units = uvec4(unpack_halves4(probabilities) / UNIT);
        sum += units.x + units.y + units.z + units.w;
        if (quad % 2 == 0) memory[place].xy = probabilities;
        else memory[place].zw = probabilities;
    }
    MEET
    A_MATRIX p[SHARE_DEPTHS];
    [[unroll]] for (uint l = 0; l < SHARE_DEPTHS; ++l)
        coopMatLoad(p[l], memory, region + PROBABILITY_PLACE + l * FRAGMENT_K / 8, IS_ONE ? 0 : PROBABILITY_LINE, ROW_MAJOR);
    [[unroll]] for (uint h = 0; h < SLICES; ++h) {
        if (h != 0 || !IS_ONE) {
            MEET
            PLACE(v, h)
            MEET
        }
        bool is_spoiled = false;
        [[unroll]] for (uint n = 0; n < SLICE_COLUMNS; ++n) {
            SUM_MATRIX made = SUM_MATRIX(0.0);
            [[unroll]] for (uint l = 0; l < SHARE_DEPTHS; ++l) {
                B_MATRIX b;
                coopMatLoad(b, memory, region + l * FRAGMENT_K * LINE + n * FRAGMENT_N / 8, LINE, ROW_MAJOR);
                made = coopMatMulAdd(p[l], b, made);
            }
            EACH(e, made) is_spoiled = is_spoiled || !is_number(made[e]);
            result[h * SLICE_COLUMNS + n] = made;
        }
        if (subgroupBallot(is_spoiled) != uvec4(0)) {
            // A value that is no number spoils rows that see it, and no others, whose probability for it is 0.
            [[unroll]] for (uint n = 0; n < SLICE_COLUMNS; ++n) {
                SUM_MATRIX made = SUM_MATRIX(0.0), spoiled = SUM_MATRIX(0.0);
                [[unroll]] for (uint l = 0; l < SHARE_DEPTHS; ++l) {
                    B_MATRIX numbers, others = B_MATRIX(0.0);
                    coopMatLoad(numbers, memory, region + l * FRAGMENT_K * LINE + n * FRAGMENT_N / 8, LINE, ROW_MAJOR);
                    EACH(e, numbers) {
                        if (is_number(float(numbers[e]))) continue;
                        numbers[e] = NUMBER(0.0);
                        others[e] = NUMBER(1.0);
                    }
                    made = coopMatMulAdd(p[l], numbers, made);
                    spoiled = coopMatMulAdd(p[l], others, spoiled);
                }
                EACH(e, spoiled) if (spoiled[e] != 0.0) made[e] = uintBitsToFloat(0x7fc00000u);
                result[h * SLICE_COLUMNS + n] = made;
            }
        }
    }
    [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2) sum += subgroupShuffleXor(sum, apart);
    if (member == 0) {
        maxima[row * SUBGROUPS + gl_SubgroupID] = maximum;
        sums[row * SUBGROUPS + gl_SubgroupID] = float(sum) * UNIT;
    }
    MEET

    [[unroll]] for (uint slice = 0; slice < QUADS / RESULT_QUADS; ++slice) {
        if (slice != 0) barrier();
        [[unroll]] for (uint n = 0; n < RESULT_COLUMNS; ++n)
            coopMatStore(result[slice * RESULT_COLUMNS + n], memory, region + RESULT_PLACE + n * FRAGMENT_N / 4,
                         IS_ONE ? 0 : RESULT_QUADS + 1, ROW_MAJOR);
        barrier();
        for (uint unit = thread; unit < ROWS * RESULT_QUADS; unit += THREADS) {
            const uint row = unit / RESULT_QUADS, quad = unit % RESULT_QUADS;
            uint count = min(PART, seen - first);
            if (!IS_ONE) count = row >= start && row < end ? count_of(row, first) : 0;
            if (count == 0) continue;
            float maximum = LOWEST, sum = 0.0;
            vec4 numbers = vec4(0.0);
            [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s)
                if (s * SHARE < count) maximum = max(maximum, maxima[row * SUBGROUPS + s]);
            [[unroll]] for (uint s = 0; s < SUBGROUPS; ++s) {
                if (s * SHARE >= count) continue;
                const float factor = exp2(maxima[row * SUBGROUPS + s] - maximum);
                const uint place = s * REGION + RESULT_PLACE + row * (RESULT_QUADS + 1) + quad;
                sum = fma(factor, sums[row * SUBGROUPS + s], sum);
                numbers = fma(vec4(factor), uintBitsToFloat(memory[place]), numbers);
            }
            const uint place = ((first_row + row) * QUERY_HEADS + head) * (SPLIT == 1 ? splits : 1) + part;
            const uint number = slice * RESULT_QUADS + quad;
            if (SPLIT == 0) {
                write_result(place * WIDTH, number, numbers / sum);
                continue;
            }
            write_quad(partial, place * WIDTH, number, numbers);
            if (number != 0) continue;
            statistics.at[place * 2] = maximum;
            statistics.at[place * 2 + 1] = sum;
        }
    }
}

void main() {
    if (IS_ONE) {
        const uint row = gl_WorkGroupID.z, table = uint(sequences.at[row]) * pages, seen = uint(positions.at[row]) + 1;
        if (gl_WorkGroupID.x * PART >= seen) {
            relay_skip();
            return;
        }
        for (uint part = gl_WorkGroupID.x; part * PART < seen; part += gl_NumWorkGroups.x) attend(row, 0, 1, table, seen, part);
        relay_end();
        return;
    }
    const Rows tile = find_rows();
    for (uint part = gl_WorkGroupID.x; part * PART < tile.most_seen; part += gl_NumWorkGroups.x) {
        for (uint start = 0, end; start < tile.count; start = end) {
            end = end_of_run(tile, start);
            const uint longest = longest_of(tile, start, end, part * PART);
            if (longest != 0) attend(tile.first, start, end, row_sequences[start] * pages, part * PART + longest, part);
        }
    }
}
