// What attention_cached_matrix.comp computes, with the same bits, for so many rows that a subgroup each fills the device: a
// row, one of its heads and a part of its keys to a subgroup, which never waits for another. Grid: (splits,
// QUERY_HEADS / SUBGROUPS, N).
//
// Keys, and then values, come in chunks of CHUNK positions, CHUNKS_AHEAD on their way in registers, as they are stored.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "halves.glsl"
#include "attention.glsl"
#include "attention_cached.glsl"
#include "attention_numbers.glsl"
#include "attention_cached_matrix.glsl"
layout(local_size_x_id = 0) in;

const uint CHUNK = 32, CHUNKS = PART / CHUNK, CHUNKS_AHEAD = 3;
const uint EACH_LANE = CHUNK * OCTETS / SUBGROUP_SIZE, STEP = SUBGROUP_SIZE / OCTETS;  // positions of a read of all lanes

// A subgroup's chunk; its query, and then its result; its scores; its probabilities.
const uint ROW = CHUNK * PITCH, SCORES = ROW + QUADS, PROBABILITIES = SCORES + PART / 4;
const uint REGION = PROBABILITIES + PART / 8;
shared uvec4 memory[SUBGROUPS * REGION];
#include "attention_cached_matrix_one.glsl"

// Asks for the chunk of a step, of which the first CHUNKS have keys and the others values.
#define ASK_FOR(step)                                                                                                 \
    if ((step) < 2 * CHUNKS && (step) % CHUNKS * CHUNK < count)                                                       \
        [[unroll]] for (uint i = 0; i < EACH_LANE; ++i)                                                               \
            ahead[(step) % CHUNKS_AHEAD][i] =                                                                         \
                octet_of((step) < CHUNKS ? uint64_t(keys) : uint64_t(values),                                         \
                         subgroupShuffle(places[((step) % CHUNKS * CHUNK + i * STEP) / SUBGROUP_SIZE],                \
                                         (i * STEP + lane / OCTETS) % SUBGROUP_SIZE),                                 \
                         lane % OCTETS);

// Has the chunk of a step in shared memory, and asks for another in its place.
#define TAKE(step)                                                                                                    \
    MEET                                                                                                              \
    if ((step) % CHUNKS * CHUNK < count)                                                                              \
        [[unroll]] for (uint i = 0; i < EACH_LANE; ++i)                                                               \
            memory[region + (i * STEP + lane / OCTETS) * PITCH + lane % OCTETS] = ahead[(step) % CHUNKS_AHEAD][i];     \
    ASK_FOR((step) + CHUNKS_AHEAD)                                                                                    \
    MEET

void main() {
    const uint lane = gl_SubgroupInvocationID, region = gl_SubgroupID * REGION;
    const uint head = gl_WorkGroupID.y * SUBGROUPS + gl_SubgroupID, row = gl_WorkGroupID.z;
    const uint part = gl_WorkGroupID.x, first = part * PART;
    const uint table = uint(sequences.at[row]) * pages, seen = uint(positions.at[row]) + 1;
    if (first >= seen) return;
    const uint count = min(PART, seen - first);
    uint places[PART / SUBGROUP_SIZE];
    [[unroll]] for (uint i = 0; i < PART / SUBGROUP_SIZE; ++i)
        places[i] = place_of(table, first + min(i * SUBGROUP_SIZE + lane, count - 1), head);
    uvec4 ahead[CHUNKS_AHEAD][EACH_LANE];
    [[unroll]] for (uint step = 0; step < CHUNKS_AHEAD; ++step) ASK_FOR(step)
    MEET
    for (uint octet = lane; octet < OCTETS; octet += SUBGROUP_SIZE)
        memory[region + ROW + octet] = octet_of(uint64_t(query), row * query_stride + head * WIDTH, octet);
    MEET
    A_MATRIX q[DEPTHS];
    [[unroll]] for (uint d = 0; d < DEPTHS; ++d) coopMatLoad(q[d], memory, region + ROW + d * FRAGMENT_K / 8, 0, ROW_MAJOR);
    [[unroll]] for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
        TAKE(chunk)
        if (chunk * CHUNK >= count) continue;
        [[unroll]] for (uint n = 0; n < CHUNK / FRAGMENT_N; ++n) {
            SUM_MATRIX products = SUM_MATRIX(0.0);
            [[unroll]] for (uint d = 0; d < DEPTHS; ++d) {
                B_MATRIX b;
                coopMatLoad(b, memory, region + n * FRAGMENT_N * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
                products = coopMatMulAdd(q[d], b, products);
            }
            coopMatStore(products, memory, region + SCORES + (chunk * CHUNK + n * FRAGMENT_N) / 4, 0, ROW_MAJOR);
        }
    }
    MEET

    const vec2 statistic = make_probabilities(region + SCORES, region + PROBABILITIES, count);
    SUM_MATRIX result[WIDTH / FRAGMENT_N];
    [[unroll]] for (uint n = 0; n < WIDTH / FRAGMENT_N; ++n) result[n] = SUM_MATRIX(0.0);
    [[unroll]] for (uint chunk = 0; chunk < CHUNKS; ++chunk) {
        TAKE(CHUNKS + chunk)
        if (chunk * CHUNK >= count) continue;
        [[unroll]] for (uint l = 0; l < CHUNK / FRAGMENT_K; ++l) {
            if (chunk * CHUNK + l * FRAGMENT_K >= count) continue;
            A_MATRIX p;
            coopMatLoad(p, memory, region + PROBABILITIES + (chunk * CHUNK + l * FRAGMENT_K) / 8, 0, ROW_MAJOR);
            [[unroll]] for (uint n = 0; n < WIDTH / FRAGMENT_N; ++n) {
                B_MATRIX b;
                coopMatLoad(b, memory, region + l * FRAGMENT_K * PITCH + n * FRAGMENT_N / 8, PITCH, ROW_MAJOR);
                result[n] = coopMatMulAdd(p, b, result[n]);
            }
        }
    }
    [[unroll]] for (uint n = 0; n < WIDTH / FRAGMENT_N; ++n)
        coopMatStore(result[n], memory, region + ROW + n * FRAGMENT_N / 4, 0, ROW_MAJOR);
    MEET
    const uint place = (row * QUERY_HEADS + head) * (SPLIT == 1 ? gl_NumWorkGroups.x : 1) + part;
    write_part(place, region + ROW, 0, QUADS, statistic, lane == 0);
}
