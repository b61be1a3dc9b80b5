// Causal attention of a few queries, one query of one head and a range of its keys to a workgroup.
//
// Operands as in attention_forward, without dropout. Grid: (splits, query_length QUERY_HEADS, B): each query's keys are
// divided among `splits` workgroups. With SPLIT == 0 (one split) `attended` [B, query_length, QUERY_HEADS, WIDTH] is the
// result. With SPLIT == 1 it is [B, query_length, QUERY_HEADS, splits, WIDTH], sums of exponentials times values, and
// `statistics` [B, query_length, QUERY_HEADS, splits, 2] has the largest score (base 2) and the sum of exponentials;
// attention_combine makes the result of them. numpy: definitions.attention.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "attention.glsl"
layout(local_size_x_id = 0) in;

const uint TEAM = 8;              // threads that share the product of the query and a key
const uint TEAMS = THREADS / TEAM;
const uint TEAM_QUADS = (QUADS + TEAM - 1) / TEAM;
const uint CHUNK = 2 * THREADS;  // keys between two exchanges
const uint LANES = THREADS / QUADS;  // threads that share a quad of the result

shared vec4 parts[CHUNK * TEAM / 4];  // of the products of a chunk
shared float probabilities[CHUNK];
shared vec4 lane_sums[THREADS];

void main() {
    const uint thread = gl_LocalInvocationIndex, member = thread % TEAM, quad = thread % QUADS, lane = thread / QUADS;
    const uint t = gl_WorkGroupID.y / QUERY_HEADS, head = gl_WorkGroupID.y % QUERY_HEADS, sequence = gl_WorkGroupID.z;
    const uint seen = key_length - query_length + t + 1;
    const uint share = (seen + gl_NumWorkGroups.x - 1) / gl_NumWorkGroups.x;
    const uint first = min(seen, gl_WorkGroupID.x * share), last = min(seen, first + share);
    const uint query_start = sequence * query_batch_stride + t * query_token_stride + head * QUERY_HEAD_STRIDE;
    const uint key_start = sequence * key_batch_stride + head / GROUP * KEY_HEAD_STRIDE;
    const uint value_start = sequence * value_batch_stride + head / GROUP * VALUE_HEAD_STRIDE;

    vec4 q[TEAM_QUADS];
    [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c) q[c] = read_quad(query, query_start, member + c * TEAM) * query_factor();

    float maximum = NEGATIVE_INFINITY, sum = 0.0;
    vec4 result = vec4(0.0);
    for (uint chunk = first; chunk < last; chunk += CHUNK) {
        const uint count = min(CHUNK, last - chunk);
        [[unroll]] for (uint i = 0; i < CHUNK / TEAMS; ++i) {
            uint key_index = thread / TEAM + i * TEAMS;
            float product = 0.0;
            if (key_index < count) {
                uint start = key_start + (chunk + key_index) * key_token_stride;
                [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c)
                    product = multiply_add(q[c], read_quad(key, start, member + c * TEAM), product);
            }
            parts[(key_index * TEAM + member) / 4][member % 4] = product;
        }
        barrier();
        float scores[2];
        [[unroll]] for (uint i = 0; i < 2; ++i) {
            uint key_index = thread + i * THREADS;
            vec4 pair = parts[key_index * 2] + parts[key_index * 2 + 1];
            scores[i] = pair.x + pair.y + pair.z + pair.w;
            if (SOFT_CAP != 0.0) scores[i] = bounded_tanh(scores[i]) * (SOFT_CAP * LOG2_E);
            if (key_index >= count) scores[i] = NEGATIVE_INFINITY;
        }
        float largest = max(maximum, workgroup_max(max(scores[0], scores[1])));
        float factor = exp2(maximum - largest);
        maximum = largest;
        [[unroll]] for (uint i = 0; i < 2; ++i) {
            scores[i] = exp2(scores[i] - maximum);
            probabilities[thread + i * THREADS] = scores[i];
        }
        sum = sum * factor + scores[0] + scores[1];
        result *= factor;
        barrier();
        if (lane < LANES) {
            for (uint j = lane; j < count; j += LANES) {
                vec4 v = read_quad(value, value_start + (chunk + j) * value_token_stride, quad);
                result = fma(vec4(probabilities[j]), v, result);
            }
        }
        barrier();
    }

    sum = workgroup_sum(sum);
    lane_sums[thread] = result;
    barrier();
    const uint row = (sequence * query_length + t) * QUERY_HEADS + head;
    const uint place = row * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (lane == 0) {
        for (uint i = 1; i < LANES; ++i) result += lane_sums[thread + i * QUADS];
        write_quad(attended, place * WIDTH, quad, SPLIT == 1 ? result : result / sum);
    }
    if (SPLIT == 1 && thread == 0) {
        statistics.at[place * 2] = maximum;
        statistics.at[place * 2 + 1] = sum;
    }
}
