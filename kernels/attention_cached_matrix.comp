// Causal attention of queries of any sequences, whose keys and values stand in blocks, on matrix units: ROWS queries of one
// head to a workgroup, all together where they are of one sequence.
//
// Operands, results and their meaning are those of attention_cached.comp, and so are the parts in which the keys of a row
// are worked on: KEYS positions each. Keys, values and probabilities are of 16 bits, sums and the softmax of float32. What
// a part gives depends on the row alone, so a row has the same bits in a tile of a prompt's rows as by itself.
//
// With SPLIT == 1 the grid is (QUERY_HEADS, N / ROWS, splits), a workgroup has one part, ROWS is 1, and `partial` and
// `statistics` are the result. With SPLIT == 0 a workgroup has all parts, puts them together as attention_parts.glsl does,
// and `attended` is the result; the grid is (QUERY_HEADS, N / ROWS, shares), and workgroups of one tile take turns at the
// sequences in it; in a relay (relay.glsl) a workgroup has one part. WIDTH and TOKENS are multiples of 16.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "attention.glsl"
#include "attention_numbers.glsl"
#include "attention_parts.glsl"
layout(local_size_x_id = 0) in;

#define A_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<NUMBER, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define SUM_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>

const uint KEYS = THREADS;  // positions of a part, as in attention_cached.comp
const uint ROW_FRAGMENTS = (ROWS + FRAGMENT_M - 1) / FRAGMENT_M, TILE_ROWS = ROW_FRAGMENTS * FRAGMENT_M;
const uint DEPTHS = WIDTH / FRAGMENT_K, KEY_DEPTHS = KEYS / FRAGMENT_K;
const uint KEY_COLUMNS = KEYS / FRAGMENT_N, RESULT_COLUMNS = WIDTH / FRAGMENT_N;
const uint OWN_KEY_COLUMNS = (KEY_COLUMNS + SUBGROUPS - 1) / SUBGROUPS;  // fragments that a subgroup has
const uint OWN_RESULT_COLUMNS = (RESULT_COLUMNS + SUBGROUPS - 1) / SUBGROUPS;
const uint FETCHES = (KEYS * OCTETS + THREADS - 1) / THREADS;
const uint MEMBERS = 8, MEMBER_QUADS = KEYS / 4 / MEMBERS;  // invocations that share the softmax of a row
const uint RESULTS = (ROWS * QUADS + THREADS - 1) / THREADS;
const uint SCORE_PITCH = (KEYS > WIDTH ? KEYS : WIDTH) / 4 + 1, WEIGHT_PITCH = KEYS / 8 + 1;
const uint OPERAND_PITCH = WEIGHT_PITCH > PITCH ? WEIGHT_PITCH : PITCH;

shared uvec4 tile[KEYS * PITCH];                   // keys, then values
shared vec4 scores[TILE_ROWS * SCORE_PITCH];       // then what probabilities and values give
shared uvec4 weights[TILE_ROWS * OPERAND_PITCH];  // queries, then probabilities
shared uint row_sequences[ROWS], row_seen[ROWS];
shared vec2 row_statistics[ROWS];  // of a part: largest score (base 2), sum of exponentials

// Where the numbers of a position begin, in octets.
uint place_of(uint table, uint position, uint key_head) {
    const uint token = uint(tables.at[table + position / TOKENS]) * TOKENS + position % TOKENS;
    return (token * KEY_HEADS + key_head) * (WIDTH / 8);
}

// The sequence of a row of the tile, and how many positions it sees.
uint sequence_of(uint first_row, uint row) { return ROWS == 1 ? uint(sequences.at[first_row]) : row_sequences[row]; }

uint seen_by(uint first_row, uint row) { return ROWS == 1 ? uint(positions.at[first_row]) + 1 : row_seen[row]; }

// Keys or values of a part on their way; what is beyond the last position that any of the rows sees is 0.
#define FETCH(TO, FROM, FIRST)                                                                                            \
    [[unroll]] for (uint i = 0; i < FETCHES; ++i) {                                                                       \
        const uint unit = i * THREADS + thread, position = (FIRST) + unit / OCTETS;                                       \
        TO[i] = uvec4(0);                                                                                                 \
        if (position < most && unit < KEYS * OCTETS)                                                                      \
            TO[i] = u32x4_buffer(FROM).at[place_of(table, position, key_head) + unit % OCTETS];                           \
    }
// Those from position `written` on once more: what was read of them before the wait was only being written.
#define FETCH_WRITTEN(TO, FROM, FIRST)                                                                                    \
    [[unroll]] for (uint i = 0; i < FETCHES; ++i) {                                                                       \
        const uint unit = i * THREADS + thread, position = (FIRST) + unit / OCTETS;                                       \
        if (position >= written && position < most && unit < KEYS * OCTETS)                                               \
            TO[i] = fresh_u32x4(uint64_t(FROM)).at[place_of(table, position, key_head) + unit % OCTETS];                  \
    }
#define PLACE(FROM)                                                                                                       \
    [[unroll]] for (uint i = 0; i < FETCHES; ++i) {                                                                       \
        const uint unit = i * THREADS + thread;                                                                           \
        if (unit < KEYS * OCTETS) tile[unit / OCTETS * PITCH + unit % OCTETS] = FROM[i];                                  \
    }

void main() {
    const uint thread = gl_SubgroupID * SUBGROUP_SIZE + gl_SubgroupInvocationID;
    const uint head = gl_WorkGroupID.x, key_head = head / GROUP;
    // Rows of a prompt see more and more keys, so the last ones begin first.
    const uint first_row = (gl_NumWorkGroups.y - 1 - gl_WorkGroupID.y) * ROWS, row_count = min(ROWS, rows - first_row);
    const float factor = SOFT_CAP == 0.0 ? query_factor() : SOFT_CAP * LOG2_E;

    if (ROWS == 1) {
        if (SPLIT == 1 && gl_WorkGroupID.z * KEYS > uint(positions.at[first_row])) {
            const uint place = (first_row * QUERY_HEADS + head) * gl_NumWorkGroups.z + gl_WorkGroupID.z;
            relay_wait();
            if (thread < 2) statistics.at[place * 2 + thread] = thread == 0 ? NEGATIVE_INFINITY : 0.0;
            relay_end();
            return;
        }
    } else {
        if (thread < row_count) {
            row_sequences[thread] = uint(sequences.at[first_row + thread]);
            row_seen[thread] = uint(positions.at[first_row + thread]) + 1;
        }
        barrier();
    }
    bool is_waiting = true;
    uint end = 0;
    for (uint number = 0; end < row_count; ++number) {
        const uint begin = end, sequence = sequence_of(first_row, begin), table = sequence * pages;
        uint most = 0;  // positions that a row of the sequence sees
        bool same = true;
        [[unroll]] for (uint row = 0; row < ROWS; ++row) {
            same = same && (row < begin || (row < row_count && sequence_of(first_row, row) == sequence));
            if (row >= begin && same) {
                most = max(most, seen_by(first_row, row));
                end = row + 1;
            }
        }
        if (SPLIT == 0 && number % gl_NumWorkGroups.z != gl_WorkGroupID.z) continue;
        const uint first_key = SPLIT == 1 ? gl_WorkGroupID.z * KEYS : 0;
        uvec4 next_keys[FETCHES], next_values[FETCHES];
        FETCH(next_keys, keys, first_key)
        FETCH(next_values, values, first_key)
        if (RELAY == 1) {
            uint written = ~0u;
            for (uint row = 0; row < rows; ++row)
                if (uint(sequences.at[row]) == sequence) written = min(written, uint(positions.at[row]));
            if (is_waiting) relay_wait();
            is_waiting = false;
            FETCH_WRITTEN(next_keys, keys, first_key)
            FETCH_WRITTEN(next_values, values, first_key)
        }
        for (uint unit = thread; unit < TILE_ROWS * OCTETS; unit += THREADS) {
            const uint row = unit / OCTETS, octet = unit % OCTETS;
            uvec4 numbers = uvec4(0);
            if (row < row_count)
                numbers = fresh_u32x4(uint64_t(query)).at[((first_row + row) * query_stride + head * WIDTH) / 8 + octet];
            weights[row * OPERAND_PITCH + octet] = numbers;
        }
        barrier();
        A_MATRIX q[ROW_FRAGMENTS * DEPTHS];
        [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m)
            [[unroll]] for (uint d = 0; d < DEPTHS; ++d)
                coopMatLoad(q[m * DEPTHS + d], weights, m * FRAGMENT_M * OPERAND_PITCH + d * FRAGMENT_K / 8, OPERAND_PITCH,
                            ROW_MAJOR);

        vec4 result[RESULTS];
        float maxima[RESULTS], sums[RESULTS];
        [[unroll]] for (uint i = 0; i < RESULTS; ++i) {
            result[i] = vec4(0.0);
            maxima[i] = NEGATIVE_INFINITY;
            sums[i] = 0.0;
        }
        for (uint first = first_key; first < most; first += KEYS) {
            PLACE(next_keys)
            barrier();
            if (SPLIT == 0) FETCH(next_keys, keys, first + KEYS)
            SUM_MATRIX products[ROW_FRAGMENTS * OWN_KEY_COLUMNS];
            [[unroll]] for (uint n = 0; n < OWN_KEY_COLUMNS; ++n) {
                const uint column = min(gl_SubgroupID + n * SUBGROUPS, KEY_COLUMNS - 1);
                [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m) products[m * OWN_KEY_COLUMNS + n] = SUM_MATRIX(0.0);
                [[unroll]] for (uint d = 0; d < DEPTHS; ++d) {
                    B_MATRIX k;
                    coopMatLoad(k, tile, column * FRAGMENT_N * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                    [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m)
                        products[m * OWN_KEY_COLUMNS + n] =
                            coopMatMulAdd(q[m * DEPTHS + d], k, products[m * OWN_KEY_COLUMNS + n]);
                }
            }
            [[unroll]] for (uint n = 0; n < OWN_KEY_COLUMNS; ++n) {
                const uint column = gl_SubgroupID + n * SUBGROUPS;
                if (KEY_COLUMNS % SUBGROUPS == 0 || column < KEY_COLUMNS)
                    [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m)
                        coopMatStore(products[m * OWN_KEY_COLUMNS + n], scores,
                                     m * FRAGMENT_M * SCORE_PITCH + column * FRAGMENT_N / 4, SCORE_PITCH, ROW_MAJOR);
            }
            barrier();
            PLACE(next_values)
            if (SPLIT == 0) FETCH(next_values, values, first + KEYS)

            const uint member = thread % MEMBERS;
            [[unroll]] for (uint first_line = 0; first_line < ROWS; first_line += THREADS / MEMBERS) {
                const uint row = first_line + thread / MEMBERS;
                if (row >= row_count) continue;
                const uint seen = row >= begin && row < end ? seen_by(first_row, row) : 0, count = seen - min(seen, first);
                vec4 own[MEMBER_QUADS];
                float maximum = NEGATIVE_INFINITY;
                [[unroll]] for (uint i = 0; i < MEMBER_QUADS; ++i) {
                    const uint quad = member + i * MEMBERS;
                    own[i] = scores[row * SCORE_PITCH + quad];
                    [[unroll]] for (uint e = 0; e < 4; ++e) {
                        if (SOFT_CAP != 0.0) own[i][e] = bounded_tanh(own[i][e] * query_factor());
                        if (quad * 4 + e >= count) own[i][e] = NEGATIVE_INFINITY;
                        maximum = max(maximum, own[i][e]);
                    }
                }
                [[unroll]] for (uint apart = 1; apart < MEMBERS; apart *= 2)
                    maximum = max(maximum, subgroupShuffleXor(maximum, apart));
                maximum = count == 0 ? 0.0 : maximum * factor;
                float sum = 0.0;
                [[unroll]] for (uint i = 0; i < MEMBER_QUADS; ++i) {
                    const uint quad = member + i * MEMBERS, at = row * OPERAND_PITCH + quad / 2;
                    [[unroll]] for (uint e = 0; e < 4; ++e) {
                        own[i][e] = exp2(fma(own[i][e], factor, -maximum));
                        sum += own[i][e];
                    }
                    const uvec2 packed = uvec2(pack_pair(own[i].xy), pack_pair(own[i].zw));
                    if (quad % 2 == 0) weights[at].xy = packed;
                    else weights[at].zw = packed;
                }
                [[unroll]] for (uint apart = 1; apart < MEMBERS; apart *= 2) sum += subgroupShuffleXor(sum, apart);
                if (member == 0) row_statistics[row] = vec2(maximum, sum);
            }
            barrier();

            SUM_MATRIX part[ROW_FRAGMENTS * OWN_RESULT_COLUMNS];
            [[unroll]] for (uint i = 0; i < ROW_FRAGMENTS * OWN_RESULT_COLUMNS; ++i) part[i] = SUM_MATRIX(0.0);
            [[unroll]] for (uint j = 0; j < KEY_DEPTHS; ++j)
                [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m) {
                    A_MATRIX p;
                    coopMatLoad(p, weights, m * FRAGMENT_M * OPERAND_PITCH + j * FRAGMENT_K / 8, OPERAND_PITCH, ROW_MAJOR);
                    [[unroll]] for (uint n = 0; n < OWN_RESULT_COLUMNS; ++n) {
                        const uint column = min(gl_SubgroupID + n * SUBGROUPS, RESULT_COLUMNS - 1);
                        B_MATRIX value;
                        coopMatLoad(value, tile, j * FRAGMENT_K * PITCH + column * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                        part[m * OWN_RESULT_COLUMNS + n] = coopMatMulAdd(p, value, part[m * OWN_RESULT_COLUMNS + n]);
                    }
                }
            [[unroll]] for (uint n = 0; n < OWN_RESULT_COLUMNS; ++n) {
                const uint column = gl_SubgroupID + n * SUBGROUPS;
                if (RESULT_COLUMNS % SUBGROUPS == 0 || column < RESULT_COLUMNS)
                    [[unroll]] for (uint m = 0; m < ROW_FRAGMENTS; ++m)
                        coopMatStore(part[m * OWN_RESULT_COLUMNS + n], scores,
                                     m * FRAGMENT_M * SCORE_PITCH + column * FRAGMENT_N / 4, SCORE_PITCH, ROW_MAJOR);
            }
            barrier();

            [[unroll]] for (uint i = 0; i < RESULTS; ++i) {
                const uint unit = i * THREADS + thread, row = unit / QUADS, quad = unit % QUADS;
                if (row < begin || row >= end || seen_by(first_row, row) <= first) continue;
                const vec4 value = scores[row * SCORE_PITCH + quad];
                const vec2 statistic = row_statistics[row];
                if (SPLIT == 1) {
                    const uint place = ((first_row + row) * QUERY_HEADS + head) * gl_NumWorkGroups.z + gl_WorkGroupID.z;
                    f32x4_buffer(partial).at[place * QUADS + quad] = value;
                    if (quad == 0) f32x2_buffer(statistics).at[place] = statistic;
                } else {
                    add_part(result[i], maxima[i], sums[i], value, statistic);
                }
            }
            if (SPLIT == 1) break;
        }
        if (SPLIT == 0)
            [[unroll]] for (uint i = 0; i < RESULTS; ++i) {
                const uint unit = i * THREADS + thread, row = unit / QUADS, quad = unit % QUADS;
                if (row < begin || row >= end) continue;
                const uint place = ((first_row + row) * QUERY_HEADS + head) * QUADS + quad;
                store(JOIN(T, x4_buffer)(attended).at[place], result[i] / sums[i]);
            }
        barrier();  // of the next sequence
    }
    if (is_waiting) relay_wait();  // others had all of its sequences
    relay_end();
}
