// Causal attention of single queries of any sequences to keys and values that stand in blocks, on matrix units: a query, one
// of its heads and a part of its keys to a workgroup; see attention_cached_matrix.glsl. numpy: definitions.attention, row by
// row. Grid: (splits, QUERY_HEADS, N).
//
// A subgroup has COLUMNS columns of the values of the part, and for the scores as much of its keys. All of that is on its way
// before anything is done with it, and waits in registers as it is stored. Each subgroup has the probabilities of the whole
// part.

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
#include "attention_cached_matrix.glsl"
layout(local_size_x_id = 0) in;

const uint COLUMNS = WIDTH / SUBGROUPS, VALUE_OCTETS = COLUMNS / 8;
const uint KEYS = PART / SUBGROUPS;
const uint KEY_EACH = KEYS * OCTETS / SUBGROUP_SIZE, VALUE_EACH = PART * VALUE_OCTETS / SUBGROUP_SIZE;

// A subgroup's keys, and then its values; its query, and then its result; its probabilities. Then all scores.
const uint KEY_UNITS = KEYS * PITCH, VALUE_UNITS = PART * VALUE_OCTETS;
const uint ROW = KEY_UNITS > VALUE_UNITS ? KEY_UNITS : VALUE_UNITS;
const uint PROBABILITIES = ROW + (OCTETS > COLUMNS / 4 ? OCTETS : COLUMNS / 4);
const uint REGION = PROBABILITIES + PART / 8, SCORES = SUBGROUPS * REGION;
shared uvec4 memory[SCORES + PART / 4];
#include "attention_cached_matrix_one.glsl"

uvec4 fresh_octet_of(uint64_t source, uint start, uint octet) { return fresh_u32x4(source, start / 8 + octet); }

#define KEY_POSITION(i) (first + min(gl_SubgroupID * KEYS + ((i) * SUBGROUP_SIZE + lane) / OCTETS, count - 1))
#define KEY_OCTET(i) (((i) * SUBGROUP_SIZE + lane) % OCTETS)
#define VALUE_POSITION(i) (first + min(((i) * SUBGROUP_SIZE + lane) / VALUE_OCTETS, count - 1))
#define VALUE_OCTET(i) (gl_SubgroupID * VALUE_OCTETS + ((i) * SUBGROUP_SIZE + lane) % VALUE_OCTETS)

void main() {
    const uint lane = gl_SubgroupInvocationID, region = gl_SubgroupID * REGION;
    const uint head = gl_WorkGroupID.y, row = gl_WorkGroupID.z, part = gl_WorkGroupID.x, first = part * PART;
    const uint table = uint(sequences.at[row]) * pages, seen = uint(positions.at[row]) + 1;
    const uint count = min(PART, seen - min(seen, first));
    if (count == 0) {
        relay_skip();
        return;
    }
    uvec4 k[KEY_EACH], v[VALUE_EACH];
    [[unroll]] for (uint i = 0; i < KEY_EACH; ++i)
        k[i] = octet_of(uint64_t(keys), place_of(table, KEY_POSITION(i), head), KEY_OCTET(i));
    [[unroll]] for (uint i = 0; i < VALUE_EACH; ++i)
        v[i] = octet_of(uint64_t(values), place_of(table, VALUE_POSITION(i), head), VALUE_OCTET(i));
    if (RELAY != 0) {  // some of these are only now being written
        const uint written = wait_for_written(table, seen, head);
        if (written < first + PART) {
            [[unroll]] for (uint i = 0; i < KEY_EACH; ++i)
                if (KEY_POSITION(i) >= written)
                    k[i] = fresh_octet_of(uint64_t(keys), place_of(table, KEY_POSITION(i), head), KEY_OCTET(i));
            [[unroll]] for (uint i = 0; i < VALUE_EACH; ++i)
                if (VALUE_POSITION(i) >= written)
                    v[i] = fresh_octet_of(uint64_t(values), place_of(table, VALUE_POSITION(i), head), VALUE_OCTET(i));
        }
    }
    for (uint octet = lane; octet < OCTETS; octet += SUBGROUP_SIZE)
        memory[region + ROW + octet] = fresh_octet_of(uint64_t(query), row * query_stride + head * WIDTH, octet);
    [[unroll]] for (uint i = 0; i < KEY_EACH; ++i)
        memory[region + (i * SUBGROUP_SIZE + lane) / OCTETS * PITCH + KEY_OCTET(i)] = k[i];
    MEET
    [[unroll]] for (uint n = 0; n < KEYS / FRAGMENT_N; ++n) {
        SUM_MATRIX products = SUM_MATRIX(0.0);
        [[unroll]] for (uint d = 0; d < DEPTHS; ++d) {
            A_MATRIX a;
            B_MATRIX b;
            coopMatLoad(a, memory, region + ROW + d * FRAGMENT_K / 8, 0, ROW_MAJOR);
            coopMatLoad(b, memory, region + n * FRAGMENT_N * PITCH + d * FRAGMENT_K / 8, PITCH, COLUMN_MAJOR);
            products = coopMatMulAdd(a, b, products);
        }
        coopMatStore(products, memory, SCORES + (gl_SubgroupID * KEYS + n * FRAGMENT_N) / 4, 0, ROW_MAJOR);
    }
    MEET
    [[unroll]] for (uint i = 0; i < VALUE_EACH; ++i) memory[region + i * SUBGROUP_SIZE + lane] = v[i];
    barrier();

    const vec2 statistic = make_probabilities(SCORES, region + PROBABILITIES, count);
    MEET
    SUM_MATRIX result[COLUMNS / FRAGMENT_N];
    [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n) result[n] = SUM_MATRIX(0.0);
    [[unroll]] for (uint l = 0; l < PART_DEPTHS; ++l) {
        if (l * FRAGMENT_K >= count) continue;
        A_MATRIX p;
        coopMatLoad(p, memory, region + PROBABILITIES + l * FRAGMENT_K / 8, 0, ROW_MAJOR);
        [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n) {
            B_MATRIX b;
            coopMatLoad(b, memory, region + l * FRAGMENT_K * VALUE_OCTETS + n * FRAGMENT_N / 8, VALUE_OCTETS, ROW_MAJOR);
            result[n] = coopMatMulAdd(p, b, result[n]);
        }
    }
    [[unroll]] for (uint n = 0; n < COLUMNS / FRAGMENT_N; ++n)
        coopMatStore(result[n], memory, region + ROW + n * FRAGMENT_N / 4, 0, ROW_MAJOR);
    MEET
    const uint place = (row * QUERY_HEADS + head) * (SPLIT == 1 ? gl_NumWorkGroups.x : 1) + part;
    write_part(place, region + ROW, gl_SubgroupID * (COLUMNS / 4), COLUMNS / 4, statistic, gl_LocalInvocationIndex == 0);
    relay_end();
}
