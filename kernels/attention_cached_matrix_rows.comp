// What attention_cached_matrix.comp computes and what is put together of it, with the same bits, for rows of which most
// neighbours are of one sequence, as those of a prompt: ROWS of them and a head to a workgroup, which goes through their
// keys a part at a time and puts the parts together itself. Grid: (1, QUERY_HEADS, as attention_runs.glsl says).
//
// A block of FRAGMENT_M rows has SHARES subgroups, each with every SHARES-th fragment of a part's positions for the scores,
// and of the width for the result. While they work on a part, the next one is on its way in registers.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "halves.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
#include "attention_numbers.glsl"
#include "attention_cached_matrix.glsl"
#include "attention_runs.glsl"
#include "attention_parts.glsl"
layout(local_size_x_id = 0) in;

const uint SHARES = SUBGROUPS / (ROWS / FRAGMENT_M);
const uint SCORE_PARTS = PART / FRAGMENT_N / SHARES, RESULT_PARTS = WIDTH / FRAGMENT_N / SHARES;
const uint SCORE_LINE = PART / 4 + 1, RESULT_LINE = WIDTH / 4 + 1;
const uint EACH_THREAD = PART * OCTETS / THREADS;
const uint ROW_LANES = THREADS / ROWS, ROW_QUADS = PART / 4 / ROW_LANES;

// Keys, and then scores, of which probabilities take the place; values from VALUES on, and before them queries.
const uint KEY_UNITS = PART * PITCH, SCORE_UNITS = ROWS * SCORE_LINE;
const uint VALUES = KEY_UNITS > SCORE_UNITS ? KEY_UNITS : SCORE_UNITS;
shared uvec4 memory[VALUES + PART * PITCH];  // a tile has fewer rows than a part has positions
shared float factors[ROWS], partial_factors[ROWS];  // of what rows have so far, and of a part
shared uint is_spoiled;

bool is_number(float x) { return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u; }

#define READ_PART(part)                                                                                       \
    [[unroll]] for (uint i = 0; i < EACH_THREAD; ++i) {                                                       \
        const uint unit = i * THREADS + thread, position = min((part) * PART + unit / OCTETS, seen - 1);      \
        const uint place = place_of(table, position, head);                                                   \
        k[i] = octet_of(uint64_t(keys), place, unit % OCTETS);                                                \
        v[i] = octet_of(uint64_t(values), place, unit % OCTETS);                                              \
    }

// Attention of rows `start` to `end` of the tile that begins at `first_row`, which are of one sequence, with the table that
// begins at `table`; any of them sees at most `seen` positions of the sequence. Nothing is written of several rows of which
// one becomes no finite number: a value that is none spoils all that are multiplied with it, by a probability of 0 also.
// Whether that is so.
bool attend(uint first_row, uint start, uint end, uint table, uint seen) {
    const uint lane = gl_SubgroupInvocationID, thread = gl_SubgroupID * SUBGROUP_SIZE + lane, head = gl_WorkGroupID.y;
    const uint block = gl_SubgroupID / SHARES, share = gl_SubgroupID % SHARES;
    const uint row = thread / ROW_LANES, member = thread % ROW_LANES;  // in the softmax
    uvec4 k[EACH_THREAD], v[EACH_THREAD];
    READ_PART(0)
    barrier();  // what is in shared memory may still be read
    for (uint unit = thread; unit < ROWS * OCTETS; unit += THREADS)
        memory[VALUES + unit / OCTETS * PITCH + unit % OCTETS] =
            octet_of(uint64_t(query), (first_row + clamp(unit / OCTETS, start, end - 1)) * query_stride + head * WIDTH,
                     unit % OCTETS);
    if (thread == 0) is_spoiled = 0;
    barrier();
    A_MATRIX q[DEPTHS];
    [[unroll]] for (uint d = 0; d < DEPTHS; ++d)
        coopMatLoad(q[d], memory, VALUES + block * FRAGMENT_M * PITCH + d * FRAGMENT_K / 8, PITCH, ROW_MAJOR);
    uint block_seen = 0;
    for (uint r = max(start, block * FRAGMENT_M); r < min(end, (block + 1) * FRAGMENT_M); ++r)
        block_seen = max(block_seen, row_seen[r]);
    SUM_MATRIX result[RESULT_PARTS];
    [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n) result[n] = SUM_MATRIX(0.0);
    float maximum = NO_MAXIMUM, sum = 0.0;

    for (uint part = 0; part * PART < seen; ++part) {
        const uint first = part * PART;
        barrier();
        [[unroll]] for (uint i = 0; i < EACH_THREAD; ++i) {
            const uint unit = i * THREADS + thread, place = unit / OCTETS * PITCH + unit % OCTETS;
            memory[place] = k[i];
            memory[VALUES + place] = v[i];
        }
        barrier();
        READ_PART(part + 1)
        SUM_MATRIX products[SCORE_PARTS];
        [[unroll]] for (uint i = 0; i < SCORE_PARTS; ++i) {
            const uint position = (i * SHARES + share) * FRAGMENT_N;
            products[i] = SUM_MATRIX(0.0);
            if (first + position >= block_seen) continue;
            [[unroll]] for (uint d = 0; d < DEPTHS; ++d) {
                B_MATRIX b;
                coopMatLoad(b, memory, position * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                products[i] = coopMatMulAdd(q[d], b, products[i]);
            }
        }
        barrier();
        [[unroll]] for (uint i = 0; i < SCORE_PARTS; ++i)
            coopMatStore(products[i], memory, block * FRAGMENT_M * SCORE_LINE + (i * SHARES + share) * FRAGMENT_N / 4,
                         SCORE_LINE, ROW_MAJOR);
        barrier();

        const uint count = row >= start && row < end ? count_of(row, first) : 0;
        vec4 score[ROW_QUADS];
        float part_maximum = LOWEST;
        [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
            const uint quad = i * ROW_LANES + member;
            score[i] = scores_of(memory[row * SCORE_LINE + quad], quad * 4, count);
            part_maximum = max(part_maximum, max(max(score[i].x, score[i].y), max(score[i].z, score[i].w)));
        }
        [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2)
            part_maximum = max(part_maximum, subgroupShuffleXor(part_maximum, apart));
        MEET
        uint part_sum = 0;
        [[unroll]] for (uint i = 0; i < ROW_QUADS; ++i) {
            const uint quad = i * ROW_LANES + member, place = row * SCORE_LINE + quad / 2;
            const uvec2 rounded = probabilities_of(score[i], part_maximum, part_sum);
            if (quad % 2 == 0) memory[place].xy = rounded;
            else memory[place].zw = rounded;
        }
        [[unroll]] for (uint apart = 1; apart < ROW_LANES; apart *= 2) part_sum += subgroupShuffleXor(part_sum, apart);
        if (count != 0) {
            const float later = max(maximum, part_maximum);
            const float factor = shrunk(maximum, later), partial_factor = shrunk(part_maximum, later);
            sum = joined(sum, factor, float(part_sum) * UNIT, partial_factor);
            maximum = later;
            if (member == 0) {
                factors[row] = factor;
                partial_factors[row] = partial_factor;
            }
        } else if (member == 0) {
            factors[row] = 1.0;
            partial_factors[row] = 0.0;
        }
        barrier();

        SUM_MATRIX made[RESULT_PARTS];
        [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n) made[n] = SUM_MATRIX(0.0);
        [[unroll]] for (uint l = 0; l < PART_DEPTHS; ++l) {
            if (first + l * FRAGMENT_K >= block_seen) continue;
            A_MATRIX p;
            coopMatLoad(p, memory, block * FRAGMENT_M * SCORE_LINE + l * FRAGMENT_K / 8, SCORE_LINE, ROW_MAJOR);
            [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n) {
                B_MATRIX b;
                coopMatLoad(b, memory, VALUES + l * FRAGMENT_K * PITCH + (n * SHARES + share) * FRAGMENT_N / 8, PITCH,
                            ROW_MAJOR);
                made[n] = coopMatMulAdd(p, b, made[n]);
            }
        }
        SUM_MATRIX factor, partial_factor;
        coopMatLoad(factor, factors, block * FRAGMENT_M, 0, COLUMN_MAJOR);
        coopMatLoad(partial_factor, partial_factors, block * FRAGMENT_M, 0, COLUMN_MAJOR);
        [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n)
            EACH(e, factor) result[n][e] = joined(result[n][e], factor[e], made[n][e], partial_factor[e]);
    }

    bool is_bad = false;
    [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n) EACH(e, result[n]) is_bad = is_bad || !is_number(result[n][e]);
    if (is_bad) is_spoiled = 1;
    barrier();
    if (end - start > 1 && is_spoiled != 0) return true;
    if (member == 0) factors[row] = 1.0 / sum;
    [[unroll]] for (uint n = 0; n < RESULT_PARTS; ++n)
        coopMatStore(result[n], memory, block * FRAGMENT_M * RESULT_LINE + (n * SHARES + share) * FRAGMENT_N / 4, RESULT_LINE,
                     ROW_MAJOR);
    barrier();
    for (uint unit = thread; unit < (end - start) * QUADS; unit += THREADS) {
        const uint r = start + unit / QUADS, quad = unit % QUADS;
        const vec4 numbers = uintBitsToFloat(memory[r * RESULT_LINE + quad]) * factors[r];
        write_result(((first_row + r) * QUERY_HEADS + head) * WIDTH, quad, numbers);
    }
    return false;
}

void main() {
    const Rows tile = find_rows();
    for (uint start = 0, end; start < tile.count; start = end) {
        end = end_of_run(tile, start);
        if (!is_own(tile, start)) continue;
        uint seen = 0;
        for (uint row = start; row < end; ++row) seen = max(seen, row_seen[row]);
        if (seen == 0) continue;
        const uint table = row_sequences[start] * pages;
        if (attend(tile.first, start, end, table, seen))
            for (uint row = start; row < end; ++row)
                if (row_seen[row] != 0) attend(tile.first, row, row + 1, table, row_seen[row]);
    }
}
