// What attention_cached.comp computes, with the same bits, for rows of which most neighbours are of one sequence, as those
// of a prompt: ROWS of them, of a head, and every so manieth part of their keys to a workgroup. Parts of which a row sees
// nothing are not written. Grid: (1 to `splits`, QUERY_HEADS, as attention_runs.glsl says).
//
// Rows of a sequence that follow each other, a run, are worked on at once, as in a matrix product: a thread has the
// scores of four rows and TEAMS keys, then the results of four rows and a quad of the width. The sums of PRODUCTS and of
// LANES that attention_cached.comp divides among threads are one thread's here, one after the other. Four rows are the
// components of a vector where there is a number for each.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
layout(local_size_x_id = 0) in;

const uint PART = THREADS;
#include "attention_runs.glsl"

const uint TEAMS = ROWS / 4;                // of threads with four rows each
const uint TEAM_THREADS = THREADS / TEAMS;  // which have TEAMS keys each
const uint TEAM_SUBGROUPS = TEAM_THREADS / SUBGROUP_SIZE;  // at least one
const uint SUBGROUPS = THREADS / SUBGROUP_SIZE;
const uint ORDERED = PRODUCTS * PRODUCT_QUADS;
const uint SLICE = 2;  // quads of the width of all keys that are in shared memory at a time
const uint SLICE_KEYS = THREADS / SLICE;
const uint VALUES_AHEAD = 8;  // values that a thread reads at a time

// One after the other: a slice of the keys, and from QUERIES on all quads of the queries; the probabilities, of each team
// a row of PITCH vectors, so that two teams read from different banks.
const uint QUERIES = SLICE * THREADS;
const uint PITCH = THREADS + 1;
const uint BEFORE = QUERIES + ORDERED * ROWS, AFTER = TEAMS * PITCH;
shared vec4 memory[BEFORE > AFTER ? BEFORE : AFTER];
shared vec4 maxima[TEAMS * TEAM_SUBGROUPS], sums[TEAMS * SUBGROUPS];  // of a subgroup's positions
shared uint places[THREADS];

// The quads of the width in the order in which their sums are added up: those of sums 0, 4, 1, 5, 2, 6, 3, 7.
uint quad_at(uint order) {
    const uint sum = order / PRODUCT_QUADS;
    return sum / 2 + sum % 2 * (PRODUCTS / 2) + order % PRODUCT_QUADS * PRODUCTS;
}

uint order_of(uint quad) {
    const uint sum = quad % PRODUCTS;
    return (sum % (PRODUCTS / 2) * 2 + sum / (PRODUCTS / 2)) * PRODUCT_QUADS + quad / PRODUCTS;
}

// The largest scores of a team's four rows.
vec4 maximum_of(uint team) {
    vec4 maximum = maxima[team * TEAM_SUBGROUPS];
    [[unroll]] for (uint s = 1; s < TEAM_SUBGROUPS; ++s) maximum = max(maximum, maxima[team * TEAM_SUBGROUPS + s]);
    return maximum;
}

// Attention of rows `start` to `end` of a tile, which are of one sequence, to the positions of a part, of which
// `longest` are seen by any.
void attend(uint first_row, uint start, uint end, uint part, uint longest) {
    const uint thread = gl_LocalInvocationIndex, team = thread / TEAM_THREADS, member = thread % TEAM_THREADS;
    const uint head = gl_WorkGroupID.y, first = part * THREADS;
    barrier();  // the run before may still be read
    places[thread] = place_of(row_sequences[start] * pages, first + min(thread, longest - 1), head);
    for (uint i = thread; i < (end - start) * ORDERED; i += THREADS) {
        const uint row = start + i / ORDERED, quad = i % ORDERED;
        memory[QUERIES + order_of(quad) * ROWS + row] =
            read_quad(query, (first_row + row) * query_stride + head * WIDTH, quad) * query_factor();
    }
    barrier();

    STORED_QUAD next[SLICE];
    [[unroll]] for (uint i = 0; i < SLICE; ++i)
        next[i] = read_stored_quad(keys, places[thread / SLICE + i * SLICE_KEYS], quad_at(thread % SLICE));
    vec4 score[TEAMS], pair[TEAMS], sum[TEAMS];  // a vector for each key
    [[unroll]] for (uint i = 0; i < TEAMS; ++i) score[i] = vec4(-0.0);  // to which anything can be added
    const bool is_busy = team * 4 < end && team * 4 + 4 > start;
    for (uint slice = 0; slice < ORDERED / SLICE; ++slice) {
        if (slice != 0) barrier();  // the slice before was read
        [[unroll]] for (uint i = 0; i < SLICE; ++i)
            memory[thread % SLICE * THREADS + thread / SLICE + i * SLICE_KEYS] = load(next[i]);
        barrier();
        // The last one is read twice: a condition would keep what was read from being on its way.
        const uint following = min(slice + 1, ORDERED / SLICE - 1) * SLICE + thread % SLICE;
        [[unroll]] for (uint i = 0; i < SLICE; ++i)
            next[i] = read_stored_quad(keys, places[thread / SLICE + i * SLICE_KEYS], quad_at(following));
        [[unroll]] for (uint s = 0; s < SLICE && is_busy; ++s) {
            const uint order = slice * SLICE + s;
            vec4 q[4];
            [[unroll]] for (uint r = 0; r < 4; ++r) q[r] = memory[QUERIES + order * ROWS + team * 4 + r];
            [[unroll]] for (uint i = 0; i < TEAMS; ++i) {
                const vec4 k = memory[s * THREADS + member + i * TEAM_THREADS];
                if (order % PRODUCT_QUADS == 0) sum[i] = vec4(0.0);
                [[unroll]] for (uint r = 0; r < 4; ++r) sum[i][r] = multiply_add(q[r], k, sum[i][r]);
                if (order % PRODUCT_QUADS != PRODUCT_QUADS - 1) continue;
                if (order / PRODUCT_QUADS % 2 == 0) pair[i] = sum[i];
                else score[i] += pair[i] + sum[i];
            }
        }
    }
    barrier();

    // A subgroup has positions that follow each other, as in attention_cached.comp: TEAMS times as many.
    uvec4 counts;
    [[unroll]] for (uint r = 0; r < 4; ++r) counts[r] = count_of(team * 4 + r, first);
    vec4 maximum = vec4(NEGATIVE_INFINITY);
    [[unroll]] for (uint i = 0; i < TEAMS; ++i) {
        [[unroll]] for (uint r = 0; r < 4; ++r)
            score[i][r] = bounded_score(score[i][r], member + i * TEAM_THREADS < counts[r]);
        maximum = max(maximum, score[i]);
    }
    maximum = subgroupMax(maximum);
    if (subgroupElect()) maxima[thread / SUBGROUP_SIZE] = maximum;
    if (TEAM_SUBGROUPS > 1) {
        barrier();
        maximum = maximum_of(team);
    }
    [[unroll]] for (uint i = 0; i < TEAMS; ++i) {
        const vec4 probability = exp2(score[i] - maximum), part_sum = subgroupAdd(probability);
        memory[team * PITCH + member + i * TEAM_THREADS] = probability;
        if (subgroupElect()) sums[team * SUBGROUPS + i * TEAM_SUBGROUPS + member / SUBGROUP_SIZE] = part_sum;
    }
    barrier();

    for (uint i = thread; i < TEAMS * QUADS; i += THREADS) {
        const uint quad = i % QUADS, four = i / QUADS * 4;
        uvec4 count = uvec4(0);
        uint fewest = THREADS, most = 0;  // of those rows that are of the run
        [[unroll]] for (uint r = 0; r < 4; ++r) {
            if (four + r < start || four + r >= end) continue;
            count[r] = count_of(four + r, first);
            fewest = min(fewest, count[r]);
            most = max(most, count[r]);
        }
        vec4 result[4];
        [[unroll]] for (uint r = 0; r < 4; ++r) result[r] = vec4(-0.0);
        for (uint lane = 0; lane < LANES && most != 0; ++lane) {
            vec4 lane_sum[4];
            [[unroll]] for (uint r = 0; r < 4; ++r) lane_sum[r] = vec4(0.0);
            uint j = lane;
            for (; j + (VALUES_AHEAD - 1) * LANES < fewest; j += VALUES_AHEAD * LANES) {
                STORED_QUAD value[VALUES_AHEAD];
                [[unroll]] for (uint a = 0; a < VALUES_AHEAD; ++a) value[a] = read_stored_quad(values, places[j + a * LANES], quad);
                [[unroll]] for (uint a = 0; a < VALUES_AHEAD; ++a) {
                    const vec4 factor = memory[four / 4 * PITCH + j + a * LANES], v = load(value[a]);
                    [[unroll]] for (uint r = 0; r < 4; ++r) lane_sum[r] = fma(vec4(factor[r]), v, lane_sum[r]);
                }
            }
            for (; j < most; j += LANES) {
                const vec4 factor = memory[four / 4 * PITCH + j], v = load(read_stored_quad(values, places[j], quad));
                [[unroll]] for (uint r = 0; r < 4; ++r)
                    if (j < count[r]) lane_sum[r] = fma(vec4(factor[r]), v, lane_sum[r]);
            }
            [[unroll]] for (uint r = 0; r < 4; ++r) result[r] += lane_sum[r];
        }
        const vec4 maximum = maximum_of(four / 4);
        vec4 total = sums[four / 4 * SUBGROUPS];
        [[unroll]] for (uint s = 1; s < SUBGROUPS; ++s) total += sums[four / 4 * SUBGROUPS + s];
        [[unroll]] for (uint r = 0; r < 4; ++r) {
            if (count[r] == 0) continue;
            const uint place = ((first_row + four + r) * QUERY_HEADS + head) * (SPLIT == 1 ? splits : 1) + part;
            if (SPLIT == 0) {
                write_result(place * WIDTH, quad, result[r] / total[r]);
            } else {
                write_quad(partial, place * WIDTH, quad, result[r]);
                if (quad == 0) statistics.at[place * 2] = maximum[r];
                if (quad == 0) statistics.at[place * 2 + 1] = total[r];
            }
        }
    }
}

void main() {
    const Rows tile = find_rows();
    uint most = 0;
    for (uint row = 0; row < tile.count; ++row) most = max(most, row_seen[row]);

    for (uint part = gl_WorkGroupID.x; part * THREADS < most; part += gl_NumWorkGroups.x) {
        for (uint start = 0, end; start < tile.count; start = end) {
            end = end_of_run(tile, start);
            if (!is_own(tile, start)) continue;
            uint longest = 0;
            for (uint row = start; row < end; ++row) longest = max(longest, count_of(row, part * THREADS));
            if (longest != 0) attend(tile.first, start, end, part, longest);
        }
    }
}
