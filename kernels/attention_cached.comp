// Causal attention of single queries of any sequences, whose keys and values stand in blocks: ROWS queries of one head and
// a range of their keys to a workgroup.
//
// query: rows of QUERY_HEADS heads, `query_stride` apart; keys, values [blocks, TOKENS, KEY_HEADS, WIDTH]; sequences,
// positions [N]; tables [S, pages]. Query i sees positions 0 to positions[i] of sequence s = sequences[i]; position p stands
// in block tables[s, p / TOKENS], place p % TOKENS. Grid: (splits, QUERY_HEADS, N / ROWS): a workgroup has THREADS positions,
// so that the bits of a row depend on its own position only. With SPLIT == 0 (one split) `attended` [N, QUERY_HEADS,
// WIDTH] is the result. With SPLIT == 1 `partial` [N, QUERY_HEADS, splits, WIDTH] are sums of exponentials times values,
// and `statistics` [N, QUERY_HEADS, splits, 2] the largest score (base 2) and the sum of exponentials, as
// attention_parts.glsl reads them. numpy: definitions.attention, row by row.
//
// Keys, and the first of the values, are on their way before anything is done with them, and stay where they are for the
// next query of the same sequence.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "attention.glsl"
layout(local_size_x_id = 0) in;

const uint TEAM = 8;              // threads that share the product of the query and a key
const uint TEAMS = THREADS / TEAM;
const uint TEAM_QUADS = (QUADS + TEAM - 1) / TEAM;
const uint TEAM_KEYS = THREADS / TEAMS;
const uint LANES = THREADS / QUADS;  // threads that share a quad of the result
const uint AHEAD = 16;               // values that a thread reads at a time

shared vec4 products[THREADS * TEAM / 4];  // of the query and each key, in the parts that a team has
shared float probabilities[THREADS];
shared vec4 lane_sums[THREADS];

// Where the key, and the value, of a position begin that a query head sees.
uint place_of(uint table, uint position, uint head) {
    uint token = uint(tables.at[table + position / TOKENS]) * TOKENS + position % TOKENS;
    return (token * KEY_HEADS + head / GROUP) * WIDTH;
}

// As read_quad, of what the rounds before in a relay may have written.
vec4 fresh_quad(JOIN(T, _buffer) source, uint start, uint quad) {
    if (RELAY == 0) return read_quad(source, start, quad);
    vec4 numbers = vec4(0.0);
    if (ALIGNED == 1) {
        if (quad < QUADS) numbers = load(JOIN(JOIN(fresh_, T), x4)(uint64_t(source), start / 4 + quad));
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) numbers[i] = load(JOIN(fresh_, T)(uint64_t(source), start + quad * 4 + i));
    }
    return numbers;
}

void write_result(uint start, uint quad, vec4 numbers) {
    if (ALIGNED == 1) {
        store(JOIN(T, x4_buffer)(attended).at[start / 4 + quad], numbers);
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) store(attended.at[start + quad * 4 + i], numbers[i]);
    }
}

void main() {
    const uint thread = gl_LocalInvocationIndex, member = thread % TEAM, quad = thread % QUADS, lane = thread / QUADS;
    const uint head = gl_WorkGroupID.y, first = gl_WorkGroupID.x * THREADS;
    const uint first_row = gl_WorkGroupID.z * ROWS, end_row = min(rows, first_row + ROWS);
    vec4 k[TEAM_KEYS][TEAM_QUADS], v[AHEAD];
    uint there = ~0u;  // the sequence that these are of
    bool is_waiting = true;

    for (uint row = first_row; row < end_row; ++row) {
        const uint sequence = uint(sequences.at[row]), table = sequence * pages;
        const uint seen = uint(positions.at[row]) + 1, count = min(THREADS, seen - min(seen, first));
        const uint place = (row * QUERY_HEADS + head) * gl_NumWorkGroups.x + gl_WorkGroupID.x;
        if (count == 0) {
            if (is_waiting) relay_wait();
            is_waiting = false;
            if (thread < 2) statistics.at[place * 2 + thread] = thread == 0 ? NEGATIVE_INFINITY : 0.0;
            continue;
        }
        if (sequence != there) {
            uint most = count;  // of the rows that share the keys
            for (uint other = row + 1; other < end_row; ++other)
                if (uint(sequences.at[other]) == sequence) {
                    const uint others = uint(positions.at[other]) + 1;
                    most = max(most, min(THREADS, others - min(others, first)));
                }
            there = sequence;
            uint places[TEAM_KEYS], value_places[AHEAD], starts[TEAM_KEYS], value_starts[AHEAD];
            [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
                places[i] = first + min(thread / TEAM + i * TEAMS, most - 1);
                starts[i] = place_of(table, places[i], head);
            }
            [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
                value_places[i] = first + min(lane + i * LANES, most - 1);
                value_starts[i] = place_of(table, value_places[i], head);
            }
            [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i)
                [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c) k[i][c] = read_quad(keys, starts[i], member + c * TEAM);
            [[unroll]] for (uint i = 0; i < AHEAD; ++i) v[i] = read_quad(values, value_starts[i], quad);
            if (RELAY == 1) {  // some of these are only now being written: those of the rows themselves
                uint written = ~0u;
                for (uint other = 0; other < rows; ++other)
                    if (uint(sequences.at[other]) == sequence) written = min(written, uint(positions.at[other]));
                if (is_waiting) relay_wait();
                is_waiting = false;
                [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i)
                    if (places[i] >= written)
                        [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c)
                            k[i][c] = fresh_quad(keys, starts[i], member + c * TEAM);
                [[unroll]] for (uint i = 0; i < AHEAD; ++i)
                    if (value_places[i] >= written) v[i] = fresh_quad(values, value_starts[i], quad);
            }
        }
        vec4 q[TEAM_QUADS];
        [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c)
            q[c] = fresh_quad(query, row * query_stride + head * WIDTH, member + c * TEAM) * query_factor();
        [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
            float product = 0.0;
            [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c) product = multiply_add(q[c], k[i][c], product);
            products[((thread / TEAM + i * TEAMS) * TEAM + member) / 4][member % 4] = product;
        }
        barrier();
        const vec4 pair = products[thread * 2] + products[thread * 2 + 1];
        float score = pair.x + pair.y + pair.z + pair.w;
        if (SOFT_CAP != 0.0) score = bounded_tanh(score) * (SOFT_CAP * LOG2_E);
        if (thread >= count) score = NEGATIVE_INFINITY;
        const float maximum = workgroup_max(score);
        const float probability = exp2(score - maximum);
        probabilities[thread] = probability;
        const float sum = workgroup_sum(probability);
        barrier();
        vec4 result = vec4(0.0);
        if (lane < LANES) {
            [[unroll]] for (uint i = 0; i < AHEAD; ++i)
                if (lane + i * LANES < count) result = fma(vec4(probabilities[lane + i * LANES]), v[i], result);
            for (uint j = lane + AHEAD * LANES; j < count; j += LANES)
                result = fma(vec4(probabilities[j]), fresh_quad(values, place_of(table, first + j, head), quad), result);
        }
        lane_sums[thread] = result;
        barrier();
        if (lane == 0) {
            for (uint i = 1; i < LANES; ++i) result += lane_sums[thread + i * QUADS];
            if (SPLIT == 1) write_quad(partial, place * WIDTH, quad, result);
            else write_result(place * WIDTH, quad, result / sum);
        }
        if (SPLIT == 1 && thread == 0) {
            statistics.at[place * 2] = maximum;
            statistics.at[place * 2 + 1] = sum;
        }
    }
    relay_end();
}
