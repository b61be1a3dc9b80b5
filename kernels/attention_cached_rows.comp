// What attention_cached.comp computes, with the same bits, for rows of which most neighbours are of one sequence, as those
// of a prompt: ROWS of them and every so manieth part of their keys to a workgroup, up to four rows of a sequence at a
// time. Parts of which a row sees nothing are not written. Grid: (1 to `splits`, QUERY_HEADS, N / ROWS); the last rows,
// which see most, come first.
//
// The keys of a part, and the first of the values, stay in registers for all rows of a sequence. Four rows are the
// components of a vector where there is a number for each, so that they share reductions and barriers.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
layout(local_size_x_id = 0) in;

const uint TOGETHER = 4;
const uint TEAM = PRODUCTS / 2;    // threads that share the product of a query and a key; each makes two of its sums
const uint TEAMS = THREADS / TEAM;
const uint TEAM_KEYS = THREADS / TEAMS;

// Sums of products of each row and key, by fours; later the sums of a quad of a row's result.
shared vec4 sums[TOGETHER * THREADS];
shared vec4 probabilities[THREADS];
shared vec4 reduction_fours[256];

WORKGROUP_REDUCTION(vec4, reduction_fours, workgroup_sum, subgroupAdd, PLUS)
WORKGROUP_REDUCTION(vec4, reduction_fours, workgroup_max, subgroupMax, max)

// How many of a workgroup's positions, which begin at `first`, a row sees.
uint count_of(uint row, uint first) {
    const uint seen = uint(positions.at[row]) + 1;
    return min(THREADS, seen - min(seen, first));
}

// Where the sums of a part of a row's keys stand.
uint place_of_part(uint row, uint head, uint part) {
    return (row * QUERY_HEADS + head) * (SPLIT == 1 ? splits : 1) + part;
}

void main() {
    const uint thread = gl_LocalInvocationIndex, member = thread % TEAM, quad = thread % QUADS, lane = thread / QUADS;
    const uint head = gl_WorkGroupID.y, first_row = (gl_NumWorkGroups.z - 1 - gl_WorkGroupID.z) * ROWS;
    const uint end_row = min(rows, first_row + ROWS);
    uint last = 0;  // position that any of the rows sees
    for (uint row = first_row; row < end_row; ++row) last = max(last, uint(positions.at[row]));

    for (uint part = gl_WorkGroupID.x; part <= last / THREADS; part += gl_NumWorkGroups.x) {
        const uint first = part * THREADS;
        vec4 k[TEAM_KEYS][2][PRODUCT_QUADS], v[AHEAD];
        uint there = ~0u;  // the sequence that these are of

        for (uint row = first_row, end; row < end_row; row = end) {
            const uint sequence = uint(sequences.at[row]), table = sequence * pages;
            uvec4 count = uvec4(0);
            end = row;
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r)
                if (end == row + r && end < end_row && uint(sequences.at[end]) == sequence)
                    count[r] = count_of(end++, first);
            const uint longest = max(max(count.x, count.y), max(count.z, count.w));
            if (longest == 0) continue;
            if (sequence != there) {
                there = sequence;
                uint most = longest;  // of all rows that share the keys
                for (uint other = end; other < end_row; ++other)
                    if (uint(sequences.at[other]) == sequence) most = max(most, count_of(other, first));
                [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
                    const uint start = place_of(table, first + min(thread / TEAM + i * TEAMS, most - 1), head);
                    [[unroll]] for (uint s = 0; s < 2; ++s)
                        [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c)
                            k[i][s][c] = read_quad(keys, start, member + s * TEAM + c * PRODUCTS);
                }
                [[unroll]] for (uint i = 0; i < AHEAD; ++i)
                    v[i] = read_quad(values, place_of(table, first + min(lane + i * LANES, most - 1), head), quad);
            }
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r) {
                if (count[r] == 0) continue;
                const uint start = (row + r) * query_stride + head * WIDTH;
                vec4 q[2][PRODUCT_QUADS];
                [[unroll]] for (uint s = 0; s < 2; ++s)
                    [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c)
                        q[s][c] = read_quad(query, start, member + s * TEAM + c * PRODUCTS) * query_factor();
                [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
                    vec2 product = vec2(0.0);
                    [[unroll]] for (uint s = 0; s < 2; ++s)
                        [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c)
                            product[s] = multiply_add(q[s][c], k[i][s][c], product[s]);
                    sums[r * THREADS + thread / TEAM + i * TEAMS][member] = product.x + product.y;
                }
            }
            barrier();
            vec4 score;
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r)
                score[r] = score_of(sums[r * THREADS + thread], thread < count[r]);
            const vec4 maximum = workgroup_max(score);
            const vec4 probability = exp2(score - maximum);
            probabilities[thread] = probability;
            const vec4 sum = workgroup_sum(probability);
            barrier();
            vec4 result[TOGETHER];
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r) result[r] = vec4(0.0);
            if (lane < LANES) {
                [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
                    const vec4 factor = probabilities[lane + i * LANES];
                    [[unroll]] for (uint r = 0; r < TOGETHER; ++r)
                        if (lane + i * LANES < count[r]) result[r] = fma(vec4(factor[r]), v[i], result[r]);
                }
                for (uint j = lane + AHEAD * LANES; j < longest; j += LANES) {
                    const vec4 factor = probabilities[j];
                    const vec4 value = read_quad(values, place_of(table, first + j, head), quad);
                    [[unroll]] for (uint r = 0; r < TOGETHER; ++r)
                        if (j < count[r]) result[r] = fma(vec4(factor[r]), value, result[r]);
                }
            }
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r) sums[r * THREADS + thread] = result[r];
            barrier();
            for (uint i = thread; i < (end - row) * QUADS; i += THREADS) {
                const uint r = i / QUADS, start = place_of_part(row + r, head, part) * WIDTH;
                vec4 total = sums[r * THREADS + i % QUADS];
                for (uint other = 1; other < LANES; ++other) total += sums[r * THREADS + i % QUADS + other * QUADS];
                if (SPLIT == 1) write_quad(partial, start, i % QUADS, total);
                else write_result(start, i % QUADS, total / sum[r]);
            }
            [[unroll]] for (uint r = 0; r < TOGETHER; ++r)
                if (SPLIT == 1 && thread == r && count[r] != 0) {
                    statistics.at[place_of_part(row + r, head, part) * 2] = maximum[r];
                    statistics.at[place_of_part(row + r, head, part) * 2 + 1] = sum[r];
                }
            barrier();
        }
    }
}
