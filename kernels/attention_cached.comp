// Causal attention of single queries of any sequences, whose keys and values stand in blocks: a query, one of its heads
// and a range of its keys to a workgroup; see attention_cached.glsl. numpy: definitions.attention, row by row. Grid:
// (splits, QUERY_HEADS, N).
//
// Keys, and the first of the values, are on their way before anything is done with them.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
#include "attention_fresh.glsl"
layout(local_size_x_id = 0) in;

const uint TEAMS = THREADS / PRODUCTS;  // of threads that share the product of the query and a key
const uint TEAM_KEYS = THREADS / TEAMS;

shared vec4 products[THREADS * PRODUCTS / 4];
shared float probabilities[THREADS];
shared vec4 lane_sums[THREADS];

// As read_stored_quad, of what the rounds before in a relay may have written.
STORED_QUAD fresh_stored_quad(JOIN(T, _buffer) source, uint start, uint quad) {
    if (RELAY == 0) return read_stored_quad(source, start, quad);
    STORED_QUAD numbers = STORED_QUAD(0);
    if (ALIGNED == 1) {
        if (quad < QUADS) numbers = JOIN(JOIN(fresh_, T), x4)(uint64_t(source), start / 4 + quad);
    } else {
        for (uint i = 0; i < 4; ++i)
            if (quad * 4 + i < WIDTH) numbers[i] = JOIN(fresh_, T)(uint64_t(source), start + quad * 4 + i);
    }
    return numbers;
}

vec4 fresh_quad(JOIN(T, _buffer) source, uint start, uint quad) { return load(fresh_stored_quad(source, start, quad)); }

void main() {
    const uint thread = gl_LocalInvocationIndex, member = thread % PRODUCTS, quad = thread % QUADS, lane = thread / QUADS;
    const uint head = gl_WorkGroupID.y, first = gl_WorkGroupID.x * THREADS, row = gl_WorkGroupID.z;
    const uint table = uint(sequences.at[row]) * pages;
    const uint seen = uint(positions.at[row]) + 1, count = min(THREADS, seen - min(seen, first));
    const uint place = (row * QUERY_HEADS + head) * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (count == 0) {
        relay_skip();
        return;
    }
    STORED_QUAD k[TEAM_KEYS][PRODUCT_QUADS], v[AHEAD];  // as they are stored, which takes fewer registers
    uint places[TEAM_KEYS], value_places[AHEAD], starts[TEAM_KEYS], value_starts[AHEAD];
    [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
        places[i] = first + min(thread / PRODUCTS + i * TEAMS, count - 1);
        starts[i] = place_of(table, places[i], head);
    }
    [[unroll]] for (uint i = 0; i < AHEAD; ++i) {
        value_places[i] = first + min(lane + i * LANES, count - 1);
        value_starts[i] = place_of(table, value_places[i], head);
    }
    [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i)
        [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c) k[i][c] = read_stored_quad(keys, starts[i], member + c * PRODUCTS);
    [[unroll]] for (uint i = 0; i < AHEAD; ++i) v[i] = read_stored_quad(values, value_starts[i], quad);
    if (RELAY != 0) {  // some of these are only now being written
        const uint written = wait_for_written(table, seen, head);
        [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i)
            if (places[i] >= written)
                [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c)
                    k[i][c] = fresh_stored_quad(keys, starts[i], member + c * PRODUCTS);
        [[unroll]] for (uint i = 0; i < AHEAD; ++i)
            if (value_places[i] >= written) v[i] = fresh_stored_quad(values, value_starts[i], quad);
    }
    vec4 q[PRODUCT_QUADS];
    [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c)
        q[c] = fresh_quad(query, row * query_stride + head * WIDTH, member + c * PRODUCTS) * query_factor();
    [[unroll]] for (uint i = 0; i < TEAM_KEYS; ++i) {
        float product = 0.0;
        [[unroll]] for (uint c = 0; c < PRODUCT_QUADS; ++c) product = multiply_add(q[c], load(k[i][c]), product);
        products[((thread / PRODUCTS + i * TEAMS) * PRODUCTS + member) / 4][member % 4] = product;
    }
    barrier();
    const vec4 sums = products[thread * 2] + products[thread * 2 + 1];
    const float score = bounded_score(sums.x + sums.y + sums.z + sums.w, thread < count);
    const float maximum = workgroup_max(score);
    const float probability = exp2(score - maximum);
    probabilities[thread] = probability;
    const float sum = workgroup_sum(probability);
    barrier();
    vec4 result = vec4(0.0);
    if (lane < LANES) {
        [[unroll]] for (uint i = 0; i < AHEAD; ++i)
            if (lane + i * LANES < count) result = fma(vec4(probabilities[lane + i * LANES]), load(v[i]), result);
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
    relay_end();
}
