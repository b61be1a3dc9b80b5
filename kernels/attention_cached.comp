// Causal attention of single queries of any sequences, whose keys and values stand in blocks: one query of one head and
// a range of its keys to a workgroup.
//
// query: rows of QUERY_HEADS heads, `query_stride` apart; keys, values [blocks, TOKENS, KEY_HEADS, WIDTH]; sequences,
// positions [N]; tables [S, pages]. Query i sees positions 0 to positions[i] of sequence s = sequences[i]; position p stands
// in block tables[s, p / TOKENS], place p % TOKENS. Grid: (splits, QUERY_HEADS, N): a workgroup has `split_tokens`
// positions, so that the bits of a row depend on its own position only. With SPLIT == 0 (one split) `attended`
// [N, QUERY_HEADS, WIDTH] is the result. With SPLIT == 1 it is [N, QUERY_HEADS, splits, WIDTH], sums of exponentials times
// values, and `statistics` [N, QUERY_HEADS, splits, 2] has the largest score (base 2) and the sum of exponentials;
// attention_combine makes the result of them. numpy: definitions.attention, row by row.

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

// Where the key, and the value, of a position begin that a query head sees.
uint place_of(uint table, uint position, uint head) {
    uint token = uint(tables.at[table + position / TOKENS]) * TOKENS + position % TOKENS;
    return (token * KEY_HEADS + head / GROUP) * WIDTH;
}

void main() {
    const uint thread = gl_LocalInvocationIndex, member = thread % TEAM, quad = thread % QUADS, lane = thread / QUADS;
    const uint row = gl_WorkGroupID.z, head = gl_WorkGroupID.y;
    const uint seen = uint(positions.at[row]) + 1, table = uint(sequences.at[row]) * pages;
    const uint first = min(seen, gl_WorkGroupID.x * split_tokens), last = min(seen, first + split_tokens);
    const uint query_start = row * query_stride + head * WIDTH;

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
                uint start = place_of(table, chunk + key_index, head);
                [[unroll]] for (uint c = 0; c < TEAM_QUADS; ++c)
                    product = multiply_add(q[c], read_quad(keys, start, member + c * TEAM), product);
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
                vec4 v = read_quad(values, place_of(table, chunk + j, head), quad);
                result = fma(vec4(probabilities[j]), v, result);
            }
        }
        barrier();
    }

    sum = workgroup_sum(sum);
    lane_sums[thread] = result;
    barrier();
    const uint place = (row * QUERY_HEADS + head) * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (lane == 0) {
        for (uint i = 1; i < LANES; ++i) result += lane_sums[thread + i * QUADS];
        write_quad(attended, place * WIDTH, quad, SPLIT == 1 ? result : result / sum);
    }
    if (SPLIT == 1 && thread == 0) {
        statistics.at[place * 2] = maximum;
        statistics.at[place * 2 + 1] = sum;
    }
}
