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
// A subgroup has COLUMNS columns of the values of a part, and for the scores as much of its keys, PART / SUBGROUPS. All
// of that is on its way before anything is done with it, 16 bytes an invocation, and comes to fragments by way of shared
// memory, keys in tiles of TILE positions, values in pieces. Then scores are there, probabilities in their place, and
// last results. TOKENS is a multiple of TILE.

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
#define MEET              \
    subgroupMemoryBarrierShared(); \
    subgroupBarrier();

const uint TILE = 16, COLUMNS = 16;  // WIDTH / COLUMNS subgroups
const uint TILES = PART / SUBGROUPS / TILE;
const uint TOKEN_STRIDE = KEY_HEADS * WIDTH;
// A line of keys or queries in shared memory has LINE_OCTETS octets of the width. Lines begin in different banks.
const uint LINE_OCTETS = OCTETS < 8 ? OCTETS : 8, LINE = LINE_OCTETS + 1, LINES = OCTETS / LINE_OCTETS;
const uint VALUE_OCTETS = COLUMNS / 8, RESULT_LINE = COLUMNS / 4 + 1;
const uint PIECE = WIDTH < 64 ? WIDTH : 64, PIECES = PART / PIECE;  // of values in shared memory at once
const uint SCORE_LINE = PART / 4 + 1;
const uint KEY_EACH = TILE * LINE_OCTETS / SUBGROUP_SIZE;  // octets of a tile that an invocation reads
const uint VALUE_EACH = PIECE * VALUE_OCTETS / SUBGROUP_SIZE;
const uint BLOCKS = ROWS == 1 ? 1 : ROWS / FRAGMENT_M, BLOCK_ROWS = ROWS / BLOCKS;  // one after the other
const uint QUERY_EACH = (BLOCK_ROWS * LINE_OCTETS + SUBGROUP_SIZE - 1) / SUBGROUP_SIZE;
// In fragments before the round before has ended, so that little is left to do afterwards.
const bool IS_EARLY = EARLY == 2 || BLOCKS > 1 || (EARLY == 1 && RELAY != 0);
const bool IS_LATE = BLOCKS == 1 && (EARLY == 0 || (EARLY == 1 && RELAY == 0));
const uint REGION = TILE * LINE;  // of a subgroup
const uint REGIONS = SUBGROUPS * REGION, SCORES = FRAGMENT_M * SCORE_LINE;
// Invocations that share a row of scores.
const uint ROW_LANES = ROWS > 1 ? THREADS / FRAGMENT_M : SUBGROUP_SIZE < PART / 4 ? SUBGROUP_SIZE : PART / 4;
const uint ROW_QUADS = PART / 4 / ROW_LANES;
// Probabilities are at most 1, and rounded; as whole numbers of this they are added up without an error.
const float UNIT = 1.0 / 16777216.0;

shared uvec4 memory[REGIONS > SCORES ? REGIONS : SCORES];
shared float row_sums[BLOCK_ROWS];

uvec4 octet_of(uint64_t source, uint start, uint octet, bool fresh) {
    if (fresh) return fresh_u32x4(source, start / 8 + octet);
    return u32x4_buffer(source).at[start / 8 + octet];
}

bool is_number(float x) { return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u; }

// Tile or piece I is read, as FRESH ones if so, and put into fragments, if it reaches beyond position FROM.
#define KEYS_FROM(FROM, t) (first + PART - (TILES - 1 - (t)) * TILE > (FROM))
#define VALUES_FROM(FROM, p) (first + ((p) + 1) * PIECE > (FROM) && first + (p) * PIECE < seen)

#define READ_KEYS(t, FRESH) {                                                                                            \
        const uint tile = first / TILE + gl_SubgroupID * TILES + (t);                                                    \
        const uint start = place_of(table, min(tile, last_tile) * TILE, head);                                           \
        [[unroll]] for (uint h = 0; h < LINES; ++h)                                                                      \
            [[unroll]] for (uint i = 0; i < KEY_EACH; ++i) {                                                             \
                const uint unit = i * SUBGROUP_SIZE + lane, token = unit / LINE_OCTETS;                                  \
                k[t][h][i] = (LEFT_OUT & 2) != 0 ? uvec4(token) : octet_of(uint64_t(keys), start + token * TOKEN_STRIDE, h * LINE_OCTETS + unit % LINE_OCTETS, FRESH); \
            }                                                                                                            \
    }
#define PLACE_KEYS(t)                                                                                                    \
    [[unroll]] for (uint h = 0; h < LINES; ++h) {                                                                        \
        [[unroll]] for (uint i = 0; i < KEY_EACH; ++i) {                                                                 \
            const uint unit = i * SUBGROUP_SIZE + lane;                                                                  \
            memory[region + unit / LINE_OCTETS * LINE + unit % LINE_OCTETS] = k[t][h][i];                                \
        }                                                                                                                \
        MEET                                                                                                             \
        [[unroll]] for (uint n = 0; n < TILE / FRAGMENT_N; ++n)                                                          \
            [[unroll]] for (uint d = 0; d < LINE_OCTETS * 8 / FRAGMENT_K; ++d)                                           \
                coopMatLoad(key_parts[t][n][h * (LINE_OCTETS * 8 / FRAGMENT_K) + d], memory,                             \
                            region + n * FRAGMENT_N * LINE + d * FRAGMENT_K / 8, LINE, COLUMN_MAJOR);                    \
        MEET                                                                                                             \
    }
#define READ_VALUES(p, FRESH)                                                                                            \
    [[unroll]] for (uint i = 0; i < VALUE_EACH; ++i) {                                                                   \
        const uint unit = i * SUBGROUP_SIZE + lane, token = (p) * PIECE + unit / VALUE_OCTETS;                           \
        const uint start = place_of(table, min(first / TILE + token / TILE, last_tile) * TILE, head);                    \
        v[p][i] = (LEFT_OUT & 1) != 0 ? uvec4(token) : octet_of(uint64_t(values), start + token % TILE * TOKEN_STRIDE,                                        \
                           gl_SubgroupID * VALUE_OCTETS + unit % VALUE_OCTETS, FRESH);                                   \
    }
#define PLACE_VALUES(p) {                                                                                                \
        [[unroll]] for (uint i = 0; i < VALUE_EACH; ++i) {                                                               \
            const uint unit = i * SUBGROUP_SIZE + lane;                                                                  \
            memory[region + unit] = v[p][i];                           \
        }                                                                                                                \
        MEET                                                                                                             \
        [[unroll]] for (uint l = 0; l < PIECE / FRAGMENT_K; ++l)                                                         \
            [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n)                                                   \
                coopMatLoad(value_parts[(p) * (PIECE / FRAGMENT_K) + l][n], memory,                                      \
                            region + l * FRAGMENT_K * VALUE_OCTETS + n * FRAGMENT_N / 8, VALUE_OCTETS, ROW_MAJOR);       \
        MEET                                                                                                             \
    }

// Attention of rows `start` to `end` of the tile that begins at `first_row`, which are of one sequence, with the table that
// begins at `table`, to the positions of a part; any of them sees at most `seen` positions of the sequence.
void attend(uint first_row, uint start, uint end, uint table, uint seen, uint part) {
    if (LEFT_OUT == 4) return;
    const uint lane = gl_SubgroupInvocationID, thread = gl_SubgroupID * SUBGROUP_SIZE + lane;
    const uint head = gl_WorkGroupID.y, first = part * PART, last_tile = (seen - 1) / TILE, region = gl_SubgroupID * REGION;
    uvec4 k[TILES][LINES][KEY_EACH], v[PIECES][VALUE_EACH], q[LINES][QUERY_EACH];
    B_MATRIX key_parts[TILES][TILE / FRAGMENT_N][WIDTH / FRAGMENT_K], value_parts[PART / FRAGMENT_K][COLUMNS / FRAGMENT_N];
#define READ_QUERIES(block)                                                                                                   \
    [[unroll]] for (uint h = 0; h < LINES; ++h)                                                                          \
        [[unroll]] for (uint i = 0; i < QUERY_EACH; ++i) {                                                               \
            const uint unit = i * SUBGROUP_SIZE + lane, row_in_tile = (block) * BLOCK_ROWS + unit / LINE_OCTETS;         \
            const uint row = first_row + clamp(row_in_tile, start, end - 1);                                             \
            q[h][i] = octet_of(uint64_t(query), row * query_stride + head * WIDTH, h * LINE_OCTETS + unit % LINE_OCTETS, \
                               RELAY != 0);                                                                              \
        }
    [[unroll]] for (uint t = 0; t < TILES; ++t) READ_KEYS(t, false)
    if (RELAY == 0) READ_QUERIES(start / BLOCK_ROWS)
    [[unroll]] for (uint p = 0; p < PIECES; ++p) READ_VALUES(p, false)
    if (IS_EARLY) {
        [[unroll]] for (uint t = 0; t < TILES; ++t) PLACE_KEYS(t)
        [[unroll]] for (uint p = 0; p < PIECES; ++p) PLACE_VALUES(p)
    }
    if (RELAY != 0) {
        const uint written = wait_for_written(table, seen, head);
        READ_QUERIES(0)
        if (written < first + PART) {
            [[unroll]] for (uint t = 0; t < TILES; ++t)
                if (KEYS_FROM(written, t)) READ_KEYS(t, true)
            [[unroll]] for (uint p = 0; p < PIECES; ++p)
                if (VALUES_FROM(written, p)) READ_VALUES(p, true)
            if (IS_EARLY) {
                [[unroll]] for (uint t = 0; t < TILES; ++t)
                    if (KEYS_FROM(written, t)) PLACE_KEYS(t)
                [[unroll]] for (uint p = 0; p < PIECES; ++p)
                    if (VALUES_FROM(written, p)) PLACE_VALUES(p)
            }
        }
    }
    if (IS_LATE)
        [[unroll]] for (uint t = 0; t < TILES; ++t) PLACE_KEYS(t)

    for (uint block = start / BLOCK_ROWS; block < BLOCKS && block * BLOCK_ROWS < end; ++block) {
        if (block != start / BLOCK_ROWS) READ_QUERIES(block)
        SUM_MATRIX scores[TILES][TILE / FRAGMENT_N];
        [[unroll]] for (uint t = 0; t < TILES; ++t)
            [[unroll]] for (uint n = 0; n < TILE / FRAGMENT_N; ++n) scores[t][n] = SUM_MATRIX(0.0);
        [[unroll]] for (uint h = 0; h < LINES; ++h) {
            [[unroll]] for (uint i = 0; i < QUERY_EACH; ++i) {
                const uint unit = i * SUBGROUP_SIZE + lane;
                if (unit < BLOCK_ROWS * LINE_OCTETS) memory[region + unit / LINE_OCTETS * LINE + unit % LINE_OCTETS] = q[h][i];
            }
            MEET
            [[unroll]] for (uint d = 0; d < LINE_OCTETS * 8 / FRAGMENT_K; ++d) {
                A_MATRIX a;
                coopMatLoad(a, memory, region + d * FRAGMENT_K / 8, LINE, ROW_MAJOR);
                [[unroll]] for (uint t = 0; t < TILES; ++t)
                    [[unroll]] for (uint n = 0; n < TILE / FRAGMENT_N; ++n)
                        scores[t][n] = coopMatMulAdd(a, key_parts[t][n][h * (LINE_OCTETS * 8 / FRAGMENT_K) + d], scores[t][n]);
            }
            MEET
        }
        barrier();
        [[unroll]] for (uint t = 0; t < TILES; ++t)
            [[unroll]] for (uint n = 0; n < TILE / FRAGMENT_N; ++n)
                coopMatStore(scores[t][n], memory, ((gl_SubgroupID * TILES + t) * TILE + n * FRAGMENT_N) / 4, SCORE_LINE, ROW_MAJOR);
        barrier();

        if (ROWS == 1)  // nothing there may be taken for a probability that is no number
            for (uint unit = thread; unit < (FRAGMENT_M - 1) * PART / 8; unit += THREADS)
                memory[(1 + unit / (PART / 8)) * SCORE_LINE + unit % (PART / 8)] = uvec4(0);
        const uint line = ROWS == 1 ? 0 : thread / ROW_LANES, row = block * BLOCK_ROWS + line, member = thread % ROW_LANES;
        const bool has_row = ROWS > 1 || gl_SubgroupID == 0;
        uvec2 probabilities[ROW_QUADS];
        if (has_row) {
            uint count = min(PART, seen - first);
            if (ROWS > 1) count = row >= start && row < end ? count_of(row, first) : 0;
            vec4 score[ROW_QUADS];
            float maximum = LOWEST;
            [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
                const uint quad = i * ROW_LANES + member;
                score[i] = uintBitsToFloat(memory[line * SCORE_LINE + quad]) * query_factor();
                [[unroll]] for (uint c = 0; c < 4; ++c) {
                    score[i][c] = bounded_score(score[i][c], quad * 4 + c < count);
                    maximum = max(maximum, score[i][c]);
                }
            }
            [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2)
                maximum = max(maximum, subgroupShuffleXor(maximum, apart));
            uint sum = 0;
            [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
                probabilities[i] = pack_halves4(exp2(score[i] - maximum));
                const uvec4 units = uvec4(unpack_halves4(probabilities[i]) / UNIT);
                sum += units.x + units.y + units.z + units.w;
            }
            [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2) sum += subgroupShuffleXor(sum, apart);
            if (member == 0) {
                row_sums[line] = float(sum) * UNIT;
                if (SPLIT == 1 && count != 0) {
                    const uint place = ((first_row + row) * QUERY_HEADS + head) * splits + part;
                    statistics.at[place * 2] = maximum;
                    statistics.at[place * 2 + 1] = float(sum) * UNIT;
                }
            }
        }
        MEET
        if (has_row) {
            [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
                const uint quad = i * ROW_LANES + member, place = line * SCORE_LINE + quad / 2;
                if (quad % 2 == 0) memory[place].xy = probabilities[i];
                else memory[place].zw = probabilities[i];
            }
        }
        barrier();

        A_MATRIX p[PART / FRAGMENT_K];
        [[unroll]] for (uint l = 0; l < PART / FRAGMENT_K; ++l) coopMatLoad(p[l], memory, l * FRAGMENT_K / 8, SCORE_LINE, ROW_MAJOR);
        barrier();
        if (IS_LATE)
            [[unroll]] for (uint p = 0; p < PIECES; ++p) PLACE_VALUES(p)
        SUM_MATRIX result[COLUMNS / FRAGMENT_N];
        [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n) {
            result[n] = SUM_MATRIX(0.0);
            [[unroll]] for (uint l = 0; l < PART / FRAGMENT_K; ++l) result[n] = coopMatMulAdd(p[l], value_parts[l][n], result[n]);
        }
        bool is_spoiled = false;
        [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n)
            EACH(e, result[n]) is_spoiled = is_spoiled || !is_number(result[n][e]);
        if (subgroupBallot(is_spoiled) != uvec4(0)) {
            // A value that is no number spoils rows that see it, and no others, whose probability for it is 0.
            [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n) {
                SUM_MATRIX spoiled = SUM_MATRIX(0.0);
                result[n] = SUM_MATRIX(0.0);
                [[unroll]] for (uint l = 0; l < PART / FRAGMENT_K; ++l) {
                    B_MATRIX numbers = value_parts[l][n], others = B_MATRIX(0.0);
                    EACH(e, numbers) {
                        if (is_number(float(numbers[e]))) continue;
                        numbers[e] = NUMBER(0.0);
                        others[e] = NUMBER(1.0);
                    }
                    result[n] = coopMatMulAdd(p[l], numbers, result[n]);
                    spoiled = coopMatMulAdd(p[l], others, spoiled);
                }
                EACH(e, spoiled) if (spoiled[e] != 0.0) result[n][e] = uintBitsToFloat(0x7fc00000u);
            }
        }
        [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n)
            coopMatStore(result[n], memory, region + n * FRAGMENT_N / 4, RESULT_LINE, ROW_MAJOR);
        MEET
        for (uint unit = lane; unit < BLOCK_ROWS * COLUMNS / 4; unit += SUBGROUP_SIZE) {
            const uint l = unit / (COLUMNS / 4), r = block * BLOCK_ROWS + l, quad = unit % (COLUMNS / 4);
            if (ROWS > 1 && (r < start || r >= end || count_of(r, first) == 0)) continue;
            const uint place = ((first_row + r) * QUERY_HEADS + head) * (SPLIT == 1 ? splits : 1) + part;
            const vec4 numbers = uintBitsToFloat(memory[region + l * RESULT_LINE + quad]);
            if (SPLIT == 1) write_quad(partial, place * WIDTH, gl_SubgroupID * (COLUMNS / 4) + quad, numbers);
            else write_result(place * WIDTH, gl_SubgroupID * (COLUMNS / 4) + quad, numbers / row_sums[l]);
        }
        MEET
    }
}

void main() {
    if (ROWS == 1) {
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
